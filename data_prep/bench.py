"""`mllm bench data`: speed of building shards, of reading them, and of epochs on cached features."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data_prep.shard_build import Storage, build, make_plan
from mllm.command.bench import JsonOption, report
from mllm.command.bench_media import made_up
from mllm.media.recording import SAMPLE_RATE
from mllm.media.windows import WindowSpec
from mllm.records.chat import Message
from mllm.records.shards import FrameFormat

REALISTIC = {  # towers between the nano size and a pretrained one
    "video": {
        "type": "timesformer", "image_size": 224, "patch_size": 16, "hidden_size": 384,
        "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536,
    },
    "audio": {
        "type": "whisper", "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536, "num_mel_bins": 80,
    },
    "max_windows": 4,
}  # fmt: skip


COMPARED = (  # label, ours, the alternative, unit
    ("build JPEG, beside a decord loop", "built_jpeg", "decord", "recordings/s"),
    ("build JPEG, beside decord and Pillow", "built_jpeg", "decord_jpeg", "recordings/s"),
    ("build JPEG, two processes beside one", "built_jpeg_two", "built_jpeg", "recordings/s"),
    ("build uint8, beside a decord loop", "built_uint8", "decord", "recordings/s"),
    ("build uint8, beside decord without sound", "built_uint8", "decord_silent", "recordings/s"),
    ("read uint8 in order, beside Arrow rows", "in_order_uint8", "arrow_in_order_uint8", "recordings/s"),
    ("read uint8 at random, beside Arrow rows", "at_random_uint8", "arrow_at_random_uint8", "recordings/s"),
    ("read JPEG in order, beside bare rows", "in_order_jpeg", "arrow_in_order_jpeg", "recordings/s"),
    (
        "read JPEG at random, beside bare rows",
        "at_random_jpeg",
        "arrow_at_random_jpeg",
        "recordings/s",
    ),
    (
        "read JPEG at random, beside Pillow",
        "at_random_jpeg",
        "pillow_at_random_jpeg",
        "recordings/s",
    ),
    ("epoch with kept features, beside towers", "epoch_kept", "epoch_towers", "s"),
)


def bench_data(
    recordings: Annotated[int, typer.Option(min=8, help="Copies of a made-up video that are built.")] = 256,
    size: Annotated[int, typer.Option(min=16, help="Pixels, height = width.")] = 224,
    cached: Annotated[int, typer.Option(min=1, help="Recordings of the epoch with frozen towers.")] = 4,
    json_file: JsonOption = None,
) -> dict[str, Any]:
    """Building, reading and epochs, each beside a plain alternative in the same run.

    Returns:
        numbers by name: recordings a second, seconds, ratios.
    """
    from rich.table import Table

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = _records(folder, recordings)
        numbers = _build(folder, records, size)
        for frames in ("uint8", "jpeg"):
            numbers |= {f"{name}_{frames}": rate for name, rate in _read(folder / f"{frames}1").items()}
        numbers |= _epoch(folder, cached)
    table = Table("what", "ours", "plain", "ratio", box=None)
    for what, ours, plain, unit in COMPARED:
        ratio = numbers[ours] / numbers[plain] if unit != "s" else numbers[plain] / numbers[ours]
        numbers[f"{ours}/{plain}"] = ratio
        table.add_row(what, f"{numbers[ours]:.1f} {unit}", f"{numbers[plain]:.1f} {unit}", f"{ratio:.2f}×")
    table.add_row("memory after three epochs of reading JPEG", f"{numbers['grown_mb_jpeg']:+.0f} MB", "", "")
    note = f"{recordings} videos of 8 s, 640×360, at {size}×{size}; ratio: how many times as fast"
    report(table, numbers, json_file, note)
    return numbers


def _records(folder: Path, count: int) -> Path:
    from mllm.records.record import write_records

    first = made_up(folder / "0.mp4")
    rows = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        if number:
            shutil.copyfile(first, path)
        user = [{"type": "video", "video": str(path)}, {"type": "text", "text": "What is seen?"}]
        rows.append({"id": str(number), "messages": [{"role": "user", "content": user}], "answer": "colours"})
    write_records(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def _build(folder: Path, records: Path, size: int) -> dict[str, float]:
    """Recordings a second: plain decord loops, and builds of both formats."""
    spec = WindowSpec(window_seconds=2.0, frames_per_window=8, max_windows=32, image_size=size)
    files = sorted(folder.glob("*.mp4"))
    loops = {
        "decord": partial(_plain, spec),
        "decord_silent": partial(_plain, spec, sound=False),
        "decord_jpeg": partial(_plain, spec, jpeg=True),
    }
    half = len(files) // 2  # before and after the builds, since a machine's speed drifts
    before = {name: _rate(loop, files[:half]) for name, loop in loops.items()}
    numbers = {}
    builds: list[tuple[str, FrameFormat, int]] = [
        ("jpeg", "jpeg", 1),
        ("jpeg_two", "jpeg", 2),
        ("uint8", "uint8", 1),
    ]
    for name, frames, workers in builds:
        plan = make_plan(records, Storage(spec, frames), 16)
        os.sync()  # otherwise earlier writes are flushed during this measurement
        begin = time.perf_counter()
        count = build(plan, "bench", folder / f"{frames}{workers}", workers=workers)
        numbers[f"built_{name}"] = count / (time.perf_counter() - begin)
    after = {name: _rate(loop, files[half:]) for name, loop in loops.items()}
    return numbers | {name: 2 / (1 / before[name] + 1 / after[name]) for name in loops}


def _plain(spec: WindowSpec, path: Path, sound: bool = True, jpeg: bool = False) -> None:
    """The same pictures and sound by decord alone, at a steady frame rate, kept nowhere."""
    import decord
    from PIL import Image

    reader = decord.VideoReader(str(path), width=spec.image_size, height=spec.image_size, num_threads=1)
    length = len(reader)
    times = spec.frame_times(length / reader.get_avg_fps()).ravel()
    wanted = np.minimum((times * reader.get_avg_fps()).astype(int), length - 1)
    frames = reader.get_batch(wanted.tolist()).asnumpy()
    if sound:
        decord.AudioReader(str(path), sample_rate=SAMPLE_RATE, mono=True)[:].asnumpy()
    if jpeg:
        for frame in frames:
            Image.fromarray(frame).save(io.BytesIO(), "JPEG", quality=Storage.quality)


def _rate(work: Callable[[Any], Any], items: Iterable[Any]) -> float:
    """Items a second."""
    items = list(items)
    begin = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - begin)


def _read(built: Path) -> dict[str, float]:
    """Recordings a second out of shards, beside bare rows of the same files; memory over three epochs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # whose memory is its own
        return pool.submit(_read_here, built).result()


