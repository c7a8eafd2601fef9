"""Confidence: a formula fitted on queries whose right answer is known, and how far it can be believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mllm.errors import ConfigError
from mllm.search.confidence import (
    Calibration,
    Ranked,
    calibrate,
    load_calibration,
    ranked,
    save_calibration,
)
from mllm.search.index import Index
from mllm.search.query import Query
from tests.search.test_index import CountingEmbedder, recording


def queries(count: int, seed: int = 0) -> list[Ranked]:
    """Evidence of about 6 for the right recording and of 2 for others; it is found three times of four."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        relevances = rng.normal(2, 1, 6)
        right = np.zeros(6, bool)
        if rng.random() < 0.75:
            relevances[0], right[0] = rng.normal(6, 1.6), True
        order = np.argsort(-relevances)
        found.append(Ranked(relevances[order], right[order], frozenset({f"{number // 4}.mp4"})))
    return found


def test_confidence_is_the_share_of_right_answers():
    found, measured = calibrate(queries(2000), "stamp")
    assert found.queries == 2000
    assert found.error < 0.05
    assert found.right == pytest.approx(0.7, abs=0.06)
    assert sum(count for *_, count in measured) == 1000
    assert found.of_gap > 0
    assert found(7, 4) > 0.95
    assert found(3, 0) < 0.5
    by_hand = 1 / (1 + math.exp(-(found.bias + found.of_relevance * 3 + found.of_gap * 0.5)))
    assert float(found(3, 0.5)) == pytest.approx(by_hand)


def test_recordings_that_it_was_fitted_on_are_not_measured():
    """Half of the recordings have many captions that are always found: they leak into neither half."""
    easy, hard = np.array([True, False]), np.array([False, True])
    relevances = np.array([3.0, 1.0])
    asked = [Ranked(relevances, easy, frozenset({"a.mp4"}))] * 30
    asked += [Ranked(relevances, hard, frozenset({"b.mp4"}))] * 30
    found, measured = calibrate(asked, "stamp")
    assert found.error > 0.9  # fitted on one kind alone, measured on the other
    assert sum(count for *_, count in measured) == 30
    assert float(found(3, 2)) == pytest.approx(0.5, abs=0.01)  # fitted on both
    across = Ranked(relevances, easy, frozenset({"a.mp4", "b.mp4"}))
    assert sum(count for *_, count in calibrate([*asked, across], "stamp")[1]) == 30


def test_what_cannot_be_measured_is_one_line():
    one = [Ranked(np.array([3.0, 1.0]), np.array([True, False]), frozenset({"a.mp4"}))] * 20
    with pytest.raises(ConfigError, match="no caption is of one half of the recordings alone"):
        calibrate(one, "stamp")
    alone = [Ranked(np.array([3.0]), np.array([True]), frozenset({f"{i}.mp4"})) for i in range(20)]
    with pytest.raises(ConfigError, match="cannot be measured with these captions: 10 of 10 are right"):
        calibrate(alone, "stamp")


def test_too_few_queries_are_refused():
    with pytest.raises(ConfigError, match="19 queries are too few to measure confidence: give 20 at least"):
        calibrate(queries(19), "stamp")


def test_a_recording_alone_has_no_gap():
    assert Ranked(np.array([0.4]), np.array([True]), frozenset()).gaps.tolist() == [0.0]
    three = Ranked(np.array([0.4, 0.3, 0.1]), np.zeros(3, bool), frozenset())
    np.testing.assert_allclose(three.gaps, [0.1, -0.1, -0.3])


@pytest.fixture
def index(tmp_path) -> Index:
    recording(tmp_path / "clips/a.mp4", {"video": [1, 0, 0, 0]}, {"video": [1, 0.2, 0, 0]})
    recording(tmp_path / "clips/b.mp4", {"video": [0, 1, 0, 0]})
    index = Index.open(tmp_path / "index", CountingEmbedder())
    index.add([tmp_path / "clips"])
    return index


def test_queries_are_ranked_by_recording(index, tmp_path):
    captions = {"1 0 0 0": {str(tmp_path / "clips/a.mp4")}, "0 1 0 0": {str(tmp_path / "clips/a.mp4")}}
    first, second = ranked(index.recordings, captions)
    assert first.relevances[0] > first.relevances[1]
    assert (first.right.tolist(), second.right.tolist()) == ([True, False], [False, True])
    assert first.sources == {str(tmp_path / "clips/a.mp4")}


def test_moments_have_the_confidence_that_was_measured(index):
    assert index.moments("1 0 0 0", 1)[0].confidence is None
    found = Calibration(-2.0, 3.0, 4.0, index.embedder.fingerprint(), 20, 0.1, 0.5)
    save_calibration(found, index.folder)
    index = Index.open(index.folder, CountingEmbedder())
    first, second = index.moments("1 0 0 0")
    gap = first.relevance - second.relevance
    assert first.confidence == pytest.approx(float(found(first.relevance, gap)))
    assert second.confidence == pytest.approx(float(found(second.relevance, -gap)))
    for query in (
        Query("1 0 0 0", channels=("seen",)),
        Query("1 0 0 0", threshold=0.5),
        Query("1 0 0 0", fusion="ranks"),
        Query(like=index.vector_of(str(first.item.id))),
    ):
        assert index.moments(query, 1)[0].confidence is None  # not measured for these


def test_what_was_measured_belongs_to_a_model(index):
    save_calibration(Calibration(0, 0, 0, "another", 20, 0.1, 0.5), index.folder)
    assert load_calibration(index.folder, index.embedder.fingerprint()) is None
    (index.folder / "confidence.json").write_text("{")
    with pytest.raises(ConfigError, match="confidence.json cannot be read .*: calibrate the index again"):
        load_calibration(index.folder, "another")
