"""How well two sequences fit at each offset: cross-correlation as a standard score.

The score of the best offset, and its lead over any other, say whether there is an alignment at all, as in the
BBC's audio-offset-finder (https://github.com/bbc/audio-offset-finder).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mllm.errors import MediaError
from mllm.search.alignment.sequence import Sequence

SHORTEST = 0.5  # s
LEAST_OVERLAP = 10.0  # s that two long recordings share at the offsets that are tried
NEAR = 0.3  # s around the best offset that belong to it, or more where blocks are long
BLOCKS_NEAR = 1.5


@dataclass(frozen=True)
class LagCurve:
    """Scores by offset.

    Attributes:
        offsets: float64 [offsets] s: by how much the second sequence is later than the first.
        scores: float64 [offsets], deviations from the mean.
        near: s around the best offset that belong to it.
    """

    offsets: np.ndarray
    scores: np.ndarray
    near: float = NEAR

    @property
    def best(self) -> int:
        return int(self.scores.argmax())

    @property
    def offset(self) -> float:
        """The best offset, s, between steps by a parabola through the peak."""
        return float(self.offsets[self.best]) + parabola(self.scores, self.best) * self._step

    @property
    def score(self) -> float:
        """Standard score of the best offset."""
        return float(self.scores[self.best])

    @property
    def lead(self) -> float:
        """By how much the best score exceeds that of any offset that is not near it."""
        far = np.abs(self.offsets - self.offsets[self.best]) > self.near
        return self.score - float(self.scores[far].max(initial=0.0))

    @property
    def _step(self) -> float:
        return float(self.offsets[1] - self.offsets[0])


def lag_curve(first: Sequence, second: Sequence, limit: float | None = None) -> LagCurve:
    """Correlates two sequences of one rate.

    A sum over k steps has a deviation of √k if nothing fits, so each sum is divided by that of its overlap.

    Args:
        limit: s, the largest offset that is tried.

    Raises:
        MediaError: if one is too short, or no offset is left to choose from.
    """
    for side in (first, second):
        if side.seconds < SHORTEST:
            raise MediaError(
                f"{side.name}: {side.seconds:.2f} s is too short to align: give at least {SHORTEST:g} s"
            )
    sums, lags = correlation(first.vectors, second.vectors)
    overlap = np.minimum(len(first), len(second) - lags) - np.maximum(0, -lags)
    shorter = min(len(first), len(second))
    tried = overlap >= min(LEAST_OVERLAP * first.rate, max(shorter / 10, min(first.rate, shorter / 2)))
    offsets = lags / first.rate + second.start - first.start
    if limit is not None:
        tried &= np.abs(offsets) <= limit + 1e-9
    if tried.sum() < 3:
        raise MediaError(
            f"{first.name} and {second.name}: fewer than three offsets to choose from: raise the limit"
        )
    scores = sums[tried] / np.sqrt(overlap[tried])
    offsets = offsets[tried]
    near = max(NEAR, BLOCKS_NEAR * first.block)
    others = scores[np.abs(offsets - offsets[scores.argmax()]) > near]
    spread, mean = (others.std(), others.mean()) if len(others) else (scores.std(), scores.mean())
    return LagCurve(offsets, (scores - mean) / max(float(spread), 1e-9), near)


def correlation(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over i of first[i] · second[i + lag], float64 [lags], and the lags, int64, ascending."""
    count = len(first) + len(second) - 1
    length = 1 << (count - 1).bit_length()
    total = np.zeros(length // 2 + 1, np.complex128)
    for column in range(first.shape[1]):  # one by one, so that long recordings fit into memory
        total += np.conj(np.fft.rfft(first[:, column], length)) * np.fft.rfft(second[:, column], length)
    sums = np.fft.irfft(total, length)
    lags = np.arange(1 - len(first), len(second))
    return sums[lags], lags


def parabola(values: np.ndarray, peak: int) -> float:
    """Where between -0.5 and 0.5 steps from `peak` a parabola through it and its neighbours is highest."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    left, middle, right = values[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
