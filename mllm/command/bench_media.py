"""`mllm bench media`: reading recordings with `load_clip`, beside a plain decord loop."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mllm.command.bench import JsonOption, report
from mllm.errors import MllmError

if TYPE_CHECKING:
    from rich.table import Table

PIECE = 200  # s of a long recording that are read at once: what `mllm index add` takes at 224 pixels


def bench_media(
    files: Annotated[list[Path] | None, typer.Argument(help="Videos; without, one that is made up.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels, height = width.")] = 224,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from each video, evenly.")] = 32,
    seconds: Annotated[int, typer.Option(min=1, help="Length of the one that is made up.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Times each is read; the fastest counts.")] = 5,
    long: Annotated[
        int, typer.Option(min=0, help="Length (s) of another one, read in pieces; 0 leaves it out.")
    ] = 0,
    json_file: JsonOption = None,
) -> dict[str, Any]:
    """Frames a second of mllm.media.recording, beside a plain decord loop at the same size.

    Returns:
        {"size", "frames", "repeats", "ratio": geometric mean over files, "files": [{"file", "seconds",
        "ours", "with_sound", "decord" (frames/s), "ratio": ours / decord, "isolation_ms": what a worker
        process takes longer, median}], "long": see `_in_pieces`, or None}; decord and ratio are None where
        decord cannot read the file.

    Raises:
        MllmError: if decord is not installed, or a file has no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            _measure(file, size, frames, repeats)
            for file in files or [made_up(Path(folder) / "made-up.mp4", seconds)]
        ]
        # Small pictures, since larger ones would take long to encode.
        film = made_up(Path(folder) / "long.mp4", long, 160, 90) if long else None
        pieces = _in_pieces(film, size, repeats) if film else None
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    mean = statistics.geometric_mean(ratios) if ratios else None
    numbers = {
        "size": size,
        "frames": frames,
        "repeats": repeats,
        "ratio": mean,
        "files": rows,
        "long": pieces,
    }
    note = f"{frames} frames of {size}×{size} per video, best of {repeats}; ratio: ours / decord"
    if pieces:
        note += (
            f"\n{pieces['seconds']:.0f} s in {pieces['pieces']} pieces: {pieces['open']:.2f} s from one open "
            f"recording ({pieces['isolated']:.2f} s in a worker), {pieces['apart']:.2f} s if each opens it"
        )
    report(_table(rows), numbers, json_file, note)
    return numbers


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    heads = ("video", "length", "mllm", "with sound", "plain decord", "ratio", "in a worker")
    table = Table(*heads, box=None)
    for row in rows:
        plain = "cannot" if row["decord"] is None else f"{row['decord']:.0f}/s"
        compared = "" if row["ratio"] is None else f"{row['ratio']:.2f}×"
        speeds = (f"{row['ours']:.0f}/s", f"{row['with_sound']:.0f}/s")
        isolated = f"{row['isolation_ms']:+.1f} ms"
        table.add_row(row["file"], f"{row['seconds']:.1f} s", *speeds, plain, compared, isolated)
    return table


def _measure(file: Path, size: int, frames: int, repeats: int) -> dict[str, Any]:
    from mllm.media.recording import load_clip, probe

    try:
        import decord
    except (ImportError, OSError):
        raise MllmError(
            "decord is not installed, so there is nothing to compare with: pip install decord"
        ) from None
    info = probe(file)
    if not info.has_video or info.is_image:
        raise MllmError(f"{file}: not a video: name files with a moving picture")

    def choose(seconds: float) -> np.ndarray:
        return (np.arange(frames) + 0.5) / frames * seconds

    def plain() -> Any:
        reader = decord.VideoReader(str(file), width=size, height=size, num_threads=1)
        wanted = ((np.arange(frames) + 0.5) / frames * len(reader)).astype(int)
        return reader.get_batch(wanted.tolist()).asnumpy()

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: load_clip(file, size=size, choose=choose, want_audio=False),
        "with_sound": lambda: load_clip(file, size=size, choose=choose),
        "isolated": lambda: load_clip(file, size=size, choose=choose, isolated=True),
        "decord": plain,
    }
    try:
        plain()
    except Exception:  # its errors share no base class
        del ways["decord"]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):  # in turn, so that other load on the machine affects all of them equally
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begin)
    # The fastest run: slower ones waited for something else on the machine.
    speeds = {name: frames / min(taken[1:]) for name, taken in times.items()}
    decords = speeds.get("decord")
    pairs = zip(times["isolated"][1:], times["with_sound"][1:], strict=True)
    longer = statistics.median(worker - here for worker, here in pairs)
    return {
        "file": file.name,
        "seconds": info.duration,
        "ours": speeds["ours"],
        "with_sound": speeds["with_sound"],
        "decord": decords,
        "ratio": speeds["ours"] / decords if decords else None,
        "isolation_ms": 1000 * longer,
    }


def _in_pieces(file: Path, size: int, repeats: int) -> dict[str, Any]:
    """Reads all of a recording, PIECE seconds at a time, four frames a second.

    Returns:
        {"seconds": of the recording, "pieces", and how long it takes (s, the fastest): "open" of one open
        recording, "isolated" of one that a worker has open, "apart" if every piece opens it}.
    """
    from mllm.media.recording import load_clip, open_recording, probe

    seconds = probe(file).duration
    cuts: list[dict[str, Any]] = [
        {"start": float(start), "end": min(start + PIECE, seconds), "size": size, "choose": _evenly}
        for start in range(0, int(seconds), PIECE)
    ]

    def opened(isolated: bool) -> None:
        with open_recording(file, isolated=isolated) as recording:
            for cut in cuts:
                recording.clip(**cut)

    ways: dict[str, Callable[[], Any]] = {
        "open": lambda: opened(isolated=False),
        "isolated": lambda: opened(isolated=True),
        "apart": lambda: [load_clip(file, **cut) for cut in cuts],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begin)
    fastest = {name: min(taken) for name, taken in times.items()}
    return {"seconds": seconds, "pieces": len(cuts)} | fastest


def _evenly(seconds: float) -> np.ndarray:
    return np.arange(0, seconds, 0.25)


def made_up(path: Path, seconds: int = 8, width: int = 640, height: int = 360) -> Path:
    """Write a video (H.264, 30 frames a second, drifting colours) with sound (AAC, a tone)."""
    import av

    rate, fps = 44_100, 30
    ramp = np.add.outer(np.arange(height), np.arange(width))
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=rate, layout="mono")
        for number in range(seconds * fps):
            picture = np.stack([(ramp * step // 2 + number * step) % 256 for step in (1, 2, 3)], axis=-1)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8))))
        out.mux(video.encode())
        for second in range(seconds):
            wave = 0.3 * np.sin(2 * np.pi * 440 * (np.arange(rate) + second * rate) / rate)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), second * rate
            out.mux(audio.encode(frame))
        out.mux(audio.encode())
    return path