def _read_here(built: Path) -> dict[str, float]:
    import datasets

    from mllm.records.shards import ShardSource

    source = ShardSource(built)
    count = source.manifest["recordings"]
    order = np.random.default_rng(0).permutation(count).tolist()
    shards = sorted(built.glob("*.arrow"))
    table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in shards])

    def ours(number: int) -> np.ndarray:
        frames = source.clip(number).frames
        assert frames is not None
        return frames if source.frames == "jpeg" else frames.copy()  # raw ones are read when they are used

    reads: dict[str, tuple[Callable[[int], Any], Iterable[int]]] = {
        "arrow_in_order": (table.__getitem__, range(count)),
        "in_order": (ours, range(count)),
        "arrow_at_random": (table.__getitem__, order),
        "at_random": (ours, order),
    }
    if source.frames == "jpeg":
        reads["pillow_at_random"] = (
            lambda number: [_pillow(data) for data in table[number]["frames"]],
            order,
        )
    _rate(ours, range(count))  # now the files are in memory
    rates = [{name: _rate(*read) for name, read in reads.items()} for _ in range(3)]
    numbers = {name: float(np.median([rate[name] for rate in rates])) for name in reads}
    before = _resident_mb()
    for _ in range(3):
        _rate(ours, order)
    return numbers | {"grown_mb": _resident_mb() - before}


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _resident_mb() -> float:
    """Memory of this process that is not mapped files."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def _epoch(folder: Path, count: int) -> dict[str, float]:
    """Seconds of a pass with gradients through Q-Formers and decoder, towers frozen: run, or kept on disk."""
    import torch

    from mllm.experiment import Model
    from mllm.media.recording import load_clip
    from mllm.models.build import build_model
    from mllm.models.feature_cache import FeatureCache, keep_features

    torch.manual_seed(0)
    model, processor = build_model(Model.model_validate(REALISTIC), ["What is seen? colours"] * 10)
    towers = tuple(model.model.towers.values())
    for tower in towers:
        tower.requires_grad_(False)
    spec = processor.spec
    conversations: list[list[Message]] = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        clip = load_clip(path, size=spec.image_size, choose=lambda seconds: spec.frame_times(seconds).ravel())
        assert clip.frames is not None
        assert clip.waveform is not None
        clip.frames[0, 0, 0, 0] = number  # copies of one video: each its own content
        clip.waveform[0] = number / 100
        user = [{"type": "video", "video": clip}, {"type": "text", "text": "What is seen?"}]
        conversations.append([{"role": "user", "content": user}, {"role": "assistant", "content": "colours"}])

    def epoch() -> float:
        begin = time.perf_counter()
        for conversation in conversations:
            model(**processor.collate([processor.encode(conversation)])).loss.backward()
        return time.perf_counter() - begin

    epoch()
    numbers = {"epoch_towers": epoch()}
    for tower in towers:
        keep_features(tower, FeatureCache(folder / "features"))
    epoch()
    return numbers | {"epoch_kept": epoch()}
