"""Which option an answer chooses, in the ways that people and models write it."""

from __future__ import annotations

import pytest

from eval.choices import Options

LETTERED = ["A. A dog.", "B. The dog runs.", "C. Nobody notices.", "D. It is based on a true story."]
DOG = Options.of(LETTERED)


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "b.",
        "B)",
        "(B)",
        "[b]",
        " B. ",
        "**B**",
        "B:",
        "B. The dog runs.",
        "(B) the dog runs",
        "b) The dog runs!",
        "B the dog runs",
        "The dog runs.",
        "the dog runs",
        "B. The dog is running.",  # its letter, in other words
        "Answer: B",
        "Answer: (b).",
        "Answer:B",
        "The answer is B.",
        "The correct answer is (B).",
        "The correct answer is (B) The dog runs.",
        "The correct answer is **B**.",
        "The answer is: the dog runs.",
        "Option B",
        "I choose B.",
        "B, because the dog runs.",
        "B because it moves.",
        "B\n\nThe dog is seen running.",
        "A dog is seen. It moves fast.\nAnswer: B",
        "At first the answer is A. No, the answer is B.",
        "It must be (B), judging by the legs.",
    ],
)
def test_common_writings_of_a_choice(answer):
    assert DOG.chosen(answer) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A cat",  # no A
        "The answer is a cat",
        "Based on the video, nothing runs.",  # no B
        "The correct answer is unclear.",  # no T
        "E",
        "(E)",
        "none of them",
        "B. A dog.",  # contradicts itself
        "(A) or (B)",
        "A, B",
        "B/C",
        "Do you mean C major?",
    ],
)
def test_what_chooses_nothing(answer):
    assert DOG.chosen(answer) is None


def test_a_word_is_read_as_the_option_that_it_is():
    assert DOG.chosen("A dog") == 0
    assert DOG.chosen("a dog.") == 0
    assert DOG.chosen("A") == 0
    assert DOG.chosen("Nobody notices.") == 2
    assert Options.of(["A. a cat", "B. a dog", "C. A and B"]).chosen("A and B") == 2
    keys = Options.of(["A) C major", "B) D minor"])
    assert keys.chosen("C major") == 0
    assert keys.chosen("D minor") == 1


@pytest.mark.parametrize(
    "options",
    [["(a) left", "(b) right"], ["A: left", "B: right"], ["1. left", "2. right"], ["0) left", "1) right"]],
)
def test_letters_and_numbers_of_options(options):
    found = Options.of(options)
    assert found.texts == ("left", "right")
    label = found.letters[1]
    assert [found.chosen(answer) for answer in (label, f"({label})", "right", f"Answer: {label}")] == [1] * 4


def test_letters_that_only_the_prompt_shows():
    shown = Options.of(["left", "right"], "Where does it go?\n(A) left\n(B) right")
    assert shown.chosen("B") == 1
    hidden = Options.of(["left", "right"], "Where does it go: left, right?")
    assert hidden.letters == ()
    assert hidden.chosen("B") is None
    assert hidden.chosen("Right.") == 1


def test_options_without_letters_are_never_found_inside_other_words():
    options = Options.of(["yes", "no"])
    assert options.chosen("I notice it") is None
    assert options.chosen("The answer is no.") == 1
    assert options.chosen("**Yes**") == 0
    assert Options.of(["5", "-5"]).chosen("The answer is -5.") == 1


def test_letters_go_before_options_that_look_like_one():
    assert Options.of(["A. b", "B. a"]).chosen("B") == 1
    assert Options.of(["1. 2", "2. 1"]).chosen("2") == 1
    assert Options.of(["2", "1"]).chosen("2") == 0
