"""Moment retrieval: parses spans from answers and measures their overlap with the true ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[float, float]  # start and end, s

_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)\s*(?:s\b|sec(?:ond)?s?\b)?"
_SPAN = re.compile(rf"(?<![\d:.]){_TIME}\s*(?:to|and|until|till|-|–|—|,)\s*{_TIME}", re.IGNORECASE)


def read_spans(answer: str) -> list[Span]:
    """Parses the spans of an answer, in order: "00:24.3 to 00:30, …", "from 24.3 s to 30 s", "[24.3, 30]".

    Spans that end before they begin are dropped.
    """
    spans = []
    for match in _SPAN.finditer(answer):
        start, end = (_seconds(*match.group(first, first + 1, first + 2)) for first in (1, 4))
        if start < end:
            spans.append((start, end))
    return spans


def _seconds(hours: str | None, minutes: str | None, seconds: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds)


def temporal_iou(one: Span, other: Span) -> float:
    """Intersection over union of two spans, 0.0 to 1.0."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    covered = (one[1] - one[0]) + (other[1] - other[0]) - max(shared, 0.0)
    return max(shared, 0.0) / covered if covered > 0 else 0.0


def first_iou(answer: str, truths: Sequence[Span]) -> float:
    """IoU of the first predicted span with the true span it overlaps most (as R1 in moment_detr)."""
    spans = read_spans(answer)
    return max((temporal_iou(spans[0], truth) for truth in truths), default=0.0) if spans else 0.0
