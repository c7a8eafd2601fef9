"""Writes the world as media files and records, as if it had been recorded and annotated."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.world import describe, render, sound
from data_prep.world.scene import Episode, Scene
from data_prep.world.source import WorldSource, captions_of, labels_of, media_part
from mllm.errors import MllmError
from mllm.media.recording import SAMPLE_RATE
from mllm.records.record import write_records

FRAMES_PER_SECOND = 8
SIZE = 128  # px
MEDIA = "clips"  # folder of the recordings, beside the records


@dataclass(frozen=True)
class Written:
    """What `write_world` wrote: number of recordings and records, and how many records of each task."""

    recordings: int
    records: int
    tasks: dict[str, int]


def write_world(
    out: Path | str,
    source: WorldSource,
    *,
    workers: int | None = None,
    progress: Callable[[Iterator], Iterator] = iter,
) -> Written:
    """Writes every scene of `source` into the new folder `out`.

    `clips/` gets the recordings (mp4 with H.264 and AAC, without a sound track where silent; wav; png),
    `records.jsonl` the questions and `pairs.jsonl` the captions. The folder appears when all of it is there.

    Args:
        workers: processes; one for each core when None, none beside this one when 1.
        progress: wraps the iterator over scenes, to show how far it is.

    Raises:
        MllmError: `out` exists and is not an empty folder.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MllmError(f"{out} exists already: give --out a new folder, or remove that one first")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.tmp-"))
    try:
        (folder / MEDIA).mkdir()
        scenes = list(progress(_write_all(source, folder, workers or os.cpu_count() or 1)))
        records = [record for rows, _ in scenes for record in rows]
        pairs = [pair for _, rows in scenes for pair in rows]
        write_records(folder / "records.jsonl", records)
        write_records(folder / "pairs.jsonl", pairs)
        folder.chmod(0o755)
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Written(len(pairs), len(records), dict(Counter(record["task"] for record in records)))


def write_scene(source: WorldSource, folder: Path, index: int) -> tuple[list[dict], list[dict]]:
    """Writes the recordings of one scene and returns its records and caption rows, media paths relative to
    `folder`."""
    episode = source.episode(index)
    paths = []
    for letter, scene in zip(_letters(episode), episode.scenes, strict=True):
        ending = {"audio": "wav", "image": "png"}.get(scene.form, "mp4")
        path = f"{MEDIA}/{index:06d}{letter}.{ending}"
        write_media(scene, folder / path)
        paths.append(path)
    pairs = [
        _pair(source, index, *item) for item in zip(_letters(episode), episode.scenes, paths, strict=True)
    ]
    return source.about(episode, paths), pairs


def write_media(scene: Scene, path: Path) -> None:
    """One recording as a file: mp4, wav (no picture) or png (image)."""
    if scene.form == "image":
        from PIL import Image

        Image.fromarray(render.render(scene, np.zeros(1), SIZE)[0]).save(path)
    elif scene.form == "audio":
        import soundfile

        soundfile.write(path, sound.play(scene), SAMPLE_RATE, subtype="PCM_16")
    else:
        times = np.arange(round(scene.duration * FRAMES_PER_SECOND)) / FRAMES_PER_SECOND
        write_mp4(path, render.render(scene, times, SIZE), sound.play(scene) if scene.has_sound else None)


def write_mp4(path: Path, frames: np.ndarray, waveform: np.ndarray | None) -> None:
    """H.264 of frames uint8 [frames, height, width, 3] at 8 per second, and AAC of a waveform at 16 kHz."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream(
            "libx264", rate=FRAMES_PER_SECOND, options={"crf": "14", "threads": "1"}
        )
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt = "yuv420p"
        track = None
        if waveform is not None:
            track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            track.bit_rate = 64_000
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if track is not None and waveform is not None:
            heard = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = SAMPLE_RATE, 0
            container.mux(track.encode(heard))
            container.mux(track.encode())


def _write_all(source: WorldSource, folder: Path, workers: int) -> Iterator[tuple[list[dict], list[dict]]]:
    write = partial(write_scene, source, folder)
    if workers == 1:
        yield from map(write, range(len(source)))
        return
    # Fresh processes: a copy of this one might copy a lock that another thread of it holds.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(write, range(len(source)), chunksize=8)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _letters(episode: Episode) -> Iterator[str]:
    """Endings of file names where an episode has several recordings."""
    return (
        islice(iter("ab"), len(episode.scenes))
        if len(episode.scenes) > 1
        else iter([""] * len(episode.scenes))
    )


def _pair(source: WorldSource, index: int, letter: str, scene: Scene, path: str) -> dict[str, Any]:
    phrasings = [captions_of(scene, phrasing) for phrasing in range(describe.PHRASINGS)]
    captions = {
        key: list(dict.fromkeys(phrasing[key] for phrasing in phrasings if phrasing[key]))
        for key in phrasings[0]
    }
    return {
        "id": f"world-{source.split}-{source.seed}-{index}{letter}-captions",
        "messages": [{"role": "user", "content": [media_part(scene, path)]}],
        "task": "caption",
        "source": source.name,
        "captions": captions,
        "labels": labels_of(scene),
    }
