"""`mllm data check --fix`: writes valid and repairable rows to new files.

Repaired: spans that end after their recording are shortened, duplicate ids are numbered. Dropped: all other
rows with an error, duplicate records, and rows about a recording in several splits, from all but the smallest
split.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from data_prep.check import ends_late, key_of
from data_prep.check_rows import Checked, Row
from mllm.records.conversation import MediaPart
from mllm.records.record import write_records

REPAIRED = {"span too long", "id twice"}


def fix(checked: Checked) -> dict[Path, Counter[str]]:
    """Writes `<name>.fixed.jsonl` beside every file with rows left.

    Returns:
        Counts of what was done to the rows of each; "kept": rows written, 0 if there is no file.

    Raises:
        MllmError: the disk is full, or the folder cannot be written.
    """
    errors: dict[tuple[str, int], set[str]] = {}
    for finding in checked.findings:
        if finding.severity == "error" and finding.kind != "in two splits":
            errors.setdefault((finding.file, finding.row), set()).add(finding.kind)
    sizes = Counter(row.file for row in checked.rows)
    given_up: dict[Path, set[str]] = {file: set() for file in sizes}
    for shared in checked.shared:
        smallest = min((file for file in reversed(sizes) if file in shared), key=lambda file: sizes[file])
        for file in shared.keys() - {smallest}:
            given_up[file] |= shared[file]
    ids = {_id(row) for row in checked.rows}
    done: dict[Path, Counter[str]] = {}
    for file in sizes:
        counts: Counter[str] = Counter()
        kept: list[dict[str, Any]] = []
        origins: dict[str, set[str]] = defaultdict(set)  # id -> the records that have it
        for row in (row for row in checked.rows if row.file == file):
            kinds = errors.get((str(file), row.number), set())
            if fatal := sorted(kinds - REPAIRED):
                counts[f"dropped: {fatal[0]}"] += 1
            elif any({path, options.get("audio")} & given_up[file] for _, path, options in row.media()):
                counts["dropped: in two splits"] += 1
            elif "id twice" in kinds and _text(row) in origins[_id(row)]:
                counts["dropped: the same record twice"] += 1
            else:
                if not origins[_id(row)]:
                    kinds = kinds - {"id twice"}  # the other record with this id was dropped
                origins[_id(row)].add(_text(row))
                record = _repaired(row, kinds, checked, ids)
                ids.add(record.get("id") or "")
                kept.append(record)
                counts.update(f"repaired: {kind}" for kind in kinds)
        counts["kept"] = len(kept)
        fixed = file.with_name(f"{file.stem}.fixed.jsonl")
        if kept:
            write_records(fixed, kept)
        else:
            with suppress(OSError):
                fixed.unlink()  # of an earlier check
        done[fixed] = counts
    return done


def _id(row: Row) -> str:
    return (row.record or {}).get("id") or ""


def _text(row: Row) -> str:
    return json.dumps(row.record, sort_keys=True)


def _repaired(row: Row, kinds: set[str], checked: Checked, ids: set[str]) -> dict[str, Any]:
    record = dict(row.record or {})
    if "id twice" in kinds:
        names = (f"{_id(row)}-{number}" for number in count(2))
        record["id"] = next(name for name in names if name not in ids)
    if "span too long" in kinds:
        record["messages"] = record["messages"].with_media(lambda part: _within(part, checked))
    return record


def _within(part: MediaPart, checked: Checked) -> MediaPart:
    """The part, with its span shortened to the end of its recording."""
    facts = checked.facts.get(key_of(part.modality, part.source, part.options))
    if facts is not None and ends_late(part.options, facts.info):
        return MediaPart(part | {"end": facts.info["duration"]})
    return part
