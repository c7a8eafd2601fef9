"""Aligns two sequences: offset, drift, path, and how sure all of that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm.errors import ConfigError
from mllm.search.alignment import paths
from mllm.search.alignment.fit import Line, robust_line
from mllm.search.alignment.lags import LagCurve, lag_curve, parabola
from mllm.search.alignment.paths import METHODS, Method
from mllm.search.alignment.sequence import Sequence

PATH_RATE = 25.0  # steps/s, at most, of a path
CELLS = 4_000_000  # of the warping matrix
BAND = 10  # blocks
SEARCHED = 1.2  # blocks around the path, in which the offset of a stretch lies
SURE = 0.5  # confidence below which an alignment is unsure


@dataclass(frozen=True)
class Alignment:
    """How the second of two sides lies against the first.

    Attributes:
        first, second: their names.
        line: offset (s) and drift (ppm), robust and finer than the path.
        score: standard score of the best offset.
        support: evidence from one block to the next, as a t-statistic: how evenly the fit is spread.
        confidence: that the offset is right, 0 to 1.
        path: float64 [points, 2] s, in the first and in the second, rising.
        curve: scores by offset.
        between, level, features, method: what was compared, and how.
        matched, events: how many events were paired, and how many there are on each side (level `event`).
        lines: of a text without times, with the times at which they are heard.

    A text without times has neither line nor curve; its score is the share of its words that are heard, and
    the second column of its path is the number of a word.
    """

    first: str
    second: str
    line: Line | None
    score: float
    support: float
    confidence: float
    path: np.ndarray
    curve: LagCurve | None
    between: str = ""
    level: str = ""
    features: str = ""
    method: str = ""
    matched: int | None = None
    events: tuple[int, int] | None = None
    lines: tuple[dict[str, Any], ...] | None = None

    @property
    def offset(self) -> float | None:
        """By how much the second is late, s; negative if it is early."""
        return None if self.line is None else self.line.offset

    @property
    def drift(self) -> float | None:
        """By how much the second runs slower, parts per million; 0 unless beyond doubt."""
        return None if self.line is None else self.line.drift

    @property
    def evidence(self) -> float | None:
        """What the confidence is made of: the lead of the best offset or the support, whichever is less."""
        return None if self.curve is None else min(self.curve.lead, self.support)

    @property
    def unsure(self) -> bool:
        return self.confidence < SURE

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in s, drift in parts per million."""
        numbers: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("first", "second", "between", "level", "features", "method")
        }
        if self.line is not None:
            numbers |= {"offset": _rounded(self.line.offset), "drift": _rounded(self.line.drift)}
            numbers["drift_error"] = _rounded(self.line.error)
        numbers |= {name: _rounded(getattr(self, name)) for name in ("confidence", "score", "support")}
        numbers["unsure"] = self.unsure
        for name in ("matched", "events", "lines"):
            if (value := getattr(self, name)) is not None:
                numbers[name] = value
        numbers["path"] = [[round(float(one), 3), round(float(other), 3)] for one, other in self.path]
        return numbers


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


@dataclass(frozen=True)
class Calibration:
    """Confidence from evidence, by a logistic curve: `1 / (1 + exp(-slope · (evidence - middle)))`.

    `mllm bench align` fits the numbers (`mllm.search.platt`).
    """

    middle: float = 3.2
    slope: float = 4.0

    def confidence(self, evidence: float) -> float:
        return 1 / (1 + math.exp(min(60.0, -self.slope * (evidence - self.middle))))


@dataclass(frozen=True)
class Search:
    """How an alignment is searched for.

    Attributes:
        method: how the path is found (see `paths`).
        band: s by which the path may leave the straight line; by default BAND blocks (`Sequence.block`), and
            no more than a tenth of the overlap.
        limit: s, the largest offset that is tried; by default any.

    Raises:
        ConfigError: for an unknown method, or a number that is not above 0.
    """

    method: Method = "dtw"
    band: float | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"no method '{self.method}': choose from {', '.join(METHODS)}")
        for name, value in (("band", self.band), ("limit", self.limit)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value:g} s: give a number above 0")


