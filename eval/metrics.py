"""Score tables per question type, per group and overall, with three baselines that ignore the recordings.

    majority  the most frequent answer to this type in the evaluated set, or any of the options where that is
              right more often, as where each question lists others
    prior     the most frequent training answer to the same question text: what the text alone gives away
    blind     the same model without the recordings

Answers without a right or wrong (captions, transcripts, moments) have separate tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.scorers import Answered
from mllm.scores import RECALL_AT, normalise, recall_at_k


def score_table(rows: Sequence[Answered]) -> dict[str, Any]:
    """Scores of all rows that are either right or wrong.

    Returns:
        {"overall": {…}, "groups": {name: {…}}, "types": {name: {…, "group"}}}, where {…} is
        {"count", "score", "majority", "prior", "blind"}; prior and blind are None if a row lacks them. For a
        group and overall, the majority uses the most frequent answer of each type. It is None, and not
        counted, for a type with a single answer ("this recording has no sound."), which is trivial to guess.
    """
    rows = [row for row in rows if not row.scorer.table]
    types = _by(rows, lambda row: row.question.type)
    majority = {name: share for name, some in types.items() if (share := _majority(some)) is not None}

    def scores(some: Sequence[Answered]) -> dict[str, Any]:
        known = [majority[row.question.type] for row in some if row.question.type in majority]
        return {
            "count": len(some),
            "score": _mean(row.score for row in some),
            "majority": _mean(known),
            "prior": _mean_score(some, lambda row: row.prior),
            "blind": _mean_score(some, lambda row: row.blind),
        }

    return {
        "overall": scores(rows),
        "groups": {name: scores(some) for name, some in _by(rows, lambda row: row.group).items()},
        "types": {
            name: scores(some) | {"group": some[0].group} | some[0].scorer.measures(some)
            for name, some in types.items()
        },
    }


def other_tables(rows: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Table ("captions", "moments", …) -> type -> {"count", the measures of its scorer, "blind"}.

    Blind is the mean score of the blind model, or None.
    """
    tables: dict[str, dict[str, Any]] = {"captions": {}}
    for table, some in _by((row for row in rows if row.scorer.table), lambda row: row.scorer.table).items():
        tables[table] = {
            name: {"count": len(of_type)}
            | of_type[0].scorer.measures(of_type)
            | {"blind": _mean_score(of_type, lambda row: row.blind)}
            for name, of_type in _by(some, lambda row: row.question.type).items()
        }
    return tables


def retrieval_scores(
    media: np.ndarray,
    texts: np.ndarray,
    media_labels: Sequence[Hashable],
    text_labels: Sequence[Hashable] | None = None,
    ks: Sequence[int] = RECALL_AT,
) -> dict[str, Any]:
    """Recall in both directions of media [clips, dim] and texts [captions, dim]; equal labels match.

    Args:
        text_labels: None means one caption for each clip, with its label.

    Returns:
        {"clips", "distinct", "text_to_media": {"R@1", …, "median_rank"}, "media_to_text": {…}}.
    """
    text_labels = media_labels if text_labels is None else text_labels
    return {
        "clips": len(media_labels),
        "distinct": len(set(media_labels)),
        "text_to_media": recall_at_k(texts @ media.T, text_labels, media_labels, ks),
        "media_to_text": recall_at_k(media @ texts.T, media_labels, text_labels, ks),
    }


def interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    draws: int = 2000,
) -> tuple[float, float]:
    """95 % interval of a weighted mean, by a bootstrap over clusters (Efron and Tibshirani, 1993).

    Answers about one speaker or one recording are no independent draws, so whole clusters are drawn. Where
    all answers are right, or all wrong, nothing varies: the open end is then the binomial one of as many
    clusters.

    Args:
        values: what is averaged, such as 1.0 for a right answer, or word errors.
        clusters: one a value.
        weights: one a value, such as the words of a transcript; by default 1.
    """
    weights = [1.0] * len(values) if weights is None else weights
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((2, len(number)))
    for value, weight, cluster in zip(values, weights, clusters, strict=True):
        sums[:, number[cluster]] += value, weight
    if len(set(values)) == 1 and values[0] in (0.0, 1.0) and set(weights) == {1.0}:
        open_end = 0.025 ** (1 / len(number))
        return (open_end, 1.0) if values[0] else (0.0, 1 - open_end)
    picked = np.random.default_rng(0).integers(0, len(number), (draws, len(number)))
    drawn = sums[:, picked].sum(-1)
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(low), float(high)


class AnswerPrior:
    """The most frequent answer to each question text, learned from (question, answer) pairs."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            answers[normalise(question)][answer] += 1
        # Ties are broken alphabetically, for reproducible scores.
        self.best = {
            question: min(counts, key=lambda answer: (-counts[answer], answer))
            for question, counts in answers.items()
        }

    def __call__(self, question: str) -> str:
        """The most frequent answer; "" for an unseen question."""
        return self.best.get(normalise(question), "")


def _by(rows: Iterable[Answered], key: Callable[[Answered], str]) -> Mapping[str, list[Answered]]:
    """Groups rows by key, in order of first appearance."""
    groups: dict[str, list[Answered]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _majority(rows: Sequence[Answered]) -> float | None:
    """Share of the most frequent truth, or of chance; None unless there are at least two different truths."""
    keys = [row.scorer.truth_key(row.question) for row in rows]
    counts = Counter(key for key in keys if key is not None)
    if len(counts) < 2:
        return None
    options = [len(row.question.options) for row in rows]
    chance = sum(1 / many for many in options if many) / len(options)
    return max(max(counts.values()) / len(keys), chance)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _mean_score(rows: Sequence[Answered], answer: Callable[[Answered], str | None]) -> float | None:
    """Mean score of alternative answers to the same questions; None if any is missing."""
    scores = []
    for row in rows:
        if (text := answer(row)) is None:
            return None
        scores.append(row.scorer.score(row.question, text))
    return _mean(scores)
