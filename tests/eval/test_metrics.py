"""Score tables against answers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from eval.benchmark import Benchmark
from eval.metrics import AnswerPrior, other_tables, retrieval_scores, score_table
from eval.question import Question
from eval.scorers import Answered, Choice


def answered(type, group, truth, prediction="", blind=None, prior=None, **record):
    question = Question("", [{"role": "user", "content": "what?"}], (truth,), type, record)
    return Answered(question, Benchmark().scorer(question), group, prediction, blind, prior)


ROWS = [
    #        type      group    truth    prediction  blind  prior
    answered("colour", "video", "red", "Red.", "red", "red"),
    answered("colour", "video", "red", "blue", "red", "red"),
    answered("colour", "video", "blue", "blue", "red", "red"),
    answered("shape", "video", "star", "star", "star", "circle"),
    answered("beeps", "audio", "two", "three", "two", "two"),
    answered("caption_video", "caption", "a red star", "a blue star", "a star", ""),
]


def test_score_table():
    table = score_table(ROWS)
    assert table["types"]["colour"] == {
        "count": 3,
        "score": pytest.approx(2 / 3),
        "majority": pytest.approx(2 / 3),
        "prior": pytest.approx(2 / 3),
        "blind": pytest.approx(2 / 3),
        "group": "video",
    }
    video = table["groups"]["video"]
    assert video["count"] == 4
    assert video["score"] == pytest.approx(3 / 4)
    assert table["types"]["shape"]["majority"] is None  # one row has one answer
    assert video["majority"] == pytest.approx(2 / 3)
    assert video["prior"] == pytest.approx(2 / 4)
    assert table["overall"]["count"] == 5  # the caption is scored apart
    assert table["overall"]["score"] == pytest.approx(3 / 5)
    assert table["overall"]["blind"] == pytest.approx(4 / 5)
    assert list(table["groups"]) == ["video", "audio"]


def test_what_was_not_asked_for_is_none():
    rows = [answered("colour", "video", "red", "red")]
    assert score_table(rows)["overall"] == {
        "count": 1, "score": 1.0, "majority": None, "prior": None, "blind": None
    }  # fmt: skip
    assert score_table([])["overall"]["score"] is None


def test_where_each_question_lists_other_options_the_majority_is_a_guess_among_them():
    things = ["cup", "lamp", "fan", "chair"]
    rows = [answered("object", "picture", thing, thing, options=[thing, f"no {thing}"]) for thing in things]
    assert score_table(rows)["types"]["object"]["majority"] == 1 / 2  # and not 1 / 4


def test_majority_of_a_group_is_each_type_s_own():
    words = {
        "colour": ["red", "red", "blue", "green"],
        "shape": ["star", "star", "star", "circle"],
        "no_sound": ["no"] * 9,
    }
    rows = [answered(name, "video", truth) for name, truths in words.items() for truth in truths]
    assert score_table(rows)["overall"]["majority"] == pytest.approx((2 + 3) / 8)


def test_captions_and_moments_have_tables_of_their_own():
    moment = answered("moments", "moments", "0 to 4", "0 to 2", query="a star", spans=[[0, 4]])
    tables = other_tables([*ROWS, moment])
    assert tables["moments"]["moments"] == {
        "count": 1, "mIoU": 0.5, "R1@0.3": 1.0, "R1@0.5": 1.0, "R1@0.7": 0.0, "blind": None
    }  # fmt: skip
    assert score_table([*ROWS, moment])["overall"]["count"] == 5
    (row,) = tables["captions"].values()
    assert row["count"] == 1
    assert row["f1"] == pytest.approx(2 / 3)
    assert row["blind"] == pytest.approx(2 * 2 / 5)  # 2 of 2 and 2 of 3
    assert row["exact"] == 0.0


def test_a_scorer_adds_measures_of_a_whole_type():
    """Such as the unweighted average recall of label sets: by label, then over labels."""

    class Labels(Choice):
        def measures(self, rows):
            labels = {row.question.truth for row in rows}
            of_label = [[row.score for row in rows if row.question.truth == label] for label in labels]
            return {"uar": sum(sum(scores) / len(scores) for scores in of_label) / len(labels)}

    question = answered("emotion", "other", "sad", options=["sad", "glad"]).question
    other = answered("emotion", "other", "glad", options=["sad", "glad"]).question
    rows = [Answered(asked, Labels(), "other", "sad") for asked in (question, question, question, other)]
    emotion = score_table(rows)["types"]["emotion"]
    assert (emotion["score"], emotion["uar"]) == (0.75, 0.5)


def test_answer_prior():
    prior = AnswerPrior(
        [
            ("What colour?", "red"),
            ("what colour?", "red"),
            ("what colour?", "blue"),
            ("how?", "b"),
            ("how?", "a"),
        ]
    )
    assert prior("what  COLOUR?") == "red"
    assert prior("how?") == "a"  # a tie goes to the alphabet
    assert prior("never heard?") == ""


def test_retrieval_goes_both_ways():
    media = np.eye(3)[[0, 1, 2]]
    texts = np.eye(3)[[0, 2, 1]] + [[0, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]
    scores = retrieval_scores(media, texts, ["a", "b", "c"])
    assert scores["text_to_media"]["R@1"] == pytest.approx(1 / 3)
    assert scores["media_to_text"]["R@1"] == pytest.approx(1 / 3)
    assert scores["media_to_text"]["R@5"] == 1.0
    assert (scores["clips"], scores["distinct"]) == (3, 3)
    assert retrieval_scores(media, texts, ["a", "b", "b"])["text_to_media"]["R@1"] == 1.0


def test_every_caption_of_a_clip_is_a_query_and_any_of_them_is_a_hit():
    media, texts = np.eye(2), np.array([[1, 0.0], [0, 1], [0, 1]])  # the second caption of clip 0 fits clip 1
    scores = retrieval_scores(media, texts, [0, 1], [0, 0, 1])
    assert scores["text_to_media"]["R@1"] == pytest.approx(2 / 3)
    assert scores["media_to_text"]["R@1"] == 0.5  # the two captions of clip 1's vector tie: none is first
