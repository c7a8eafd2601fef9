"""`mllm data build`: decodes recordings once, into shards that training memory-maps.

A shard holds a fixed range of the recordings; one worker writes it to a temporary file and renames it. So the
folder contains only complete shards at any time, the same command resumes with the missing ones, and the
result depends neither on interruptions nor on the number of workers.
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

SAMPLED = 16  # maximum number of recordings decoded to estimate the disk space
ONE_IN = 64  # fraction of the recordings decoded for the estimate
SPARE = 1.1  # free disk space required, as a multiple of the estimate
ROW_BYTES = 2_000  # of a row without frames and sound
SHARDS = 32  # minimum number of shards, to share the work and show progress,
LEAST = 8  # unless they would hold fewer recordings than this
PARTIAL = (
    "shard-*.part",
    f"{MANIFEST}.*.part",
    f"{RECORDS}.*.part",
)  # incomplete files of an interrupted build

Medium = tuple[str, str, dict[str, Any]]  # kind, path, options


@dataclass(frozen=True)
class Storage:
    """How recordings are stored.

    Attributes:
        windows: how they are split into windows; only the frames of these are stored, at their size.
        frames: as JPEG of this `quality` (1 to 100), or raw.
    """

    windows: WindowSpec
    frames: FrameFormat = "jpeg"
    quality: int = 90


@dataclass(frozen=True)
class Plan:
    """What a folder is built from.

    Attributes:
        stretches: the recordings of each shard; another span or separate sound counts as another recording.
        records: with `shard://<number>` in place of recordings.
    """

    stretches: list[list[Medium]]
    records: list[Record]
    storage: Storage

    def manifest(self, source: str) -> dict[str, Any]:
        """The content of build.json; equal for equal plans over unchanged recordings."""
        listed = hashlib.sha256()
        for stretch in self.stretches:
            listed.update(json.dumps([[*medium, *_traces(medium)] for medium in stretch]).encode())
        return {
            "version": VERSION,
            "source": source,
            "recordings": sum(map(len, self.stretches)),
            "rows": [len(stretch) for stretch in self.stretches],
            "frames": self.storage.frames,
            "quality": self.storage.quality if self.storage.frames == "jpeg" else None,
            "windows": asdict(self.storage.windows),
            "listed": listed.hexdigest(),
        }


def make_plan(path: Path, storage: Storage, shard_size: int) -> Plan:
    """Plans the build of a record file, with at most `shard_size` recordings in a shard.

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
    return Plan(stretches, records, storage)


def build(
    plan: Plan,
    source: str,
    out: Path,
    workers: int | None = None,
    restart: bool = False,
    engine: Engine = "local",
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]] = lambda items, done, total: items,
    notify: Callable[[str], None] = lambda text: None,
) -> int:
    """Builds a folder, or resumes its build; returns the number of recordings decoded now.

    Args:
        source: what the folder is built from, for display.
        engine: where recordings are decoded.
        progress: wraps the decoded recordings, given how many were done before and the total.
        notify: receives one line about the work ahead and the disk space it needs.

    Raises:
        ConfigError: the folder was built from something else, or the disk is too small.
        MediaError: a recording cannot be read; finished shards are kept.
        MllmError: another build is running in the folder, or it is not writable.
    """
    with alone_in(out, "mllm data build"):
        return _build(plan, source, out, workers, restart, engine, progress, notify)


def _build(
    plan: Plan,
    source: str,
    out: Path,
    workers: int | None,
    restart: bool,
    engine: Engine,
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]],
    notify: Callable[[str], None],
) -> int:
    manifest = plan.manifest(source)
    written = out / MANIFEST
    _remove(out, *PARTIAL)
    if any(out.iterdir()) and not written.is_file():
        raise ConfigError(f"{out} holds something else: give another --out")
    if restart:
        _remove(out, RECORDS, "shard-*.arrow", MANIFEST)  # the manifest last, since it marks the rest as ours
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
        needed = _require_room(
            [medium for stretch in missing.values() for medium in stretch], plan.storage, out
        )
    if needed:
        notify(f"{out}: {to_do} recordings to decode, about {_format_size(needed)}")
    write_atomically(written, json.dumps(manifest, indent=1))
    total = manifest["recordings"]
    items = {path: (path, stretch, plan.storage) for path, stretch in missing.items()}
    try:
        with _remedy(source), closing(run(build_shard, items, engine, workers, isolated=False)) as outcomes:
            decoded = sum(progress((outcome.result() for outcome in outcomes), total - to_do, total))
    finally:
        _remove(out, *PARTIAL)  # of stopped workers
    write_records(out / RECORDS, plan.records)
    return decoded


@contextmanager
def _remedy(source: str) -> Iterator[None]:
    """Adds to the error of an unreadable recording how to build without it."""
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


def build_shard(path: Path, stretch: Sequence[Medium], storage: Storage) -> int:
    """Decodes recordings into one shard, written atomically; returns their number.

    Raises:
        MediaError: a recording cannot be read.
        MllmError: the disk is full, or the folder is not writable.
    """
    # A unique name, since workers may briefly outlive a killed build.
    partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        write_shard(partial, _rows(stretch, storage))
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


def _rows(media: Iterable[Medium], storage: Storage) -> Iterator[pa.RecordBatch]:
    """Yields a row for each recording; adjacent spans of one file share an open recording."""
    for (path, audio), spans in groupby(media, lambda medium: (medium[1], medium[2].get("audio"))):
        with open_recording(path, audio=audio, isolated=True) as recording:
            size = os.path.getsize(path) if os.path.isfile(path) else None
            for kind, _, options in spans:
                clip = recording.clip(
                    options.get("start"),
                    options.get("end"),
                    size=storage.windows.image_size,
                    choose=lambda duration: storage.windows.frame_times(duration).ravel(),
                    want_video=kind != "audio",
                    want_audio=kind != "image",
                )
                provenance = {"path": path[:1000], "bytes": size} | options
                yield to_row(clip, provenance, storage.frames, storage.quality)


def _require_room(media: Sequence[Medium], storage: Storage, out: Path) -> float:
    """Decodes a few recordings to estimate the size of all, in bytes.

    Raises:
        ConfigError: the disk has less free space.
    """
    if not media:
        return 0.0
    count = min(SAMPLED, max(-(-len(media) // ONE_IN), 4), len(media))
    sample = media[:: len(media) // count][:count]
    sizes = [row.nbytes + ROW_BYTES for row in _rows(sample, storage)]
    needed = sum(sizes) / len(sizes) * len(media) * SPARE
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(
            f"{out}: {len(media)} recordings need about {_format_size(needed)}, {_format_size(free)} are "
            "free: give another --out, or data.shards.frames=jpeg"
        )
    return needed


def _format_size(size: float) -> str:
    """Formats a number of bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _traces(medium: Medium) -> list[Any]:
    """Fingerprints of a recording and its separate sound, to detect changes."""
    _, path, options = medium
    return [_trace(source) for source in (path, options.get("audio")) if isinstance(source, str)]


def _trace(path: str) -> Any:
    """Size and time of the last change (ns) of a file, or of each file in a folder of frames."""
    try:
        if os.path.isdir(path):
            return sorted((entry.name, *_stamp(entry.stat())) for entry in os.scandir(path))
        return _stamp(os.stat(path))
    except OSError:  # decoding reports the error
        return None


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
