"""Answers to scores: per question type, group of types and overall, each beside three ways of not looking.

    majority  always the most frequent answer that this type has in the evaluated set
    prior     the most frequent training answer to this very question text: all that a text can give away
    blind     the same model, asked without the recordings

A caption is seldom word for word the same, so captions have a table of their own: token F1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm.scores import RECALL_AT, exact_match, majority_score, normalise, recall_at_k, token_f1

CAPTION = "caption"  # the group that is scored apart


@dataclass
class Answered:
    """One question with what was said to it; `blind` and `prior` are None where they were not asked for."""

    id: str
    type: str
    group: str
    question: str
    truth: str
    prediction: str = ""
    blind: str | None = None
    prior: str | None = None

    @property
    def right(self) -> bool:
        return exact_match(self.prediction, self.truth)


def score_table(rows: Sequence[Answered]) -> dict[str, Any]:
    """Scores of all rows that are not captions.

    Returns:
        {"overall": {…}, "groups": {name: {…}}, "types": {name: {…, "group"}}}, where {…} is
        {"count", "score", "majority", "prior", "blind"}; prior and blind are None where a row lacks them. The
        majority of a group or overall gives each type its own most frequent answer; a type whose answers are
        all one ("this recording has no sound.") has None and does not count: its name would be the answer.
    """
    rows = [row for row in rows if row.group != CAPTION]
    types = _by(rows, lambda row: row.type)
    majority = {
        name: majority_score(row.truth for row in of_type)
        for name, of_type in types.items()
        if len({normalise(row.truth) for row in of_type}) > 1
    }

    def scores(some: Sequence[Answered]) -> dict[str, Any]:
        return {
            "count": len(some),
            "score": _mean(row.right for row in some),
            "majority": _mean(majority[row.type] for row in some if row.type in majority),
            "prior": _mean_match((row.prior, row.truth) for row in some),
            "blind": _mean_match((row.blind, row.truth) for row in some),
        }

    return {
        "overall": scores(rows),
        "groups": {name: scores(some) for name, some in _by(rows, lambda row: row.group).items()},
        "types": {name: scores(some) | {"group": some[0].group} for name, some in types.items()},
    }


def caption_table(rows: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Per caption type {"count", "f1", "exact", "blind"}; blind is the F1 of the blind model, or None."""
    captions = _by((row for row in rows if row.group == CAPTION), lambda row: row.type)
    return {
        name: {
            "count": len(some),
            "f1": _mean(token_f1(row.prediction, row.truth) for row in some),
            "exact": _mean(row.right for row in some),
            "blind": _mean(token_f1(row.blind or "", row.truth) for row in some)
            if all(row.blind is not None for row in some)
            else None,
        }
        for name, some in captions.items()
    }


def retrieval_scores(
    media: np.ndarray, texts: np.ndarray, labels: Sequence[str], ks: Sequence[int] = RECALL_AT
) -> dict[str, Any]:
    """Recall both ways of media [clips, dim] and texts [clips, dim]; equal labels are each other's hits.

    Returns:
        {"clips", "distinct", "text_to_media": {"R@1", …, "median_rank"}, "media_to_text": {…}}.
    """
    return {
        "clips": len(labels),
        "distinct": len(set(labels)),
        "text_to_media": recall_at_k(texts @ media.T, labels, labels, ks),
        "media_to_text": recall_at_k(media @ texts.T, labels, labels, ks),
    }


class AnswerPrior:
    """The most frequent answer to each question text, learned from (question, answer) pairs."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            answers[normalise(question)][answer] += 1
        # Ties go to the alphabet, so that the number is the same on every run.
        self.best = {
            question: min(counts, key=lambda answer: (-counts[answer], answer))
            for question, counts in answers.items()
        }

    def __call__(self, question: str) -> str:
        """Its most frequent answer; "" for a question never seen."""
        return self.best.get(normalise(question), "")


def _by(rows: Iterable[Answered], key: Callable[[Answered], str]) -> Mapping[str, list[Answered]]:
    """Rows in groups, in order of first appearance."""
    groups: dict[str, list[Answered]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _mean_match(pairs: Iterable[tuple[str | None, str]]) -> float | None:
    pairs = list(pairs)
    if any(said is None for said, _ in pairs):
        return None
    return _mean(exact_match(said or "", truth) for said, truth in pairs)
