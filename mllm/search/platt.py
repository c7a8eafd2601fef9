"""Confidence from evidence: Platt's scaling (1999), a logistic regression on whether an answer was right."""

from __future__ import annotations

import numpy as np

STEPS = 100  # of Newton's method; it ends long before
PRIOR = 1e-4  # weight of the squares of the coefficients: keeps them finite where evidence tells all
BINS = 10


def fit(evidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The coefficients of `sigmoid(bias + evidence @ slopes)`: float64 [1 + numbers], the bias first.

    Platt's targets, which never are 0 or 1, keep a few examples from making it sure of everything.

    Args:
        evidence: [examples, numbers].
        right: boolean [examples].

    Raises:
        ValueError: if all are right, or none.
    """
    count, positive = len(right), int(right.sum())
    if not 0 < positive < count:
        raise ValueError(f"{positive} of {count} are right: confidence is learned from both kinds")
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (count - positive + 2))
    mean, spread = evidence.mean(0), np.maximum(evidence.std(0), 1e-9)
    inputs = np.c_[np.ones(count), (evidence - mean) / spread]
    found, prior = np.zeros(inputs.shape[1]), PRIOR * count * np.eye(inputs.shape[1])
    for _ in range(STEPS):
        told = sigmoid(inputs @ found)
        slope = inputs.T @ (told - targets) + prior @ found
        curve = (inputs * (told * (1 - told))[:, None]).T @ inputs + prior
        step = np.linalg.solve(curve, slope)
        found = found - step
        if np.abs(step).max() < 1e-8:
            break
    slopes = found[1:] / spread
    return np.concatenate([[found[0] - slopes @ mean], slopes])


def bins(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, count) of each tenth of confidence that has any, from low to high."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [place == one for one in np.unique(place)]
    return [(float(confidence[of].mean()), float(right[of].mean()), int(of.sum())) for of in members]


def expected_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error (Naeini et al., 2015), 0 to 1: mean distance of confidence and truth."""
    found = bins(confidence, right)
    return sum(abs(told - share) * count for told, share, count in found) / max(len(right), 1)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ˣ), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -50, 50))))
