"""The order in which training reads the scenes of a source: a pure function of the example's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mllm.errors import ConfigError
from mllm.records.record import Outline, Record
from mllm.records.source import DataSource, Outlined

SHUFFLED_UP_TO = 1 << 24  # scenes; larger sources (generated worlds) are read in order


class Place(NamedTuple):
    """Where an example comes from; `round` counts the passes over the source before it."""

    source: DataSource
    scene: int
    round: int


class Order:
    """Endless rounds over the scenes of a source, each shuffled anew.

    Args:
        weights: [scenes], how often each is drawn in a round, on average; None: once.
    """

    def __init__(self, source: DataSource, seed: int, weights: np.ndarray | None = None):
        self.source = source
        self.seed = seed
        self.weights = None if weights is None or (weights == 1).all() else weights
        self.length = len(source) if self.weights is None else max(1, round(float(self.weights.sum())))
        self._round: tuple[int, np.ndarray] | None = None

    def __call__(self, number: int) -> Place:
        """The place of the source's `number`-th example."""
        turn, place = divmod(number, self.length)
        if self.weights is None and len(self.source) > SHUFFLED_UP_TO:
            return Place(self.source, place, turn)
        if self._round is None or self._round[0] != turn:
            self._round = turn, self._shuffled(turn)
        return Place(self.source, int(self._round[1][place]), turn)

    def _shuffled(self, turn: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, turn))
        order = rng.permutation(len(self.source))
        if self.weights is None:
            return order
        # Systematic sampling: a scene of weight 2.3 is drawn two or three times.
        passed = np.cumsum(self.weights[order])
        marks = (np.arange(self.length) + rng.uniform()) * (passed[-1] / self.length)
        return rng.permutation(order[np.searchsorted(passed, marks, side="right")])


class Weights:
    """How often records are drawn, by the names in their `task` and `source`; other names count 1.

    Args:
        by_name: `instruct.weights`.
    """

    def __init__(self, by_name: Mapping[str, float]):
        self.by_name = by_name

    def of(self, task: str | None, source: str | None) -> float:
        """The weight of a record."""
        return self.by_name.get(task or "", 1.0) * self.by_name.get(source or "", 1.0)

    def choose(self, records: Sequence[Record], count: int, rng: np.random.Generator) -> list[int]:
        """Draws up to `count` of the records, in order, likelier the greater their weight."""
        if not self.by_name:
            return sorted(rng.permutation(len(records))[:count].tolist())
        weights = np.array([self.of(record.get("task"), record.get("source")) for record in records])
        # The largest of u^(1/w) are a weighted sample without replacement (Efraimidis and Spirakis 2006).
        keys = np.log(rng.uniform(size=len(records))) / np.maximum(weights, 1e-12)
        return sorted(int(i) for i in np.argsort(-keys)[:count] if weights[i] > 0)


UNWEIGHTED = Weights({})


def answer_weights(source: DataSource, weights: Weights) -> np.ndarray | None:
    """The weights of scenes for instruction tuning: the mean over their records with answers, 0 without any.

    Raises:
        ConfigError: if no weight is left, a name occurs nowhere, or the source does not outline its records.
    """
    return _scene_weights(source, weights, lambda one: one.answered, "instruct.weights")


def caption_weights(source: DataSource, weights: Weights = UNWEIGHTED) -> np.ndarray | None:
    """The weights of scenes for stage 1: the mean over their records with captions, 0 without any.

    None if no record has a caption, which is an error when one is read.

    Raises:
        ConfigError: if no weight is left, a name occurs nowhere, or the source does not outline its records.
    """
    return _scene_weights(source, weights, lambda one: one.captioned, "contrastive.weights")


def _scene_weights(
    source: DataSource, weights: Weights, usable: Callable[[Outline], bool], setting: str
) -> np.ndarray | None:
    """The mean weight of each scene's usable records; None if there are none, or no outlines."""
    if not isinstance(source, Outlined):
        if weights.by_name:
            raise ConfigError(
                f"{setting} is for records in a file, and {source.name} makes its own: leave it out"
            )
        return None
    outlines = [source.outlines(scene) for scene in range(len(source))]
    names = {name for scene in outlines for one in scene for name in (one.task, one.source) if name}
    if unknown := sorted(weights.by_name.keys() - names):
        raise ConfigError(
            f"{setting} names {unknown[0]!r}, no task or source of {source.name}: choose from "
            + ", ".join(sorted(names))
        )
    used = [[weights.of(one.task, one.source) for one in scene if usable(one)] for scene in outlines]
    found = np.array([sum(scene) / len(scene) if scene else 0.0 for scene in used])
    if not found.any() and weights.by_name:
        raise ConfigError(f"{setting} leaves nothing of {source.name}: give more than 0 to some of it")
    return found if found.any() else None
