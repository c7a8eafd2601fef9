"""How probable it is that a recording is the one that is meant, from its relevance and the gap to the others.

    confidence = 1 / (1 + exp(-(bias + of_relevance · relevance + of_gap · gap)))

`relevance` is that of the recording's best moment (see `mllm.search.moments`), `gap` that minus the best of
all other recordings: below 0 for all but the first. The formula is fitted (`mllm.search.platt`) on the first
`RANKS` recordings of queries whose right answer is known, and measured on queries about other recordings.

It holds for the index that it was made with, and for queries like those: in a larger index, more recordings
come close.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mllm.errors import ConfigError
from mllm.files import write_atomically
from mllm.search.moments import Moment
from mllm.search.platt import bins, expected_error, fit, sigmoid

FILE = "confidence.json"  # in the folder of an index
RANKS = 5  # recordings of a query that are learned from
FEWEST = 20  # queries


@dataclass(frozen=True)
class Calibration:
    """The numbers of the formula, and how well it was measured to hold.

    Attributes:
        stamp: fingerprint of the model of the index.
        queries: number that it was fitted on.
        error: expected calibration error on queries about recordings that it was not fitted on.
        right: share of queries whose first recording was right.
    """

    bias: float
    of_relevance: float
    of_gap: float
    stamp: str
    queries: int
    error: float
    right: float

    def __call__(self, relevance: float | np.ndarray, gap: float | np.ndarray) -> np.ndarray:
        """The confidence, 0 to 1."""
        return sigmoid(self.bias + self.of_relevance * np.asarray(relevance) + self.of_gap * np.asarray(gap))


@dataclass(frozen=True)
class Ranked:
    """The first recordings of one query.

    Attributes:
        relevances: best first.
        right: whether each is right.
        sources: of all recordings that are right, found or not.
    """

    relevances: np.ndarray
    right: np.ndarray
    sources: frozenset[str]

    @property
    def gaps(self) -> np.ndarray:
        """See the module; 0 of a recording that is alone."""
        if len(self.relevances) < 2:
            return np.zeros(len(self.relevances))
        first, second = self.relevances[:2]
        return self.relevances - np.where(np.arange(len(self.relevances)) == 0, second, first)


def ranked(
    search: Callable[[str, int], Sequence[Sequence[Moment]]], captions: Mapping[str, set[str]]
) -> list[Ranked]:
    """The first recordings of each caption.

    Args:
        search: the best recordings of a text, so many, each as its moments (`Index.recordings`).
        captions: sources of the recordings that a caption is right for, by caption.
    """
    found = []
    for caption, sources in captions.items():
        first = [moments[0] for moments in search(caption, RANKS + 1)]
        relevances = np.array([moment.relevance for moment in first])
        right = np.array([str(moment.item.source) in sources for moment in first], bool)
        found.append(Ranked(relevances, right, frozenset(sources)))
    return found


def calibrate(queries: Sequence[Ranked], stamp: str) -> tuple[Calibration, list[tuple[float, float, int]]]:
    """Fits the formula on queries about half of the recordings, measures it on the rest, then fits it on all.

    A query that is right for recordings of both halves is left out of the measurement.

    Returns:
        The formula, and the `platt.bins` of the queries that it was measured on.

    Raises:
        ConfigError: for fewer than `FEWEST` queries, or for queries that do not tell right from wrong.
    """
    queries = [one for one in queries if len(one.relevances)]
    if len(queries) < FEWEST:
        raise ConfigError(f"{len(queries)} queries are too few to measure confidence: give {FEWEST} at least")
    recordings = sorted(frozenset().union(*(one.sources for one in queries)))
    drawn = set(np.random.default_rng(0).permutation(recordings)[::2].tolist())
    fitted_on = [one for one in queries if one.sources <= drawn]
    measured_on = [one for one in queries if not one.sources & drawn]
    if not fitted_on or not measured_on:
        raise ConfigError("no caption is of one half of the recordings alone: give more recordings captions")
    confidence, right = predictions(_fitted(fitted_on, stamp), measured_on)
    first = float(np.mean([one.right[0] for one in queries]))
    error = expected_error(confidence, right)
    return replace(_fitted(queries, stamp), error=error, right=first), bins(confidence, right)


def predictions(calibration: Calibration, queries: Sequence[Ranked]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and truth of the first recording of each query."""
    relevances = np.array([one.relevances[0] for one in queries])
    gaps = np.array([one.gaps[0] for one in queries])
    return calibration(relevances, gaps), np.array([one.right[0] for one in queries], bool)


def _fitted(queries: Sequence[Ranked], stamp: str) -> Calibration:
    evidence = [np.stack([one.relevances, one.gaps], 1)[:RANKS] for one in queries]
    right = [one.right[:RANKS] for one in queries]
    try:
        bias, of_relevance, of_gap = fit(np.concatenate(evidence), np.concatenate(right)).tolist()
    except ValueError as error:
        raise ConfigError(f"confidence cannot be measured with these captions: {error}") from None
    return Calibration(bias, of_relevance, of_gap, stamp, len(queries), 0.0, 0.0)


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Keeps it beside the index in `folder`."""
    write_atomically(folder / FILE, json.dumps(asdict(calibration), indent=1) + "\n")


def load_calibration(folder: Path, stamp: str) -> Calibration | None:
    """What was measured of an index; None if nothing was, or its model has changed.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / FILE
    try:
        found = Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): calibrate the index again") from None
    return found if found.stamp == stamp else None
