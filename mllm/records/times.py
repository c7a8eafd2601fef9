"""Times in records: the words of a timed transcript, the spans of a moment query."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mllm.errors import RecordError

FORMS = {"words": "[start, end, text]", "spans": "[start, end]"}


def check_times(record: Mapping[str, Any], where: str) -> None:
    """Checks `words` and `spans` of a record, and the keys that a moment query needs.

    Raises:
        RecordError: if one of them is invalid.
    """
    for key, form in FORMS.items():
        value = record.get(key)
        if value is not None and not isinstance(value, (list, tuple)):
            raise RecordError(f"{where}: {key!r} must be a list of {form}, not {type(value).__name__}")
        for number, given in enumerate(value or (), start=1):
            _check_one(key, given, f"{where}: {key} {number}")
    if record.get("task") != "moments":
        return
    if not (record.get("query") or "").strip():
        raise RecordError(f"{where}: a record of task 'moments' needs 'query': write what is looked for")
    if not record.get("spans") and record.get("answer", "") is not None:
        raise RecordError(
            f"{where}: a record of task 'moments' needs 'spans', [[start, end], …] in s, or \"answer\": null "
            "where they are kept back"
        )


def _check_one(key: str, given: Any, where: str) -> None:
    form = FORMS[key]
    if not isinstance(given, (list, tuple)) or len(given) != form.count(",") + 1:
        raise RecordError(f"{where} must be {form}, not {str(given)[:60]}")
    start, end = given[:2]
    if not all(type(time) in (int, float) and math.isfinite(time) for time in (start, end)):
        raise RecordError(f"{where}: start and end must be seconds, not {start!r} and {end!r}")
    if not 0 <= start <= end or (key == "spans" and start == end):
        raise RecordError(
            f"{where} lasts from {start} to {end} s: it must begin at 0 or later, and end after that"
        )
    if key == "words" and not (isinstance(given[2], str) and given[2].strip()):
        raise RecordError(f"{where} has no text: write what is said, or drop it")


def span_text(spans: Iterable[Sequence[float]]) -> str:
    """Spans (s) as an answer, in minutes and seconds like time marks: '00:24.3 to 00:30, …'."""

    def clock(seconds: float) -> str:
        minutes, rest = divmod(round(seconds, 1), 60)
        return f"{int(minutes):02d}:{rest:04.1f}".removesuffix(".0")

    return ", ".join(f"{clock(start)} to {clock(end)}" for start, end in spans)
