"""Scores against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mllm.scores import exact_match, majority_score, normalise, recall_at_k, token_f1, word_errors


@pytest.mark.parametrize(
    ("prediction", "truth", "right"),
    [
        ("red", "red", True),
        ("  Red.\n", "red", True),
        ("a  red\tstar.", "A red star", True),
        ("“red”", "red", True),
        ("00:02", "00:02", True),
        ("00:02", "00:20", False),
        ("redd", "red", False),
        ("red star", "red", False),
        ("", "", False),
        ("", "red", False),
        ("…", "", False),
        ("ｒｅｄ", "red", True),  # full-width letters
        ("(yes)", "yes", True),
        ("[Yes]", "yes", True),
        ("«yes»", "yes", True),
        ("「はい」。", "はい", True),
        ("¿sí?", "sí", True),
        ("yes:", "yes", True),
        ("**Yes.**", "yes", True),
        ("*yes*", "yes", True),
        ("__yes__", "yes", True),
        ("~~yes~~", "yes", True),
        ("# yes", "yes", True),
        ("- yes", "yes", True),
        ("— yes —", "yes", True),
        ("\u200byes\ufeff", "yes", True),
        ("yes/no", "yes", False),
        ("-5", "5", False),
        ("(-5)", "-5", True),
        (".5", "5", False),
        ("…5", "5", True),
        ("-.5", ".5", False),
        ("don\u2019t", "don't", True),
        ("\u22125", "-5", True),
        ("\u22125", "5", False),
        ("50%.", "50%", True),
        ("50%", "50", False),
        ("c#", "c", False),
        ("**C#**", "c#", True),
        ("#3", "3", False),
        ("c++", "c", False),
        ("$5", "5", False),
        ("{}", "", False),
    ],
)
def test_exact_match(prediction, truth, right):
    assert exact_match(prediction, truth) is right


def test_normalise_keeps_what_stands_inside():
    assert normalise(" It's 00:02, I said! ") == "it's 00:02, i said"


def test_token_f1():
    assert token_f1("a red star", "a red star.") == 1.0
    assert token_f1("a blue star", "a red star") == pytest.approx(2 / 3)  # 2 of 3 and 2 of 3
    assert token_f1("star", "a red star") == pytest.approx(0.5)  # 1 of 1 and 1 of 3
    assert token_f1("red red red", "red") == pytest.approx(0.5)  # counted once
    assert token_f1("", "red") == 0.0
    assert token_f1("", "") == 1.0


def test_majority():
    assert majority_score(["Red.", "red", "blue"]) == pytest.approx(2 / 3)
    assert majority_score([]) == 0.0


def test_recall_counts_equal_labels_and_ranks_ties_last():
    similarity = np.array(
        [
            [0.9, 0.1, 0.2, 0.0],  # own item first
            [0.8, 0.5, 0.7, 0.1],  # item 1 third, but item 2 has the same label: second
            [0.5, 0.5, 0.5, 0.5],  # all equal: items 1 and 2 are right, the two others rank before: third
            [0.9, 0.8, 0.7, 0.6],  # last
        ]
    )
    labels = ["a", "b", "b", "c"]
    scores = recall_at_k(similarity, labels, labels, ks=(1, 2, 3, 4))
    assert scores == {"R@1": 0.25, "R@2": 0.5, "R@3": 0.75, "R@4": 1.0, "median_rank": 2.5}


def test_recall_of_a_broken_space_is_zero():
    labels = list(range(20))
    assert recall_at_k(np.zeros((20, 20)), labels, labels)["R@10"] == 0.0
    assert recall_at_k(np.full((20, 20), np.nan), labels, labels)["R@10"] == 0.0
    assert recall_at_k(np.eye(3), ["a", "b", "x"], ["a", "b", "c"], ks=(1, 3))["R@3"] == pytest.approx(2 / 3)
    assert recall_at_k(np.zeros((0, 0)), [], [])["R@1"] == 0.0
    with pytest.raises(ValueError, match="2 queries and 3 items"):
        recall_at_k(np.eye(3), ["a", "b"], ["a", "b", "c"])


def test_recall_equals_sorting():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(50, 50)) + np.eye(50)
    labels = rng.integers(0, 40, 50).tolist()
    found = recall_at_k(similarity, labels, labels)
    for k in (1, 5, 10):
        top = np.argsort(-similarity, axis=1)[:, :k]
        hits = [labels[i] in [labels[j] for j in row] for i, row in enumerate(top)]
        assert found[f"R@{k}"] == pytest.approx(np.mean(hits))


def test_word_errors_are_the_least_changes():
    assert word_errors("bin blue at F two now.", "Bin blue at f two now") == (0, 6)
    assert word_errors("bin red at two", "bin blue at f two now") == (3, 6)
    assert word_errors("", "two words") == (2, 2)
    assert word_errors("two words more", "") == (3, 0)
