"""How probable it is that a recording is the one that is meant, from its score and the gap to the others.

    confidence = 1 / (1 + exp(-(bias + of_score · score + of_gap · gap)))

`score` is the best cosine of the recording, `gap` that minus the best cosine of all other recordings: below 0
for all but the first. That is Platt's scaling (1999) of two numbers, a logistic regression, fitted on the
first `RANKS` recordings of queries whose right answer is known. It is measured on queries that it was not
fitted on: the expected calibration error is the mean distance between confidence and share of right answers
over ten bins of confidence, weighted by their size (Naeini et al., 2015).

It holds for the index that it was made with, and for queries like those: in a larger index, more recordings
come close. What was found by words alone has no cosine, and no confidence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mllm.errors import ConfigError
from mllm.files import write_atomically
from mllm.search.moments import Hit

FILE = "confidence.json"  # in the folder of an index
RANKS = 5  # recordings of a query that are learned from
BINS = 10
FEWEST = 20  # queries
_PRIOR = 1e-4  # weight of the squares of the coefficients: keeps them finite where scores tell all
_STEPS = 100  # of Newton's method; it ends long before


@dataclass(frozen=True)
class Calibration:
    """The numbers of the formula, and how well it was measured to hold.

    Attributes:
        stamp: fingerprint of the model of the index.
        queries: number that it was fitted on.
        error: expected calibration error on queries that it was not fitted on.
        right: share of queries whose first recording was right.
    """

    bias: float
    of_score: float
    of_gap: float
    stamp: str
    queries: int
    error: float
    right: float

    def __call__(self, score: float | np.ndarray, gap: float | np.ndarray) -> np.ndarray:
        """The confidence, 0 to 1."""
        return _sigmoid(self.bias + self.of_score * np.asarray(score) + self.of_gap * np.asarray(gap))


@dataclass(frozen=True)
class Ranked:
    """The first recordings of one query: cosines, best first, and whether each is right."""

    scores: np.ndarray
    right: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """See the module; 0 of a recording that is alone."""
        if len(self.scores) < 2:
            return np.zeros(len(self.scores))
        return self.scores - np.where(np.arange(len(self.scores)) == 0, self.scores[1], self.scores[0])


def ranked(search: Callable[[str], Sequence[Hit]], captions: Mapping[str, set[str]]) -> list[Ranked]:
    """The first recordings of each caption.

    Args:
        search: the best windows of a text, best first.
        captions: sources of the recordings that a caption is right for, by caption.
    """
    found = []
    for caption, sources in captions.items():
        best: dict[str, Hit] = {}
        for hit in search(caption):
            best.setdefault(str(hit.item.id), hit)
        first = list(best.values())[: RANKS + 1]
        right = np.array([str(hit.item.source) in sources for hit in first], bool)
        found.append(Ranked(np.array([hit.score for hit in first]), right))
    return found


def calibrate(queries: Sequence[Ranked], stamp: str) -> tuple[Calibration, list[tuple[float, float, int]]]:
    """Fits the formula on every other query and measures it on the rest, then fits it on all.

    Returns:
        The formula, and the `bins` of the queries that it was measured on.

    Raises:
        ConfigError: for fewer than `FEWEST` queries.
    """
    queries = [one for one in queries if len(one.scores)]
    if len(queries) < FEWEST:
        raise ConfigError(f"{len(queries)} queries are too few to measure confidence: give {FEWEST} at least")
    told, right = predictions(_fit(queries[::2], stamp), queries[1::2])
    first = float(np.mean([one.right[0] for one in queries]))
    return replace(_fit(queries, stamp), error=expected_error(told, right), right=first), bins(told, right)


def predictions(calibration: Calibration, queries: Sequence[Ranked]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and truth of the first recording of each query."""
    scores = np.array([one.scores[0] for one in queries])
    gaps = np.array([one.gaps[0] for one in queries])
    return calibration(scores, gaps), np.array([one.right[0] for one in queries], bool)


def expected_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error, 0 to 1."""
    found = bins(confidence, right)
    return sum(abs(told - share) * count for told, share, count in found) / max(len(right), 1)


def bins(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, count) of each bin that has any, from low to high."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [place == one for one in np.unique(place)]
    return [(float(confidence[of].mean()), float(right[of].mean()), int(of.sum())) for of in members]


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


def _fit(queries: Sequence[Ranked], stamp: str) -> Calibration:
    """Logistic regression by Newton's method on standardised values, slightly regularised."""
    rows = [np.stack([one.scores, one.gaps], 1)[:RANKS] for one in queries]
    values = np.concatenate(rows)
    right = np.concatenate([one.right[:RANKS] for one in queries]).astype(float)
    mean, spread = values.mean(0), np.maximum(values.std(0), 1e-9)
    inputs = np.c_[np.ones(len(values)), (values - mean) / spread]
    found, prior = np.zeros(3), _PRIOR * len(right) * np.eye(3)
    for _ in range(_STEPS):
        told = _sigmoid(inputs @ found)
        slope = inputs.T @ (told - right) + prior @ found
        curve = (inputs * (told * (1 - told))[:, None]).T @ inputs + prior
        step = np.linalg.solve(curve, slope)
        found = found - step
        if np.abs(step).max() < 1e-8:
            break
    of_score, of_gap = (found[1:] / spread).tolist()
    bias = float(found[0] - found[1:] @ (mean / spread))
    return Calibration(bias, of_score, of_gap, stamp, len(queries), 0.0, 0.0)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))
