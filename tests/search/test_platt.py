"""Confidence from evidence."""

from __future__ import annotations

import numpy as np
import pytest

from mllm.search.platt import bins, expected_error, fit, sigmoid


def test_the_curve_that_made_the_answers_is_found_again() -> None:
    rng = np.random.default_rng(0)
    evidence = rng.normal(3, 2, size=(4000, 2))
    right = rng.random(4000) < sigmoid(-3 + evidence @ [1.5, -0.5])
    assert fit(evidence, right) == pytest.approx([-3, 1.5, -0.5], abs=0.25)
    told = sigmoid(np.c_[np.ones(4000), evidence] @ fit(evidence, right))
    assert expected_error(told, right) < 0.02


def test_evidence_that_tells_all_makes_nothing_sure() -> None:
    bias, slope = fit(np.array([[1.0], [2.0], [5.0], [6.0]]), np.array([False, False, True, True]))
    assert 2 < -bias / slope < 5
    assert 0.6 < sigmoid(np.array(bias + 6 * slope)) < 0.9  # of four examples


def test_nothing_is_learned_from_one_kind_alone() -> None:
    with pytest.raises(ValueError, match="3 of 3 are right"):
        fit(np.ones((3, 1)), np.ones(3, bool))


def test_the_expected_error_is_the_distance_of_confidence_and_truth() -> None:
    confidence, right = np.array([0.95, 0.95, 0.15, 1.0]), np.array([True, False, False, True])
    assert bins(confidence, right) == [
        (pytest.approx(0.15), 0.0, 1),
        (pytest.approx(2.9 / 3), pytest.approx(2 / 3), 3),
    ]
    assert expected_error(confidence, right) == pytest.approx((0.15 + 0.9) / 4)
