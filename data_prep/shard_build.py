"""`mllm data build`: recordings decoded once, into shards that training maps into memory.

A shard is a fixed stretch of the recordings, made by one worker, written beside its place and renamed. So the
folder holds whole shards at every moment, the same command goes on with those that are missing, and what
comes out does not depend on how often it was stopped, nor on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import parent_process
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from data_prep.engine import Engine, run
from mllm.errors import ConfigError, MediaError, MllmError
from mllm.files import alone_in, write_atomically
from mllm.media.recording import open_recording
from mllm.media.windows import WindowSpec
from mllm.records.conversation import MediaPart
from mllm.records.record import Record, read_records, write_records
from mllm.records.shards import (
    MANIFEST,
    RECORDS,
    REFERENCE,
    VERSION,
    FrameFormat,
    rows_in,
    shard_name,
    to_row,
    write_shard,
)

SAMPLED = 16  # recordings at most that the disk estimate is made from
ONE_IN = 64  # and one in so many, or the estimate would take longer than it is worth
SPARE = 1.1  # times the estimate must be free
ROW_BYTES = 2_000  # of a row beside frames and sound
SHARDS = 32  # that a build has at least, so that the work can be shared and its progress be seen,
LEAST = 8  # of at least so many recordings
PARTIAL = ("shard-*.part", f"{MANIFEST}.*.part", f"{RECORDS}.*.part")  # what a build leaves half-written

Medium = tuple[str, str, dict[str, Any]]  # kind, path, options


@dataclass(frozen=True)
class Form:
    """How recordings are kept.

    Attributes:
        windows: how they are cut; only frames that the windows need are kept, at their size.
        frames: as JPEG of this `quality` (1 to 100), or as they are.
    """

    windows: WindowSpec
    frames: FrameFormat = "jpeg"
    quality: int = 90


@dataclass(frozen=True)
class Plan:
    """What a folder is built from.

    Attributes:
        stretches: for each shard its recordings; a different span or separate sound is another recording.
        records: with `shard://<number>` in place of recordings.
    """

    stretches: list[list[Medium]]
    records: list[Record]
    form: Form

    def manifest(self, source: str) -> dict[str, Any]:
        """What build.json says; equal for equal plans over unchanged recordings."""
        listed = hashlib.sha256()
        for stretch in self.stretches:
            listed.update(json.dumps([[*medium, *_traces(medium)] for medium in stretch]).encode())
        return {
            "version": VERSION,
            "source": source,
            "recordings": sum(map(len, self.stretches)),
            "rows": [len(stretch) for stretch in self.stretches],
            "frames": self.form.frames,
            "quality": self.form.quality if self.form.frames == "jpeg" else None,
            "windows": asdict(self.form.windows),
            "listed": listed.hexdigest(),
        }


def make_plan(path: Path, form: Form, shard_size: int) -> Plan:
    """The plan for a record file, with at most that many recordings in a shard.

    Raises:
        RecordError: a bad row.
    """
    numbers: dict[str, int] = {}
    media: list[Medium] = []
    records = []

    def numbered(part: MediaPart) -> MediaPart:
        medium = part.modality, part.source, part.options
        key = json.dumps(medium, sort_keys=True)
        if key not in numbers:
            numbers[key] = len(media)
            media.append(medium)
        return part.of(f"{REFERENCE}{numbers[key]}")

    for record in read_records(path):
        records.append(record | {"messages": record["messages"].with_media(numbered)})
    shard_size = min(shard_size, max(LEAST, -(-len(media) // SHARDS)))
    stretches = [media[first : first + shard_size] for first in range(0, len(media), shard_size)]
    return Plan(stretches, records, form)


def build(
    plan: Plan,
    source: str,
    out: Path,
    workers: int | None = None,
    restart: bool = False,
    engine: Engine = "local",
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]] = lambda items, done, total: items,
    tell: Callable[[str], None] = lambda text: None,
) -> int:
    """Builds a folder, or goes on with it; returns the number of recordings that were decoded now.

    Args:
        source: what the folder was built from, for people.
        engine: where recordings are decoded.
        progress: wraps the recordings as they come, given how many were done before and how many there are.
        tell: is given what is about to be done, and how much disk it will take.

    Raises:
        ConfigError: the folder was built from something else, or the disk is too small.
        MediaError: a recording that cannot be read; shards that are done stay.
        MllmError: another build works in the folder, or it cannot be written.
    """
    with alone_in(out, "mllm data build"):
        return _build(plan, source, out, workers, restart, engine, progress, tell)


def _build(
    plan: Plan,
    source: str,
    out: Path,
    workers: int | None,
    restart: bool,
    engine: Engine,
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]],
    tell: Callable[[str], None],
) -> int:
    manifest = plan.manifest(source)
    written = out / MANIFEST
    _remove(out, *PARTIAL)
    if any(out.iterdir()) and not written.is_file():
        raise ConfigError(f"{out} holds something else: give another --out")
    if restart:
        _remove(out, RECORDS, "shard-*.arrow", MANIFEST)  # last what tells that the rest is ours
    if written.is_file():
        before = json.loads(written.read_text(encoding="utf-8"))
        changed = [key for key in manifest if key != "source" and before.get(key) != manifest[key]]
        if changed:
            raise ConfigError(
                f"{out} was built from something else ({', '.join(changed)} differ): give another --out, or "
                "build it afresh with --restart"
            )
    missing = {
        out / shard_name(number): stretch
        for number, stretch in enumerate(plan.stretches)
        if rows_in(out / shard_name(number)) != len(stretch)
    }
    to_do = sum(map(len, missing.values()))
    with _remedy(source):
        needed = _require_room([medium for stretch in missing.values() for medium in stretch], plan.form, out)
    if needed:
        tell(f"{out}: {to_do} recordings to decode, about {_told(needed)}")
    write_atomically(written, json.dumps(manifest, indent=1))
    total = manifest["recordings"]
    items = {path: (path, stretch, plan.form) for path, stretch in missing.items()}
    try:
        with _remedy(source), closing(run(build_shard, items, engine, workers, isolated=False)) as outcomes:
            decoded = sum(progress((outcome.result() for outcome in outcomes), total - to_do, total))
    finally:
        _remove(out, *PARTIAL)  # of workers that were stopped
    write_records(out / RECORDS, plan.records)
    return decoded


@contextmanager
def _remedy(source: str) -> Iterator[None]:
    """Says of a recording that cannot be read how to build without it."""
    try:
        yield
    except MediaError as error:
        raise MediaError(
            f"{error}; `mllm data check {source} --fix` finds all such and writes a file without them"
        ) from None


def _remove(out: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def build_shard(path: Path, stretch: Sequence[Medium], form: Form) -> int:
    """Decodes recordings into one shard, whole or not at all; returns how many there are.

    Raises:
        MediaError: a recording that cannot be read.
        MllmError: the disk is full, or the folder not writable.
    """
    # A name of its own: the workers of a killed build may live a moment longer than the build.
    partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        write_shard(partial, _rows(stretch, form))
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        build_process = parent_process()
        if build_process is not None and not build_process.is_alive():
            raise MllmError(f"{path}: its build was killed: the next one makes it again, perhaps otherwise")
        os.replace(partial, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own text is longer
        raise MllmError(
            f"{path}: cannot be written ({reason}): shards that are done stay, and the same "
            "command goes on with them"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return len(stretch)


def _rows(media: Iterable[Medium], form: Form) -> Iterator[pa.RecordBatch]:
    """A row for each; neighbouring spans of one file are read from one open recording."""
    for (path, audio), spans in groupby(media, lambda medium: (medium[1], medium[2].get("audio"))):
        with open_recording(path, audio=audio, isolated=True) as recording:
            size = os.path.getsize(path) if os.path.isfile(path) else None
            for kind, _, options in spans:
                clip = recording.clip(
                    options.get("start"),
                    options.get("end"),
                    size=form.windows.image_size,
                    choose=lambda duration: form.windows.frame_times(duration).ravel(),
                    want_video=kind != "audio",
                    want_audio=kind != "image",
                )
                provenance = {"path": path[:1000], "bytes": size} | options
                yield to_row(clip, provenance, form.frames, form.quality)


def _require_room(media: Sequence[Medium], form: Form, out: Path) -> float:
    """Decodes a few recordings to see how large all will be, in bytes.

    Raises:
        ConfigError: the disk has less.
    """
    if not media:
        return 0.0
    count = min(SAMPLED, max(-(-len(media) // ONE_IN), 4), len(media))
    sample = media[:: len(media) // count][:count]
    sizes = [row.nbytes + ROW_BYTES for row in _rows(sample, form)]
    needed = sum(sizes) / len(sizes) * len(media) * SPARE
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(
            f"{out}: {len(media)} recordings need about {_told(needed)}, {_told(free)} are free: give another"
            " --out, or data.shards.frames=jpeg"
        )
    return needed


def _told(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _traces(medium: Medium) -> list[Any]:
    """What tells whether a recording and its separate sound are still the same."""
    _, path, options = medium
    return [_trace(source) for source in (path, options.get("audio")) if isinstance(source, str)]


def _trace(path: str) -> Any:
    """Size and time of the last change (ns) of a file, or of each file in a folder of frames."""
    try:
        if os.path.isdir(path):
            return sorted((entry.name, *_stamp(entry.stat())) for entry in os.scandir(path))
        return _stamp(os.stat(path))
    except OSError:  # decoding says what is wrong with it
        return None


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
