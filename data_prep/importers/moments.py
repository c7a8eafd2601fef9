"""Moment queries: when something is seen or heard (QVHighlights, Charades-STA, ActivityNet Captions)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.importers.columns import Columns
from data_prep.importers.job import Job, Record
from data_prep.importers.plain import seconds_of
from data_prep.importers.tables import Row
from mllm.errors import RecordError
from mllm.records.record import parse_row

NAMES = {  # the fields of a row, the likeliest first
    "query": ("query", "sentence", "description"),
    "file": ("vid", "video", "video_id", "file", "file_name", "audio"),
    "spans": ("spans", "relevant_windows", "windows", "timestamps"),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "duration": ("duration",),
    "id": ("qid", "id"),
}


def moments(job: Job) -> Iterator[Record]:
    """Rows of query, recording and spans (QVHighlights), Charades-STA's .txt, or ActivityNet Captions' json.

    A row has `query`, `vid` and `relevant_windows` or `spans` ([[start, end], …] in s), or `start` and `end`;
    other columns by --columns. Rows without spans are kept to be answered.
    """
    for row in job.rows():
        with job.or_left_out():
            if _is_activitynet(row):
                yield from _activitynet(job, row)
                continue
            yield from _moment(job, row, _fields(job.columns, row))
    for line, where in job.lines():
        with job.or_left_out():
            told = re.fullmatch(r"(\S+) ([\d.]+) ([\d.]+)\s*##\s*(.+)", line)
            if not told:
                raise RecordError(
                    f"{where}: must be '<video> <start> <end>##<query>', as Charades-STA has it"
                )
            spans = [[float(told[2]), float(told[3])]]
            yield from _record(job, where.replace(" line ", "-"), told[1], told[4], spans, None)


def _is_activitynet(row: Row) -> bool:
    return bool(row) and all(isinstance(told, dict) and "timestamps" in told for told in row.values())


def _activitynet(job: Job, videos: Row) -> Iterator[Record]:
    """{"v_…": {"duration", "timestamps": [[start, end], …], "sentences": […]}, …}"""
    for video, told in videos.items():
        job.where = f"{videos.where} {video}"
        with job.or_left_out():
            for number, (span, query) in enumerate(zip(told["timestamps"], told["sentences"], strict=True)):
                yield from _record(job, f"{video}-{number}", video, str(query), [span], told.get("duration"))


def _fields(given: Columns, row: Row) -> dict[str, str]:
    """Which field of a row is which."""
    found = {role: columns[0] for role, columns in given.items()}
    for role, names in NAMES.items():
        if role not in found:
            found.update((role, name) for name in reversed(names) if name in row)
    for role in ("query", "file"):
        if role not in found:
            raise RecordError(
                f"{row.where}: no field is called like the {role} (it has {', '.join(row)}): "
                f"add --columns {role}=…"
            )
    return found


def _moment(job: Job, row: Row, fields: dict[str, str]) -> Iterator[Record]:
    spans: Any = row.get(fields.get("spans", ""))
    if isinstance(spans, str):  # the cell of a table
        spans = (
            parse_row(spans, f"{row.where}: {fields['spans']}", "write [[1.5, 4]]") if spans.strip() else None
        )
    if any(key.startswith("pred_") for key in row):
        raise RecordError(f"{row.where}: these are predictions, not what is true: give the annotations")
    if "spans" not in fields and "start" in fields:
        start, end = (seconds_of(row, fields[role]) if role in fields else None for role in ("start", "end"))
        if start is not None and end is None:
            raise RecordError(f"{row.where}: a start without an end: write both, in s")
        spans = None if start is None else [[start, end]]
    id = row.get(fields.get("id", ""), row.where.replace(" row ", "-").replace(" line ", "-"))
    duration = row.get(fields.get("duration", ""))
    yield from _record(
        job, id, row.text(fields["file"]), row.text(fields["query"]), spans, duration,
        "audio" if fields["file"] == "audio" else None,
    )  # fmt: skip


def _record(
    job: Job,
    id: Any,
    name: str,
    query: str,
    spans: Sequence[Sequence[float]] | None,
    duration: Any,
    kind: str | None = None,
) -> Iterator[Record]:
    """The record of a query, without empty spans.

    Args:
        duration: of the recording in s, where it is known.
    """
    media = [job.medium(name, kind)]
    if spans is None:
        job.noted["no spans given: kept to be answered"] += 1
        yield job.moments(id, media, query, None)
        return
    kept = []
    for span in spans:
        if not isinstance(span, (list, tuple)) or len(span) != 2:
            raise RecordError(f"{job.where}: a span must be [start, end] in s, not {str(span)[:40]}")
        start, end = map(float, span)
        if not 0 <= start < end or (duration is not None and start >= float(duration)):
            job.noted["span left out: empty, reversed or outside the recording"] += 1
            continue
        if duration is not None and end > float(duration):
            job.noted["span ends after its recording: left so"] += 1
        kept.append([start, end])
    if kept:
        yield job.moments(id, media, query, kept)
    else:
        job.left_out["query without a span"] += 1
