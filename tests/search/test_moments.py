"""Moments: how neighbouring hits of one list, and overlapping ones of several, become one."""

from __future__ import annotations

import pytest

from mllm.search.items import Item
from mllm.search.moments import RANKS, Hit, HitList, by_item, fuse
from mllm.search.words import Matched, WantedWords


def hit(item: str, start: float, score: float, modality: str = "both", seconds: float = 2.0, **more) -> Hit:
    text = {"text": "words"} if modality in ("said", "written") else {}
    place = f"{item}:{modality}:{start}"
    return Hit(place, Item(id=item), modality, start, start + seconds, score, **text | more)


def in_order(*hits: Hit, weight: float = 1.0) -> HitList:
    return HitList(sorted(hits, key=lambda hit: -hit.score), weight)


def spans(moments) -> list[tuple[str, float, float]]:
    return [(str(moment.item.id), moment.start, moment.end) for moment in moments]


def test_neighbours_of_a_hit_are_one_moment():
    scores = {0: 0.1, 2: 0.1, 4: 0.75, 6: 0.9, 8: 0.8, 10: 0.2, 12: 0.1}
    found = fuse([in_order(*(hit("a", start, score) for start, score in scores.items()))])
    assert spans(found)[0] == ("a", 4, 10)
    assert (found[0].score, found[0].matches[0].start) == (0.9, 6)
    assert spans(found)[1] == ("a", 10, 12)
    assert found[0].worth == pytest.approx(1 / (RANKS + 1))


def test_a_line_of_text_is_a_moment_of_its_own():
    """Also where all lines are alike, as they are to a model that knows little of language."""
    words = in_order(hit("a", 4, 9.0, "said"), hit("a", 6, 8.9, "said"))
    meaning = in_order(*(hit("a", 2 * i, 0.9 - i / 1000, "said") for i in range(10)), weight=0.5)
    assert spans(fuse([words, meaning]))[:2] == [("a", 4, 6), ("a", 6, 8)]


def test_a_recording_that_is_all_alike_is_one_moment():
    assert spans(fuse([in_order(*(hit("a", 2 * i, 0.9 - i / 1000) for i in range(30)))])) == [("a", 0, 60)]


def test_what_lies_apart_stays_apart():
    found = fuse([in_order(hit("a", 0, 0.9), hit("a", 4, 0.9), hit("b", 2, 0.9), hit("c", 0, 0.1))])
    assert spans(found) == [("a", 0, 2), ("a", 4, 6), ("b", 2, 4), ("c", 0, 2)]
    assert spans(by_item(found)[0]) == [("a", 0, 2), ("a", 4, 6)]


def test_lists_that_agree_go_before_each_alone():
    seen = in_order(hit("a", 0, 0.9), hit("b", 10, 0.8), hit("c", 0, 0.1))
    said = in_order(hit("d", 0, 9.0, "said"), hit("b", 9.5, 8.0, "said", 5.0), hit("c", 0, 0.1, "said"))
    first, *others = fuse([seen, said])
    assert (spans([first]), first.score) == ([("b", 9.5, 14.5)], 0.8)
    assert first.worth == pytest.approx(2 / (RANKS + 2))
    assert [match.modality for match in first.matches] == ["both", "said"]
    assert [(moment.item.id, moment.score) for moment in others] == [("c", 0.1), ("d", None), ("a", 0.9)]


def test_a_weaker_hit_inside_of_a_moment_is_part_of_it():
    seen = in_order(hit("a", 0, 0.9), hit("a", 6, 0.5), hit("b", 0, 0.1), hit("c", 0, 0.0))
    said = in_order(hit("a", 0, 5.0, "said", 10.0))
    found = fuse([seen, said])
    assert spans(found) == [("a", 0, 10), ("b", 0, 2), ("c", 0, 2)]
    assert found[0].worth == pytest.approx(2 / (RANKS + 1))


def test_a_title_counts_for_all_moments_of_its_recording():
    seen = in_order(hit("a", 0, 0.9), hit("b", 0, 0.8), hit("b", 6, 0.7), hit("c", 0, 0.1))
    written = in_order(hit("b", 0, 3.0, "written", 60.0), hit("d", 0, 2.0, "written", 30.0))
    found = fuse([seen, written])
    assert spans(found) == [("b", 0, 2), ("b", 6, 8), ("a", 0, 2), ("d", 0, 30), ("c", 0, 2)]
    assert [match.modality for match in found[1].matches] == ["both", "written"]


def test_a_text_with_half_of_the_words_counts_half():
    said = in_order(hit("a", 0, 9.0, "said", share=0.5), hit("b", 0, 8.0, "said"))
    assert spans(fuse([said])) == [("b", 0, 2), ("a", 0, 2)]
    assert fuse([]) == fuse([HitList([])]) == []


def test_words_are_compared_without_case_accents_and_endings():
    wanted = WantedWords("What do the barking Dogs say, café? dogs")
    assert wanted.words == ["barking", "Dogs", "café", "dogs"]
    found = wanted.matched("A DOG barks in the cafe; the cat doesn't.")
    assert [word.text for word in found] == ["DOG", "barks", "cafe"]
    assert wanted.coverage(found) == 1.0
    assert wanted.coverage(found[:1]) == pytest.approx(1 / 3)
    timed = wanted.matched("a dog", [(0.0, 0.25, " a"), (0.25, 0.5, " dog.")])
    assert timed == [Matched("dog.", 0.25, 0.5)]
    assert [word.text for word in WantedWords("犬").matched("日本の犬が吠える")] == ["日本の犬が吠える"]
    assert not WantedWords("what is the")
    assert len(WantedWords("".join(f"word{i} " for i in range(10_000))).words) == 100
