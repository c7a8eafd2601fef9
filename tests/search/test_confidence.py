"""Confidence: a formula fitted on queries whose right answer is known, and how far it can be believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mllm.errors import ConfigError
from mllm.search.confidence import (
    Calibration,
    Ranked,
    bins,
    calibrate,
    expected_error,
    load_calibration,
    ranked,
    save_calibration,
)
from mllm.search.index import Index
from mllm.search.query import Query
from tests.search.test_index import CountingEmbedder, recording


def queries(count: int, seed: int = 0) -> list[Ranked]:
    """The right recording scores about .35 and others about .2; it is among the first three times of four."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scores = rng.normal(0.2, 0.05, 6)
        right = np.zeros(6, bool)
        if rng.random() < 0.75:
            scores[0], right[0] = rng.normal(0.35, 0.08), True
        order = np.argsort(-scores)
        found.append(Ranked(scores[order], right[order]))
    return found


def test_confidence_is_the_share_of_right_answers():
    found, told = calibrate(queries(2000), "stamp")
    assert found.queries == 2000
    assert found.error < 0.05
    assert found.right == pytest.approx(0.7, abs=0.06)
    assert sum(count for *_, count in told) == 1000
    assert found.of_gap > 0
    assert found(0.4, 0.2) > 0.95
    assert found(0.25, 0.0) < 0.5
    by_hand = 1 / (1 + math.exp(-(found.bias + found.of_score * 0.3 + found.of_gap * 0.05)))
    assert float(found(0.3, 0.05)) == pytest.approx(by_hand)


def test_scores_that_tell_all_leave_the_formula_finite():
    sure = [Ranked(np.array([0.9, 0.1]), np.array([True, False])) for _ in range(40)]
    found, _ = calibrate(sure, "stamp")
    assert np.isfinite([found.bias, found.of_score, found.of_gap]).all()
    assert found(0.9, 0.8) > 0.99


def test_the_expected_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.15, 0.15])
    right = np.array([True, True, True, False, False, False])
    assert bins(confidence, right) == [(pytest.approx(0.15), 0.0, 2), (pytest.approx(0.95), 0.75, 4)]
    assert expected_error(confidence, right) == pytest.approx((2 * 0.15 + 4 * 0.2) / 6)
    assert expected_error(np.zeros(0), np.zeros(0, bool)) == 0.0


def test_too_few_queries_are_refused():
    with pytest.raises(ConfigError, match="19 queries are too few to measure confidence: give 20 at least"):
        calibrate(queries(19), "stamp")


def test_a_recording_alone_has_no_gap():
    assert Ranked(np.array([0.4]), np.array([True])).gaps.tolist() == [0.0]
    np.testing.assert_allclose(Ranked(np.array([0.4, 0.3, 0.1]), np.zeros(3, bool)).gaps, [0.1, -0.1, -0.3])


@pytest.fixture
def index(tmp_path) -> Index:
    recording(tmp_path / "clips/a.mp4", {"video": [1, 0, 0, 0]}, {"video": [1, 0.2, 0, 0]})
    recording(tmp_path / "clips/b.mp4", {"video": [0, 1, 0, 0]})
    index = Index.open(tmp_path / "index", CountingEmbedder())
    index.add([tmp_path / "clips"])
    return index


def test_queries_are_ranked_by_recording(index, tmp_path):
    captions = {"1 0 0 0": {str(tmp_path / "clips/a.mp4")}, "0 1 0 0": {str(tmp_path / "clips/a.mp4")}}
    first, second = ranked(lambda text: index.search(text, 100), captions)
    np.testing.assert_allclose(first.scores, [1, 0], atol=1e-6)
    assert (first.right.tolist(), second.right.tolist()) == ([True, False], [False, True])


def test_moments_have_the_confidence_that_was_measured(index):
    assert index.moments("1 0 0 0", 1)[0].confidence is None
    found = Calibration(-2.0, 3.0, 4.0, index.embedder.fingerprint(), 20, 0.1, 0.5)
    save_calibration(found, index.folder)
    index = Index.open(index.folder, CountingEmbedder())
    first, second = index.moments("1 0 0 0")
    assert first.confidence == pytest.approx(float(found(1.0, 1.0)))
    assert second.confidence == pytest.approx(float(found(0.0, -1.0)))
    for query in (Query("1 0 0 0", channels=("seen",)), Query(like=index.vector_of(str(first.item.id)))):
        assert index.moments(query, 1)[0].confidence is None  # not measured for these
    above = index.moments(Query("1 0 0 0", threshold=0.5))
    assert [moment.confidence for moment in above] == [first.confidence]


def test_what_was_measured_belongs_to_a_model(index):
    save_calibration(Calibration(0, 0, 0, "another", 20, 0.1, 0.5), index.folder)
    assert load_calibration(index.folder, index.embedder.fingerprint()) is None
    (index.folder / "confidence.json").write_text("{")
    with pytest.raises(ConfigError, match="confidence.json cannot be read .*: calibrate the index again"):
        load_calibration(index.folder, "another")
