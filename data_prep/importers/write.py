"""Runs an import: writes records.jsonl, held_out.jsonl if requested, and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.importers import Importer, Job, Record, find_importer
from data_prep.importers.columns import parse_columns
from data_prep.importers.encodings import require_encoding
from data_prep.importers.folder import MediaFolder
from data_prep.importers.job import STRETCH, TEXTS
from mllm.errors import ConfigError, MllmError, RecordError
from mllm.files import write_atomically
from mllm.media.sources import walk_folders
from mllm.records.conversation import Conversation
from mllm.records.record import validate_record, write_records

SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *TEXTS}
Groups = dict[bytes, list[str]]  # recording -> its records as JSON, which takes less memory than objects
TRAIN, HELD_OUT, REPORT = "records.jsonl", "held_out.jsonl", "import.json"


@dataclass
class Report:
    """What an import wrote, left out and noted.

    Attributes:
        media: folder searched for recordings.
        missing: recordings that were not found in it.
    """

    name: str
    annotations: list[str]
    media: str | None = None
    records: int = 0
    held_out: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def import_records(
    name: str,
    annotations: Sequence[Path],
    media: Path | None,
    out: Path,
    localised: bool = False,
    held_out: Mapping[str, set[str]] | None = None,
    encoding: str | None = None,
    columns: Sequence[str] = (),
    stretch: float = STRETCH,
) -> Report:
    """Imports one data set into `out`.

    Args:
        annotations: files, or folders of them.
        media: folder of the recordings; by default that of the annotations if the importer says so, otherwise
            paths in `out` are not checked.
        localised: use the annotated span of a video.
        held_out: label -> values; records that match every label go into held_out.jsonl.
        encoding: of annotation files that are not in UTF-8; by default detected, if that is certain.
        columns: roles of columns, as in "file=clip_path,answer=label".
        stretch: maximum length (s) of the records of a timed transcript.

    Raises:
        ConfigError: there is no such importer or encoding, or no record to hold out.
        RecordError: a file has no valid row or is not read by the importer, or there are no records at all.
    """
    importer = find_importer(name)
    if encoding:
        require_encoding(encoding)
    out = out.absolute()
    if media is None and importer.beside and annotations:
        media = annotations[0] if annotations[0].is_dir() else annotations[0].parent
    recordings = MediaFolder(media.absolute() if media else None)
    files = _files(annotations, recordings.pass_over, importer.files)
    job = Job(name, files, recordings, localised, encoding)
    job.columns = parse_columns(columns, importer.roles, name)
    job.stretch = stretch
    kept: Groups = {}
    apart: Groups = {}
    for record in _distinct(job, _checked(importer, job, out)):
        group = apart if held_out and _matches(record, held_out) else kept
        group.setdefault(_recording(record), []).append(json.dumps(record))
    if not kept and not apart and job.first_odd:
        raise next(iter(job.first_odd.values()))
    job.require_some_fine()
    _note_unread(job, annotations)
    _require_records(job, kept, apart, held_out)
    report = Report(name, [str(path) for path in annotations], str(media) if media else None)
    _write(job, kept, apart if held_out else None, out, report)
    return report


def _require_records(job: Job, kept: Groups, apart: Groups, held_out: Mapping[str, set[str]] | None) -> None:
    if not kept and not apart:
        read = f" in {', '.join(file.name for file in job.files[:3])}" if job.files else ""
        reasons = "".join(f"; {count} {reason}" for reason, count in job.left_out.items())
        raise RecordError(
            f"{job.name}: no records{read}{reasons}: give --annotations its files, or --media its recordings "
            "(`mllm data formats`)"
        )
    if held_out and not (kept and apart):
        wanted = " and ".join(f"{key}={','.join(sorted(values))}" for key, values in held_out.items())
        raise ConfigError(f"--held-out {wanted} takes {'all' if apart else 'none'} of the records")


def _write(job: Job, kept: Groups, apart: Groups | None, out: Path, report: Report) -> None:
    """Writes the record files and the report, which it completes; `apart` is None if nothing is held out."""
    report.records = write_records(out / TRAIN, _together(kept), checked=True)
    if apart is not None:
        report.held_out = write_records(out / HELD_OUT, _together(apart), checked=True)
    elif _held_out_before(out):
        (out / HELD_OUT).unlink(missing_ok=True)
    if job.media.elsewhere:
        job.noted["recording found in another folder than the one named"] = len(job.media.elsewhere)
    for path, why in list(job.media.passed_over.items())[:1]:
        job.noted[f"folder passed over, such as {path} ({why})"] = len(job.media.passed_over)
    report.left_out, report.noted = dict(job.left_out), dict(job.noted)
    report.missing = list(job.media.missing)
    write_atomically(out / REPORT, json.dumps(asdict(report), indent=1, ensure_ascii=False))


def _held_out_before(out: Path) -> bool:
    """Whether an earlier import into this folder wrote held_out.jsonl."""
    try:
        return bool(json.loads((out / REPORT).read_bytes())["held_out"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def parse_held_out(texts: Sequence[str]) -> dict[str, set[str]]:
    """Parses 'actor=17-20' or 'session=1,5' into label -> values.

    Raises:
        ConfigError: the syntax is wrong.
    """
    held_out: dict[str, set[str]] = {}
    for text in texts:
        key, found, values = text.partition("=")
        if not (key and found and values):
            raise ConfigError(f"--held-out {text}: write LABEL=VALUES, such as actor=17-20 or session=5")
        chosen = held_out.setdefault(key, set())
        for value in values.split(","):
            first, dash, last = value.partition("-")
            if dash and first.isdigit() and last.isdigit():
                numbers = range(int(first), int(last) + 1)
                chosen.update(str(number).zfill(len(first)) for number in numbers)  # 03-10 is 03 … 10
            else:
                chosen.add(value)
    return held_out


def _matches(record: Record, held_out: Mapping[str, set[str]]) -> bool:
    labels: Mapping[str, Any] = record.get("labels") or {}
    for key, values in held_out.items():
        if key not in labels:
            has = ", ".join(labels) or "none"
            raise ConfigError(f"--held-out {key}: record {record['id']} has no such label (it has {has})")
        if str(labels[key]) not in values:
            return False
    return True


def _recording(record: Record) -> bytes:
    return _digest(record["messages"].media or record["id"])


def _together(groups: Groups) -> Iterator[Record]:
    """Yields records grouped by recording, so that training reads each recording once."""
    for group in groups.values():
        for record in map(json.loads, group):
            yield record | {"messages": Conversation.restored(record["messages"])}


def _distinct(job: Job, records: Iterator[Record]) -> Iterator[Record]:
    """Drops duplicate questions; different questions with the same id are numbered."""
    seen: dict[str, bytes] = {}  # id -> question
    for record in records:
        id, copies = record["id"], 1
        question = _digest([turn for turn in record["messages"] if turn.role == "user"])
        while seen.get(record["id"], question) != question:
            copies += 1
            record["id"] = f"{id}-{copies}"
        if record["id"] in seen:
            job.left_out["id and question came before"] += 1
            continue
        if copies > 1:
            job.noted["id came before with another question: numbered"] += 1
        seen[record["id"]] = question
        yield record


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).digest()


def _checked(importer: Importer, job: Job, out: Path) -> Iterator[Record]:
    """Yields the valid records of an importer.

    Raises:
        RecordError: a file that the importer reads beside its rows is malformed.
    """
    try:
        for record in importer.records(job):
            with job.or_left_out():
                if reason := _untrainable(record):
                    job.left_out[reason] += 1
                    continue
                yield validate_record(record, job.where or job.name, out, media_must_exist=False)
    except MllmError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        last = f"{job.where}: " if job.where else ""
        raise RecordError(
            f"{last}not as {job.name} writes it ({type(error).__name__}: {error}): see `mllm data formats`"
        ) from error


def _untrainable(record: Record) -> str | None:
    """Why a record cannot be trained on and is left out; None if it can."""
    turns = record["messages"]
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    if any(turn["role"] != ("user", "assistant")[index % 2] for index, turn in enumerate(spoken)):
        return "turns that do not alternate"
    if any(not "".join(_words(turn)).strip() for turn in spoken):
        return "empty question or answer"
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half a character in its text"
    return None


def _words(turn: Mapping[str, Any]) -> Iterator[str]:
    """Yields the texts of a turn and the types of its media."""
    for part in [turn["content"]] if isinstance(turn["content"], str) else turn["content"]:
        yield part if isinstance(part, str) else part.get("text", part["type"])


def _note_unread(job: Job, annotations: Sequence[Path]) -> None:
    """Notes annotation files that the importer did not read.

    Raises:
        RecordError: the user named one of them.
    """
    unread = [file for file in job.files if file not in job.opened]
    for file in unread:
        if file in annotations:
            raise RecordError(
                f"{file}: {job.name} reads no such file: leave it out (see `mllm data formats`)"
            )
    if unread:
        job.noted[f"file that {job.name} does not read, such as {unread[0].name}"] = len(unread)


def _files(
    annotations: Sequence[Path], passed_over: Callable[[Path, str], None], more: Sequence[str] = ()
) -> list[Path]:
    """Lists the given files and all annotation files of the given folders.

    Args:
        more: names of annotation files without a telling suffix.

    Raises:
        RecordError: a path does not exist.
    """
    files: list[Path] = []
    for path in annotations:
        if not path.exists():
            raise RecordError(f"{path}: there is no such annotation file: check its path")
        if path.is_dir():
            found = (folder / name for folder, names in walk_folders(path, passed_over) for name in names)
            files += sorted(file for file in found if file.suffix.lower() in SUFFIXES or file.name in more)
        else:
            files.append(path)
    return files
