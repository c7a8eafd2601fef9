"""One import from beginning to end: records.jsonl, held_out.jsonl where asked for, and a report of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data_prep.importers import IMPORTERS, Job, Record
from data_prep.importers.folder import MediaFolder
from mllm.errors import ConfigError, RecordError
from mllm.files import write_atomically
from mllm.records import write_records

SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt"}
TRAIN, HELD_OUT, REPORT = "records.jsonl", "held_out.jsonl", "import.json"


@dataclass
class Report:
    """What an import wrote, left out and noted.

    Attributes:
        missing: recordings that are named but were not found under --media.
    """

    name: str
    annotations: list[str]
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
) -> Report:
    """Translates one data set into `out`.

    Args:
        annotations: files, or folders of them.
        media: folder of the recordings; without, paths in `out` are written unseen.
        localised: ask about the annotated span of a video.
        held_out: records whose labels have one of these values, for every key, go into held_out.jsonl.

    Raises:
        ConfigError: there is no such importer, or no record to hold out.
        RecordError: a bad row, or no records at all.
    """
    if name not in IMPORTERS:
        near = get_close_matches(name, IMPORTERS, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"no format {name!r}: {meant}known are {', '.join(IMPORTERS)}")
    out = out.absolute()
    job = Job(name, _files(annotations), MediaFolder(media.absolute() if media else None), localised)
    report = Report(name, [str(path) for path in annotations])
    kept: list[Record] = []
    apart: list[Record] = []
    for record in _together(_distinct(job, IMPORTERS[name].records(job))):
        (apart if held_out and _matches(record, held_out) else kept).append(record)
    if not kept and not apart:
        reasons = "".join(f"; {count} {reason}" for reason, count in job.left_out.items())
        raise RecordError(f"{name}: no records{reasons}: give --annotations its files (`mllm data formats`)")
    if held_out and not (kept and apart):
        wanted = " and ".join(f"{key}={','.join(sorted(values))}" for key, values in held_out.items())
        raise ConfigError(f"--held-out {wanted} takes {'all' if apart else 'none'} of the records")
    report.records = write_records(out / TRAIN, kept, media_must_exist=False)
    if held_out:
        report.held_out = write_records(out / HELD_OUT, apart, media_must_exist=False)
    else:
        (out / HELD_OUT).unlink(missing_ok=True)  # of an earlier import
    report.left_out, report.noted = dict(job.left_out), dict(job.noted)
    report.missing = list(job.media.missing)
    write_atomically(out / REPORT, json.dumps(asdict(report), indent=1, ensure_ascii=False))
    return report


def parse_held_out(texts: Sequence[str]) -> dict[str, set[str]]:
    """'actor=17-20' and 'session=1,5' as label -> values.

    Raises:
        ConfigError: it is not of that form.
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


def _together(records: Iterator[Record]) -> Iterator[Record]:
    """The records of one recording next to each other: training reads it once for all of them."""
    recordings: dict[str, list[Record]] = {}
    for record in records:
        media = [part for message in record["messages"] for part in _parts(message) if part["type"] != "text"]
        recordings.setdefault(json.dumps(media) if media else record["id"], []).append(record)
    for group in recordings.values():
        yield from group


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [] if isinstance(message["content"], str) else message["content"]


def _distinct(job: Job, records: Iterator[Record]) -> Iterator[Record]:
    """Every question once; another one under an id that came before gets a number to it."""
    asked: dict[str, str] = {}
    for record in _told(job, records):
        id, copies = record["id"], 1
        question = json.dumps([message for message in record["messages"] if message["role"] == "user"])
        while asked.get(record["id"], question) != question:
            copies += 1
            record["id"] = f"{id}-{copies}"
        if record["id"] in asked:
            job.left_out["id and question came before"] += 1
            continue
        if copies > 1:
            job.noted["id came before with another question: numbered"] += 1
        asked[record["id"]] = question
        yield record


def _told(job: Job, records: Iterator[Record]) -> Iterator[Record]:
    """The records; a row that is not as its data set writes them is named.

    Raises:
        RecordError: in place of what an importer stumbles over.
    """
    try:
        yield from records
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        last = f"{job.where}: " if job.where else ""
        raise RecordError(
            f"{last}not as {job.name} writes it ({type(error).__name__}: {error}): see `mllm data formats`"
        ) from error


def _files(annotations: Sequence[Path]) -> list[Path]:
    """The files that are named, and all annotations of the folders that are."""
    return [
        file
        for path in annotations
        for file in (sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES) if path.is_dir() else [path])
    ]
