"""`make fuzz`: damaged recordings, read in every way; none may end a process or take too long.

python -m tests.fuzz --mutants 20000 --seed 1 --workers 2 --only mp4

What does is kept in runs/fuzz, as the file itself, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from mllm.errors import MediaError
from mllm.media import decode_pool
from mllm.media.decode_pool import DecodePool, WorkerLost
from mllm.media.recording import load_clip
from mllm.media.sources import MediaLimits
from tests.fuzz.corpus import PICTURES, corpus
from tests.fuzz.mutants import mutant

WAYS = ("bytes", "path", "data", "folder")
SECONDS = 20.0  # that one may take; a whole one of these takes 0.05
KEPT = Path("runs/fuzz")


@dataclass
class Outcome:
    """What became of the mutants: how many gave a clip, were refused, or were lost, by recording."""

    clips: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    slowest: tuple[float, str] = (0.0, "none")


def fuzz(
    mutants: int,
    seed: int,
    workers: int,
    only: str = "",
    files: Sequence[Path] = (),
    keep: Path | None = KEPT,
) -> Outcome:
    """Reads that many mutants.

    Args:
        only: chooses recordings of the corpus by a part of their name.
        files: recordings to damage in place of the corpus.
    """
    whole = {file.name: file.read_bytes() for file in files} or corpus()
    recordings = {name: data for name, data in whole.items() if only in name}
    jobs = _jobs(recordings, mutants, seed)
    outcome, lock = Outcome(), threading.Lock()
    pool = DecodePool(side_by_side=workers)
    shared, decode_pool._pool = decode_pool._pool, pool
    try:
        with tempfile.TemporaryDirectory() as folder:
            threads = [
                threading.Thread(target=_work, args=(jobs, outcome, lock, Path(folder) / str(number), keep))
                for number in range(workers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        decode_pool._pool = shared
        pool.close()
    return outcome


def _jobs(recordings: dict[str, bytes], mutants: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(label, way, damaged bytes), every recording in turn."""
    names = sorted(recordings)
    for number in range(mutants):
        name = names[number % len(names)]
        dice = random.Random(f"{seed} {number} {crc32(name.encode())}")
        yield f"{number}-{name}", dice.choice(WAYS), mutant(recordings[name], dice)


def _work(
    jobs: Iterator[Any], outcome: Outcome, lock: threading.Lock, folder: Path, keep: Path | None
) -> None:
    folder.mkdir()
    while True:
        with lock:
            job = next(jobs, None)
        if job is None:
            return
        label, way, data = job
        name = label.partition("-")[2]
        begin = time.monotonic()
        try:
            _read(way, name, data, folder)
            result = "clip"
        except WorkerLost as error:
            result = str(error)
        except MediaError:
            result = "refused"
        except Exception as error:  # a traceback is lost to a user, too
            result = " ".join(str(error).split())[-300:]
        took = time.monotonic() - begin
        with lock:
            outcome.slowest = max(outcome.slowest, (took, f"{label} as {way}"))
            if result == "clip":
                outcome.clips[name] += 1
            elif result == "refused":
                outcome.refused[name] += 1
            else:
                outcome.lost[name].append(f"{label} as {way}: {result}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / label).write_bytes(data)


def _read(way: str, name: str, data: bytes, folder: Path) -> None:
    source: Any = data
    if way == "data":
        source = "data:;base64," + base64.b64encode(data).decode()
    elif way == "path":
        source = folder / name
        source.write_bytes(data)
    elif way == "folder":  # of frames with their sound, one of which is the damaged one
        source = folder / "frames"
        source.mkdir(exist_ok=True)
        for file in source.iterdir():
            file.unlink()
        suffix = Path(name).suffix
        (source / ("frame0" + suffix if name in PICTURES else "sound.wav")).write_bytes(data)
        if name not in PICTURES:
            (source / "frame0.bmp").write_bytes(_FRAME)
    limits = MediaLimits(max_decode_seconds=SECONDS)
    times = np.linspace(0.0, 0.6, 4)
    load_clip(source, size=32, choose=lambda duration: times, limits=limits, isolated=True)


def _frame() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "BMP")
    return buffer.getvalue()


_FRAME = _frame()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of a recording's name")
    parser.add_argument("files", type=Path, nargs="*", help="recordings to damage in place of the corpus")
    options = parser.parse_args()
    begin = time.monotonic()
    outcome = fuzz(options.mutants, options.seed, options.workers, options.only, options.files)
    names = sorted(set(outcome.clips) | set(outcome.refused) | set(outcome.lost))
    print(f"{'recording':<18}{'clips':>7}{'refused':>9}{'lost':>6}")
    for name in names:
        lost = len(outcome.lost.get(name, []))
        print(f"{name:<18}{outcome.clips[name]:>7}{outcome.refused[name]:>9}{lost:>6}")
    lost = sum(map(len, outcome.lost.values()))
    counts = f"{outcome.clips.total()} gave a clip, {outcome.refused.total()} were refused, {lost} were lost"
    print(f"{options.mutants} mutants in {time.monotonic() - begin:.0f} s: {counts}")
    print(f"slowest: {outcome.slowest[0]:.2f} s, {outcome.slowest[1]}")
    for lines in outcome.lost.values():
        print(*lines, sep="\n")
    if lost:
        print(f"kept in {KEPT}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
