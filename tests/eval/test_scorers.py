"""What answers score, by the kind of question."""

from __future__ import annotations

from typing import Any

import pytest

from eval.benchmark import Benchmark
from eval.question import Question
from eval.scorers import Answered, CaptionF1, Choice, ExactMatch, MomentIoU

OPTIONS = ["A. A cat sleeps.", "B. The dog runs."]


def question(*truths: str, **record: Any) -> Question:
    message = {"role": "user", "content": "What?\n" + "\n".join(record.get("options", ()))}
    return Question("1", [message], truths, record.get("task", "qa"), record)


def test_the_kind_of_question_decides():
    benchmark = Benchmark()
    assert type(benchmark.scorer(question("red"))) is ExactMatch
    assert type(benchmark.scorer(question("B", options=OPTIONS))) is Choice
    assert type(benchmark.scorer(question("a star", task="caption_video"))) is CaptionF1
    assert type(benchmark.scorer(question("00:01 to 00:02", query="a star", spans=[[1, 2]]))) is MomentIoU


@pytest.mark.parametrize("truth", ["B", "(b)", "B. The dog runs.", "The dog runs."])
@pytest.mark.parametrize(("answer", "score"), [("B", 1.0), ("the dog runs", 1.0), ("A", 0.0), ("A dog", 0.0)])
def test_a_letter_answers_a_choice(truth, answer, score):
    assert Choice().score(question(truth, options=OPTIONS), answer) == score


def test_the_majority_of_lettered_choices_is_a_letter():
    assert Choice().truth_key(question("The dog runs.", options=OPTIONS)) == "B"
    assert Choice().truth_key(question("Right.", options=["left", "right"])) == "right"


def test_a_truth_that_is_no_option_needs_an_exact_match():
    asked = question("both", options=["left", "right"])
    assert [Choice().score(asked, answer) for answer in ("Both.", "left")] == [1.0, 0.0]


def test_captions_count_with_the_reference_that_fits_best():
    asked = question("a red star", "a star that is red", task="caption")
    assert CaptionF1().score(asked, "a star that is red") == 1.0
    assert CaptionF1().score(asked, "a red") == pytest.approx(2 * 2 / 5)
    rows = [Answered(asked, CaptionF1(), "caption", answer) for answer in ("A red star.", "a red")]
    assert CaptionF1().measures(rows) == {"f1": pytest.approx(0.9), "exact": 0.5}


def test_a_record_gives_all_captions_that_its_answer_is_one_of():
    record = {
        "messages": [{"role": "user", "content": "Describe."}, {"role": "assistant", "content": "a star"}],
        "task": "caption",
        "captions": {"video": ["a red star", "a star"], "audio": ["a bell"]},
    }
    assert Question.of(record).truths == ("a star", "a red star")


def test_moments_score_their_overlap():
    asked = question("00:00 to 00:04", query="a star", spans=[[0, 4]], task="moments")
    answers = ("00:00 to 00:04", "00:00 to 00:02", "00:00 to 00:10", "never")
    rows = [Answered(asked, MomentIoU(), "moments", answer) for answer in answers]
    assert [row.right for row in rows] == [True, True, False, False]
    assert MomentIoU().measures(rows) == {
        "mIoU": pytest.approx((1 + 0.5 + 0.4) / 4),
        "R1@0.3": 0.75,
        "R1@0.5": 0.5,
        "R1@0.7": 0.25,
    }