def align_sequences(
    first: Sequence, second: Sequence, search: Search = Search(), calibration: Calibration = Calibration()
) -> Alignment:
    """Aligns two sequences of one rate.

    Raises:
        MediaError: if they are too short, or the limit leaves no offset.
    """
    curve = lag_curve(first, second, search.limit)
    one, other = overlap(first, second, curve.offset)
    support = support_of(one, other)
    path = path_of(one, other, search)
    line = line_of(first, second, path, curve.offset)
    confidence = calibration.confidence(min(curve.lead, support))
    return Alignment(first.name, second.name, line, curve.score, support, confidence, path, curve)


def overlap(first: Sequence, second: Sequence, offset: float) -> tuple[Sequence, Sequence]:
    """The stretches of two sequences that belong together at an offset (s), of equal length."""
    lag = round((offset - second.start + first.start) * first.rate)
    begin, end = max(0, -lag), min(len(first), len(second) - lag)
    return first.cut(begin, end), second.cut(begin + lag, end + lag)


def support_of(first: Sequence, second: Sequence) -> float:
    """A t-statistic of the fit of two stretches, block by block: few blocks, or one that outweighs all, are
    little support, however well they fit."""
    products = np.einsum("td,td->t", first.vectors, second.vectors, dtype=np.float64)
    width = max(1, round(first.block * first.rate))
    blocks = np.add.reduceat(products, np.arange(0, len(products), width))
    return float(blocks.sum() / max(np.sqrt((blocks**2).sum()), 1e-12))


def path_of(first: Sequence, second: Sequence, search: Search) -> np.ndarray:
    """The path between two stretches of equal length: float64 [points, 2] s."""
    band = search.band or min(BAND * first.block, first.seconds / 10)
    thin = max(1, math.floor(first.rate / PATH_RATE))
    while len(first) / thin * (2 * band * first.rate / thin + 1) > CELLS:
        thin += 1
    one, other = first.pooled(thin), second.pooled(thin)
    steps = max(1, min(round(band * one.rate), len(one) - 1))
    find = {"dtw": paths.dtw, "attention": paths.attention, "hybrid": paths.hybrid}[search.method]
    found = find(one, other, steps)
    return np.stack([one.start + found[:, 0] / one.rate, other.start + found[:, 1] / other.rate], axis=1)


def line_of(first: Sequence, second: Sequence, path: np.ndarray, offset: float) -> Line:
    """The line through local offsets, at the full rate of the sequences.

    They are searched around the line of the path, or around a constant offset (s), whichever fits better.
    """
    along = robust_line(path[:, 0], path[:, 1] - path[:, 0], np.ones(len(path)), 1 / PATH_RATE)
    searched = [(rough, _local_offsets(first, second, rough)) for rough in (along, Line(offset))]
    rough, (times, offsets, weights) = max(searched, key=lambda one: one[1][2].sum())
    if not len(times):
        return rough
    return robust_line(times, offsets, weights, 0.25 / first.rate)


def _local_offsets(
    first: Sequence, second: Sequence, rough: Line
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each stretch of the first, half of it shared with the next, where the second fits best.

    Returns:
        Middles of stretches (s), offsets (s) and how well they fit, float64 [stretches] each; without the
        stretches that fit nowhere within SEARCHED blocks of the rough line.
    """
    width, reach = first.local, max(2, round(SEARCHED * first.block * first.rate))
    found = []
    for start in range(0, len(first) - width + 1, max(1, width // 2)):
        middle = first.start + (start + width / 2) / first.rate
        expected = float(rough.at(np.array(middle))) - second.start + first.start
        begin = start + round(expected * first.rate) - reach
        if begin < 0 or begin + width + 2 * reach > len(second):
            continue
        searched = second.vectors[begin : begin + width + 2 * reach]
        windows = np.lib.stride_tricks.sliding_window_view(searched, width, axis=0)
        scores = np.einsum("td,ldt->l", first.vectors[start : start + width], windows, optimize=True)
        best = int(scores.argmax())
        if scores[best] > 0 and 0 < best < len(scores) - 1:
            shift = (begin - start + best + parabola(scores, best)) / first.rate
            found.append((middle, shift + second.start - first.start, float(scores[best])))
    times, offsets, weights = np.array(found).reshape(-1, 3).T
    return times, offsets, weights
