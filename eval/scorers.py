"""Scorers, one for each kind of question.

    exact match   right or wrong, after `mllm.scores.normalise`
    choice        right or wrong, by letter or text of the options (`eval.choices`)
    captions      token F1 with the best-matching reference
    moments       temporal IoU; R1@m is the share of queries whose first span overlaps a true one by m or more

`Benchmark.scorer` picks one for each question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from eval.choices import Options
from eval.moments import first_iou
from eval.question import Question
from mllm.scores import exact_match, normalise, token_f1, word_errors

OVERLAPS = (0.3, 0.5, 0.7)


class Scorer:
    """Scores answers to one kind of question.

    Attributes:
        table: the report table of its question types. "" is the main table, of right and wrong answers; any
            other table has no groups and shows `measures`.
    """

    table = ""

    def score(self, question: Question, answer: str) -> float:
        """The score of an answer, 0.0 to 1.0."""
        raise NotImplementedError

    def right(self, question: Question, answer: str) -> bool:
        """Whether an answer counts as right."""
        return self.score(question, answer) == 1.0

    def truth_key(self, question: Question) -> str | None:
        """The answer under which the majority baseline counts a question; None if it has no such baseline."""
        return None

    def measures(self, rows: Sequence[Answered]) -> dict[str, float]:
        """Further metrics over all answers of one type, by name.

        The main table shows them beside the score; in any other table the first must be the mean score.
        """
        return {}


@dataclass(frozen=True)
class Answered:
    """A question with its answers; `blind` and `prior` are None if not available."""

    question: Question
    scorer: Scorer
    group: str
    prediction: str = ""
    blind: str | None = None
    prior: str | None = None
    score: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", self.scorer.score(self.question, self.prediction))

    @property
    def right(self) -> bool:
        return self.scorer.right(self.question, self.prediction)


class ExactMatch(Scorer):
    """Right if the answer is one of the truths."""

    def score(self, question: Question, answer: str) -> float:
        return float(any(exact_match(answer, truth) for truth in question.truths))

    def truth_key(self, question: Question) -> str:
        return normalise(question.truth)


class Choice(ExactMatch):
    """Right if the answer selects the true option; exact match if the truth is not among the options."""

    def score(self, question: Question, answer: str) -> float:
        options = Options.of(question.options, question.text)
        right = options.chosen(question.truth)
        if right is None:
            return super().score(question, answer)
        chosen = options.chosen(answer)
        # Two options may have the same text.
        return float(chosen is not None and options.texts[chosen] == options.texts[right])

    def truth_key(self, question: Question) -> str:
        options = Options.of(question.options, question.text)
        right = options.chosen(question.truth)
        return (
            options.letters[right] if options.letters and right is not None else super().truth_key(question)
        )


class CaptionF1(Scorer):
    """Token F1 (Rajpurkar et al., 2016, arXiv:1606.05250) with the best-matching reference."""

    table = "captions"

    def score(self, question: Question, answer: str) -> float:
        return max(token_f1(answer, truth) for truth in question.truths)

    def right(self, question: Question, answer: str) -> bool:
        return any(exact_match(answer, truth) for truth in question.truths)

    def measures(self, rows: Sequence[Answered]) -> dict[str, float]:
        return {"f1": fmean(row.score for row in rows), "exact": fmean(row.right for row in rows)}


class WordErrors(Scorer):
    """Words of a transcript: the score is 1 less the word error rate, at least 0."""

    table = "transcripts"

    def score(self, question: Question, answer: str) -> float:
        errors, words = word_errors(answer, question.truth)
        return max(0.0, 1 - errors / max(words, 1))

    def measures(self, rows: Sequence[Answered]) -> dict[str, float]:
        errors, words = map(
            sum, zip(*(word_errors(row.prediction, row.question.truth) for row in rows), strict=True)
        )
        return {"words": fmean(row.score for row in rows), "wer": errors / max(words, 1)}


class MomentIoU(Scorer):
    """Temporal IoU of the first predicted span; right from 0.5."""

    table = "moments"

    def score(self, question: Question, answer: str) -> float:
        return first_iou(answer, question.spans)

    def right(self, question: Question, answer: str) -> bool:
        return self.score(question, answer) >= 0.5

    def measures(self, rows: Sequence[Answered]) -> dict[str, float]:
        recall = {f"R1@{least}": fmean(row.score >= least for row in rows) for least in OVERLAPS}
        return {"mIoU": fmean(row.score for row in rows)} | recall
