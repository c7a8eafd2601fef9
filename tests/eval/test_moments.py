"""Spans in answers, and their overlap with the true ones, worked by hand."""

from __future__ import annotations

import pytest

from eval.moments import first_iou, read_spans, temporal_iou
from mllm.records.times import span_text


@pytest.mark.parametrize(
    ("answer", "spans"),
    [
        ("00:24.3 to 00:30", [(24.3, 30.0)]),
        ("It happens from 5 to 7.5 seconds.", [(5.0, 7.5)]),
        ("24.3s - 30s", [(24.3, 30.0)]),
        ("[1.5, 2.5], [4, 6]", [(1.5, 2.5), (4.0, 6.0)]),
        ("00:01 to 00:02, 01:05 to 01:10", [(1.0, 2.0), (65.0, 70.0)]),
        ("1:00:05–1:00:10", [(3605.0, 3610.0)]),
        ("between 5 and 7", [(5.0, 7.0)]),
        ("at 5 seconds", []),
        ("from 7 to 5", []),
        ("never", []),
    ],
)
def test_spans_are_read_from_answers(answer, spans):
    assert read_spans(answer) == spans


def test_what_records_answer_is_read_back():
    spans = [(0.0, 2.0), (61.5, 70.2)]
    assert read_spans(span_text(spans)) == spans


def test_temporal_iou():
    assert temporal_iou((0, 4), (2, 6)) == pytest.approx(2 / 6)
    assert temporal_iou((0, 4), (0, 4)) == 1.0
    assert temporal_iou((0, 1), (2, 3)) == 0.0


def test_the_first_span_counts_with_the_true_span_it_overlaps_most():
    truths = [(0, 2), (10, 14)]
    assert first_iou("00:10 to 00:13", truths) == pytest.approx(3 / 4)
    assert first_iou("00:05 to 00:06, 00:10 to 00:14", truths) == 0.0
    assert first_iou("I do not know", truths) == 0.0
