"""`mllm data check`: finds in advance what would make training fail.

Checks the rows (`check_rows.py`), then every recording once, in worker processes (`check_media.py`), then
whether recordings have what rows need (picture, sound, span), and overlap between splits. All errors are
collected; a recording that hangs or crashes a decoder costs one worker.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.check_media import LONGEST, MediaFacts, look
from data_prep.check_rows import Checked, Row, Severity, check_ids, read_rows
from data_prep.engine import Engine, ProcessDied, run
from mllm.errors import MediaError
from mllm.files import open_ordinary
from mllm.media.places import media_name
from mllm.media.recording import HOLD
from mllm.media.sources import MediaLimits, bound_memory
from mllm.records.shards import REFERENCE
from mllm.records.times import FORMS

CLOSE = 0.05  # s, by which a span may end after its recording


def check(
    files: Sequence[Path],
    workers: int | None = None,
    timeout: float = 60.0,
    engine: Engine = "local",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Checked:
    """Checks record files, each of them a split.

    Args:
        workers: processes that check recordings; None for one per core.
        timeout: seconds after which a recording counts as hung.
        engine: where recordings are checked.
        progress: wraps the recordings, given their number.

    Raises:
        RecordError: a file has no rows.
    """
    checked = Checked()
    for file in files:
        checked.rows += read_rows(file, checked)
    check_ids(checked)
    wanted = {key_of(*part): part for row in checked.rows for part in row.media()}
    present = {key: part for key, part in wanted.items() if _is_there(part[1])}
    for key, facts in progress(look_at_all(present, workers, timeout, engine), len(present)):
        checked.facts[key] = facts
    for row in checked.rows:
        for kind, path, options in row.media():
            _check_medium(row, kind, path, options, checked)
        _check_times(row, checked)
    _check_overlap(checked)
    order = {str(path): index for index, path in enumerate(files)}
    checked.findings.sort(key=lambda finding: (order[finding.file], finding.row))
    return checked


def _check_medium(row: Row, kind: str, path: str, options: dict[str, Any], checked: Checked) -> None:
    """Checks that a recording has what a row needs."""

    def add(severity: Severity, name: str, what: str) -> None:
        checked.add(severity, name, row, f"{_shown(path)}: {what}", media_name(path))

    if path.startswith(REFERENCE):
        return  # part of a built shard
    if "://" in path and not path.startswith("data:"):
        add("error", "not a file", f"{path} is not a file: download it first, then give its path")
        return
    facts = checked.facts.get(key_of(kind, path, options))
    if facts is None:
        checked.add("error", "not there", row, f"there is no {path}", path)
        return
    if facts.error:
        add("error", "cannot be read", facts.error.removeprefix(f"{path}: ").removeprefix("data: URI: "))
        return
    for severity, what in facts.problems:
        add(severity, "damaged" if severity == "error" else what, what)
    if kind in ("video", "image") and not facts.info.get("has_video"):
        add(
            "error",
            f"no picture for {kind}",
            f"asked about as {kind}, but there is no picture in it: say audio",
        )
    if kind == "audio" and not facts.info.get("has_audio"):
        add("error", "no sound for audio", "asked about as audio, but there is no sound in it")
    _check_span(kind, options, facts.info, add)


def _check_span(
    kind: str, options: dict[str, Any], info: dict[str, Any], add: Callable[[Severity, str, str], None]
) -> None:
    duration, start, end = info.get("duration", 0.0), options.get("start") or 0, options.get("end")
    if min(duration, duration if end is None else end) - start > LONGEST:
        add(
            "error", "too long", f"it lasts {duration:.0f} s, more than {LONGEST:.0f}: give 'start' and 'end'"
        )
    if info.get("is_image"):
        return
    if start and start >= duration:
        add("error", "span outside", f"the span begins at {start} s, it lasts {duration:.2f} s")
    elif ends_late(options, info):
        add("error", "span too long", f"the span ends at {end} s, it lasts {duration:.2f} s")
    what = "sound" if kind == "audio" else "picture"
    until = info.get("sound_ends", duration) if kind == "audio" else info.get("picture_ends", duration) + HOLD
    if start and until <= start < duration:
        add("warning", f"no {what} in the span", f"its {what} ends before {start} s, where the span begins")


def _check_times(row: Row, checked: Checked) -> None:
    """Checks that the words and spans of a record lie within its recording, or the span of it used."""
    media = [part for part in row.media() if part[0] != "image"]
    facts = checked.facts.get(key_of(*media[0])) if len(media) == 1 else None
    if row.record is None or facts is None or facts.error:
        return
    _, path, options = media[0]
    duration, start = facts.info.get("duration", 0.0), options.get("start") or 0
    length = min(duration, options.get("end") or duration) - start
    if length <= 0:
        return  # reported for the span itself
    for key in FORMS:
        for number, (begins, ends, *_) in enumerate(row.record.get(key) or (), start=1):
            outside = begins >= length
            if not outside and ends <= length + CLOSE:
                continue
            whole = "cut" if "start" in options or "end" in options else "recording"
            what = f"{_shown(path)}: {key} {number} lasts from {begins:g} to {ends:g} s, the {whole} "
            what += f"{length:.2f} s: times count from where it begins"
            checked.add("error" if outside else "warning", f"{key} outside", row, what, media_name(path))
            break


def ends_late(options: dict[str, Any], info: dict[str, Any]) -> bool:
    """Whether a span ends after its recording, beyond rounding errors."""
    return (
        not info.get("is_image")
        and options.get("end") is not None
        and options["end"] > info["duration"] + CLOSE
    )


def _check_overlap(checked: Checked) -> None:
    """Finds recordings used in more than one file, by path or by content."""
    if len({row.file for row in checked.rows}) < 2:
        return
    order = {file: index for index, file in enumerate(dict.fromkeys(row.file for row in checked.rows))}
    uses: dict[str, dict[Path, Row]] = defaultdict(dict)  # path -> record file -> first row that uses it
    for row in checked.rows:
        for _, path, options in row.media():
            for name in (path, options.get("audio")):
                if name and _is_there(name):
                    uses[name].setdefault(row.file, row)
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in uses:
        sizes[_size(path)].append(path)
    contents: dict[str, list[str]] = defaultdict(list)
    for size, paths in sizes.items():
        same_size = size and len({file for path in paths for file in uses[path]}) > 1
        for path in paths:
            contents[_digest(path) if same_size and len(paths) > 1 else path].append(path)
    for paths in contents.values():
        rows: dict[Path, Row] = {}
        shared: dict[Path, set[str]] = defaultdict(set)
        for path in paths:
            for file, row in uses[path].items():
                rows.setdefault(file, row)
                shared[file].add(path)
        first, *others = sorted(rows.values(), key=lambda row: order[row.file])
        for row in others:
            what = f"{_shown(paths[0])} is asked about in {first.file}, too (row {first.number})"
            checked.add("error", "in two splits", row, what, media_name(paths[0]))
        if others:
            checked.shared.append(dict(shared))


def look_at_all(
    media: dict[str, tuple[str, str, dict[str, Any]]],
    workers: int | None,
    timeout: float,
    engine: Engine = "local",
    look: Callable[[str, str | None], MediaFacts] = look,
) -> Iterator[tuple[str, MediaFacts]]:
    """Yields the facts of every recording as they arrive; a worker that hangs or dies is replaced."""
    items = {key: (look, path, options.get("audio")) for key, (_, path, options) in media.items()}
    for outcome in run(look_within, items, engine, workers, timeout):
        if isinstance(outcome.error, TimeoutError):
            hung = f"decoding hung for {timeout:g} s: encode it again or drop it"
            yield outcome.key, MediaFacts(hung)
        elif isinstance(outcome.error, ProcessDied):
            yield outcome.key, MediaFacts("it crashed the decoder: encode it again or drop it")
        elif isinstance(outcome.error, MemoryError):
            yield outcome.key, MediaFacts("decoding it takes too much memory: encode it again or drop it")
        elif isinstance(outcome.error, Exception):  # of a library, caused by this recording
            reason = " ".join(f"{type(outcome.error).__name__}: {outcome.error}".split())
            yield outcome.key, MediaFacts(f"it fails ({reason}): encode it again or drop it")
        else:
            yield outcome.key, outcome.result()


def look_within(
    look: Callable[[str, str | None], MediaFacts],
    path: str,
    audio: str | None,
    most_bytes: float | None = MediaLimits().max_decode_bytes,
) -> MediaFacts:
    """Checks a recording, limiting the memory of this process to `most_bytes` from now on."""
    bound_memory(most_bytes)
    return look(path, audio)


def key_of(kind: str, path: str, options: dict[str, Any]) -> str:
    """The key of a recording, with its separate sound, in `Checked.facts`."""
    return "\n".join(media_name(source) for source in (path, options.get("audio")) if source)


def _shown(path: str) -> str:
    return media_name(path) if path.startswith("data:") else Path(path).name or path


def _is_there(path: str) -> bool:
    """Whether the recording exists; one without read permission counts, and `look` reports it."""
    if path.startswith("data:"):
        return True
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _size(path: str) -> int:
    """Size in bytes of a file, or of the files in a folder; 0 if unknown."""
    try:
        return sum(file.stat().st_size for file in _files(path))
    except OSError:
        return 0


def _digest(path: str) -> str:
    """A digest of a file's content, or of the names and contents in a folder; the path if unreadable."""
    digest = hashlib.sha256()
    try:
        for file in _files(path):
            with open_ordinary(file) as content:
                digest.update(b"" if file == Path(path) else file.name.encode())
                digest.update(hashlib.file_digest(content, "sha256").digest())
    except (OSError, MediaError):
        return path
    return digest.hexdigest()


def _files(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    return sorted(file for file in Path(path).iterdir() if file.is_file())
