"""What alignment compares: a row of vectors at even steps of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

LOCAL = 20  # blocks


@dataclass(frozen=True)
class Sequence:
    """One side of an alignment.

    Attributes:
        name: of the recording, in messages.
        vectors: float32 [steps, dim]; the dot product with those of the other side says how well two moments
            fit. A vector of zeros says nothing, as in silence.
        rate: steps per second; vector i stands at `start + i / rate`.
        start: s, of the first vector.
        block: s over which vectors repeat what their neighbours say: evidence is counted in such blocks, and
            a stretch of LOCAL blocks has an offset of its own.
    """

    name: str
    vectors: np.ndarray
    rate: float
    start: float = 0.0
    block: float = 0.1

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def seconds(self) -> float:
        return len(self.vectors) / self.rate

    @property
    def local(self) -> int:
        """Steps of a stretch that has an offset of its own; at most a quarter of all."""
        return max(2, min(round(LOCAL * self.block * self.rate), len(self) // 4))

    @property
    def step(self) -> float:
        """s between two vectors."""
        return 1 / self.rate

    def pooled(self, factor: int) -> Sequence:
        """Means of `factor` vectors each; a rest is dropped."""
        count = len(self) // factor
        if factor == 1 or not count:
            return self
        means = self.vectors[: count * factor].reshape(count, factor, -1).mean(1)
        return replace(
            self, vectors=means, rate=self.rate / factor, start=self.start + (factor - 1) / 2 * self.step
        )

    def cut(self, first: int, last: int) -> Sequence:
        """Vectors `first` to `last`, at their times."""
        return replace(self, vectors=self.vectors[first:last], start=self.start + first * self.step)


def high_passed(values: np.ndarray, width: int) -> np.ndarray:
    """Subtracts from float [steps, dim] the mean of the `width` steps around each."""
    half = max(1, width // 2)
    total = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=total[1:])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return values - (total[last] - total[first]) / (last - first)[:, None]


def scaled(values: np.ndarray, limit: float = 4.0) -> np.ndarray:
    """float32 [steps, dim] with columns of unit deviation, clipped, and rows of mean square norm 1."""
    deviation = values.std(axis=0)
    unit = np.divide(values, deviation, out=np.zeros_like(values), where=deviation > 1e-9)
    return (unit.clip(-limit, limit) / np.sqrt(values.shape[1])).astype(np.float32)
