"""Score tables against answers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics import Answered, AnswerPrior, caption_table, retrieval_scores, score_table

ROWS = [
    #        id   type      group    question  truth    prediction  blind  prior
    Answered("1", "colour", "video", "what?", "red", "Red.", "red", "red"),
    Answered("2", "colour", "video", "what?", "red", "blue", "red", "red"),
    Answered("3", "colour", "video", "what?", "blue", "blue", "red", "red"),
    Answered("4", "shape", "video", "which?", "star", "star", "star", "circle"),
    Answered("5", "beeps", "audio", "count", "two", "three", "two", "two"),
    Answered("6", "caption_video", "caption", "say", "a red star", "a blue star", "a star", ""),
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
    rows = [Answered("1", "colour", "video", "what?", "red", "red")]
    assert score_table(rows)["overall"] == {
        "count": 1, "score": 1.0, "majority": None, "prior": None, "blind": None
    }  # fmt: skip
    assert score_table([])["overall"]["score"] is None


def test_majority_of_a_group_is_each_type_s_own():
    words = {
        "colour": ["red", "red", "blue", "green"],
        "shape": ["star", "star", "star", "circle"],
        "no_sound": ["no"] * 9,
    }
    rows = [Answered("", name, "video", "", truth) for name, truths in words.items() for truth in truths]
    assert score_table(rows)["overall"]["majority"] == pytest.approx((2 + 3) / 8)


def test_caption_table():
    (row,) = caption_table(ROWS).values()
    assert row["count"] == 1
    assert row["f1"] == pytest.approx(2 / 3)
    assert row["blind"] == pytest.approx(2 * 2 / 5)  # 2 of 2 and 2 of 3
    assert row["exact"] == 0.0


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
