"""Moments: how neighbouring hits of one list, and overlapping ones of several, become one."""

from __future__ import annotations

import numpy as np
import pytest

from mllm.search.fusion import SURE, Chance, RowSample, evidence_of_words
from mllm.search.items import Item
from mllm.search.moments import RANK_OFFSET, Hit, HitList, by_item, fuse
from mllm.search.words import Matched, WantedWords


def hit(item: str, start: float, score: float, modality: str = "both", seconds: float = 2.0, **more) -> Hit:
    """A hit whose evidence is its score, or another."""
    given = {"text": "words"} if modality in ("said", "written") else {}
    place = f"{item}:{modality}:{start}"
    return Hit(
        place, Item(id=item), modality, start, start + seconds, score, **given | {"evidence": score} | more
    )


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
    assert found[0].relevance == pytest.approx(0.9)


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
    assert spans(by_item(found)["a"]) == [("a", 0, 2), ("a", 4, 6)]


def test_by_ranks_lists_that_agree_go_before_each_alone():
    seen = in_order(hit("a", 0, 0.9), hit("b", 10, 0.8), hit("c", 0, 0.1))
    said = in_order(hit("d", 0, 9.0, "said"), hit("b", 9.5, 8.0, "said", 5.0), hit("c", 0, 0.1, "said"))
    first, *others = fuse([seen, said], "ranks")
    assert (spans([first]), first.score) == ([("b", 10, 12)], 0.8)
    assert first.relevance == pytest.approx(2 / (RANK_OFFSET + 2))
    assert [match.modality for match in first.matches] == ["both", "said"]
    assert [(moment.item.id, moment.score) for moment in others] == [("c", 0.1), ("d", None), ("a", 0.9)]


def test_by_ranks_a_text_with_half_of_the_words_counts_half():
    said = in_order(hit("a", 0, 9.0, "said", share=0.5), hit("b", 0, 8.0, "said"))
    assert spans(fuse([said], "ranks")) == [("b", 0, 2), ("a", 0, 2)]
    assert fuse([]) == fuse([HitList([])]) == []


def test_by_evidence_the_list_that_knows_most_of_a_moment_tells_its_place():
    seen = in_order(hit("a", 0, 0.9), hit("b", 10, 0.8, evidence=0.2))
    said = in_order(hit("b", 9.5, 8.0, "said", 5.0, evidence=3.0))
    first, second = fuse([seen, said])
    assert (spans([first]), first.relevance, first.score) == ([("b", 9.5, 14.5)], 3.0, 0.8)
    assert [match.modality for match in first.matches] == ["said", "both"]
    assert spans([second]) == [("a", 0, 2)]
    seen_first = fuse([seen, HitList(said.hits, weight=0.1)])
    assert spans(seen_first) == [("a", 0, 2), ("b", 9.5, 14.5)]


def test_a_weaker_hit_inside_of_a_moment_is_part_of_it():
    seen = in_order(hit("a", 0, 0.9), hit("a", 6, 0.5), hit("b", 0, 0.1), hit("c", 0, 0.0))
    said = in_order(hit("a", 0, 5.0, "said", 10.0))
    assert spans(fuse([seen, said])) == [("a", 0, 10), ("b", 0, 2), ("c", 0, 2)]


def test_a_title_counts_for_all_moments_of_its_recording():
    seen = in_order(hit("a", 0, 0.9), hit("b", 0, 0.8), hit("b", 6, 0.7), hit("c", 0, 0.1))
    written = in_order(hit("b", 0, 3.0, "written", 60.0), hit("d", 0, 2.0, "written", 30.0))
    found = fuse([seen, written])
    assert spans(found) == [("b", 0, 2), ("b", 6, 8), ("d", 0, 30), ("a", 0, 2), ("c", 0, 2)]
    assert [match.modality for match in found[1].matches] == ["both", "written"]
    assert spans(fuse([seen, written], "ranks"))[:3] == [("b", 0, 2), ("b", 6, 8), ("a", 0, 2)]


def test_evidence_by_hand():
    chance = Chance(mean=0.1, deviation=0.1, rows=1000)
    confidence = np.exp(-1000 * 0.00134990)  # three deviations
    assert chance.evidence(0.4) == pytest.approx(-np.log(1 - confidence), rel=1e-4)
    assert 0 <= chance.evidence(-1.0) < chance.evidence(0.35) < chance.evidence(0.5)
    assert np.isfinite(Chance(0.0, 0.005, 1e6).evidence(1.0))
    assert evidence_of_words(1.0) == pytest.approx(-np.log(1 - SURE))
    assert evidence_of_words(0.5) < chance.evidence(0.5) < evidence_of_words(1.0) < chance.evidence(0.65)


def test_chance_is_measured_of_a_sample():
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    sample = RowSample(["video", "video", "audio", "said"], vectors, 40)
    found = sample.chance(["video"], np.eye(4, dtype=np.float32)[:2])
    assert found == Chance(0.5, 0.5, 20)
    examples = sample.chance(["video"], None)  # the windows themselves are the queries
    assert examples.mean == pytest.approx(2 / 3)
    assert sample.chance(["image"], vectors) is None


@pytest.mark.parametrize("knows", range(3))
def test_lists_that_know_nothing_do_not_disturb_the_one_that_does(knows):
    """100 questions to three lists of one space. One has its right row at a cosine of .65, among noise."""
    rng = np.random.default_rng(knows)
    rows, deviation = 100, 0.15
    right = {"alone": 0, "evidence": 0, "ranks": 0}
    for _ in range(100):
        lists = []
        for number in range(3):
            chance = Chance(0.0, deviation, rows)
            cosines = rng.normal(0, deviation, rows)
            if number == knows:
                cosines[0] = rng.normal(0.65, 0.08)
            places = rng.permutation(rows) if number != knows else np.arange(rows)
            lists.append(
                in_order(
                    *(
                        hit(f"{place}", 0, cosine, evidence=chance.evidence(cosine), seconds=1.0)
                        for place, cosine in zip(places, cosines, strict=True)
                    )
                )
            )
        for way, found in (
            ("alone", fuse([lists[knows]])),
            ("evidence", fuse(lists)),
            ("ranks", fuse(lists, "ranks")),
        ):
            right[way] += found[0].item.id == "0"
    assert right["alone"] > 90
    assert right["evidence"] >= right["alone"] - 3
    assert right["ranks"] < right["alone"] - 40  # why ranks are not the default


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
