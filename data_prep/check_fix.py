"""`mllm data check --fix`: rows that are right, and rows that can be made right, into new files.

Repaired: a span that ends after its recording ends with it; an id that another record has gets a number.
Dropped: every other row with an error; the same record twice; rows about a recording that another split has,
from the larger of the two.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

from data_prep.check import Checked, Row, key_of
from mllm.records import write_records

REPAIRED = {"span too long", "id twice"}


def fix(checked: Checked) -> dict[Path, Counter[str]]:
    """Writes `<name>.fixed.jsonl` beside every file; returns what was done to the rows of each, counted."""
    errors: dict[tuple[str, int], set[str]] = {}
    for finding in checked.findings:
        if finding.severity == "error" and finding.kind != "in two splits":
            errors.setdefault((finding.file, finding.row), set()).add(finding.kind)
    sizes = Counter(row.file for row in checked.rows)
    given_up: dict[Path, set[str]] = {file: set() for file in sizes}
    for shared in checked.shared:
        largest = max(shared, key=lambda file: sizes[file])
        given_up[largest] |= shared[largest]
    ids = {_id(row) for row in checked.rows}
    done: dict[Path, Counter[str]] = {}
    for file in sizes:
        counts: Counter[str] = Counter()
        kept: dict[str, dict[str, Any]] = {}
        for row in (row for row in checked.rows if row.file == file):
            kinds = errors.get((str(file), row.number), set())
            if fatal := sorted(kinds - REPAIRED):
                counts[f"dropped: {fatal[0]}"] += 1
            elif any(path in given_up[file] for _, path, _ in row.media()):
                counts["dropped: in two splits"] += 1
            elif "id twice" in kinds and kept.get(_id(row)) == row.record:
                counts["dropped: the same record twice"] += 1
            else:
                record = _repaired(row, kinds, checked, ids)
                ids.add(record.get("id") or "")
                kept[record.get("id") or f"row {row.number}"] = record
                counts.update(f"repaired: {kind}" for kind in kinds)
        counts["kept"] = len(kept)
        fixed = file.with_name(f"{file.stem}.fixed.jsonl")
        write_records(fixed, kept.values())
        done[fixed] = counts
    return done


def _id(row: Row) -> str:
    return (row.record or {}).get("id", "")


def _repaired(row: Row, kinds: set[str], checked: Checked, ids: set[str]) -> dict[str, Any]:
    record = deepcopy(row.record or {})
    if "id twice" in kinds:
        names = (f"{_id(row)}-{number}" for number in count(2))
        record["id"] = next(name for name in names if name not in ids)
    if "span too long" in kinds:
        for message in record["messages"]:
            for part in message["content"]:
                if part.get("end") is not None:
                    options = {key: value for key, value in part.items() if key not in ("type", part["type"])}
                    facts = checked.facts[key_of(part["type"], part[part["type"]], options)]
                    part["end"] = min(part["end"], facts.info["duration"])
    return record
