"""Offset and drift: a robust line through local offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OVERLAP = 2  # stretches that share a moment
ROUNDS = 20
SURE = 3.0  # standard errors from 0 at which a drift counts
TUKEY = 4.685  # deviations at which an outlier has no weight left (Beaton and Tukey, 1974)


@dataclass(frozen=True)
class Line:
    """The second's time minus the first's: `offset + drift · 1e-6 · time`, time (s) being that of the first.

    Attributes:
        offset: s, at time 0.
        drift: parts per million by which the second runs slower; 0 unless it is beyond doubt.
        error: standard error of the drift, parts per million.
    """

    offset: float
    drift: float = 0.0
    error: float = np.inf

    def at(self, times: np.ndarray) -> np.ndarray:
        """Offsets, s, at times of the first."""
        return self.offset + self.drift * 1e-6 * times


def robust_line(times: np.ndarray, offsets: np.ndarray, weights: np.ndarray, resolution: float) -> Line:
    """Fits a line to offsets (s) at times (s) by reweighted least squares, Tukey's biweight.

    Args:
        weights: of the points, not negative.
        resolution: s, below which a residual is no outlier.
    """
    if not len(times) or weights.sum() <= 0:
        raise ValueError("a line needs a point of some weight")
    slope = len(times) >= 8 and np.ptp(times) > 0
    line, error = _fit(times, offsets, weights, resolution, slope)
    if slope and abs(line.drift) < SURE * error:
        level, _ = _fit(times, offsets, weights, resolution, slope=False)
        return Line(level.offset, 0.0, error)
    return Line(line.offset, line.drift, error)


def _fit(
    times: np.ndarray, offsets: np.ndarray, weights: np.ndarray, resolution: float, slope: bool
) -> tuple[Line, float]:
    basis = np.stack([np.ones_like(times), times], axis=1)[:, : 1 + slope]
    robust = np.ones(len(times))
    middle = _median(offsets, weights)
    solved = np.array([middle, 0.0])[: 1 + slope]
    for _ in range(ROUNDS):
        residuals = offsets - basis @ solved
        spread = max(1.4826 * _median(np.abs(residuals), weights), resolution)
        robust = (1 - (residuals / (TUKEY * spread)).clip(-1, 1) ** 2) ** 2
        root = np.sqrt(weights * robust)[:, None]
        solved = np.linalg.lstsq(basis * root, offsets * root[:, 0], rcond=None)[0]
    if not slope:
        return Line(float(solved[0])), np.inf
    trusted = weights * robust
    residuals = offsets - basis @ solved
    count = trusted.sum() ** 2 / (trusted**2).sum() / OVERLAP
    centred = times - np.average(times, weights=trusted)
    variance = (trusted * residuals**2).sum() / (trusted * centred**2).sum() / max(count - 2, 1)
    return Line(float(solved[0]), float(solved[1]) * 1e6), float(np.sqrt(variance)) * 1e6


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
