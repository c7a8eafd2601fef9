"""Moments: neighbouring windows that a search found, and what several lists of hits say together.

The relevance of a moment is its best evidence over the lists that have it (`mllm.search.fusion`); or, fused
by ranks, the sum of 1 / (60 + rank) (reciprocal rank fusion; Cormack et al., 2009). Each list has a weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mllm.search.fusion import Chance, Fusion, evidence_of_words
from mllm.search.items import WRITTEN, Item, item_of
from mllm.search.words import Matched, WantedWords

RANK_OFFSET = 60  # of reciprocal ranks, from the paper
GAP = 1.0  # s between neighbours
NEAR = 0.1  # of the best score of a moment: what is that close to it belongs to it


@dataclass(frozen=True)
class Hit:
    """A row that a search found.

    Attributes:
        id: unique id of the row in the index.
        item: the item that the row belongs to.
        modality: of the row: "video", "audio", "both" or "image" of a window, "said" or "written" of a text.
        start, end: in seconds.
        score: the cosine, -1 to 1; of a text that was found by its words, their BM25.
        text: of a text.
        words: the words of the text that were asked for, in its order, with their times where it has them.
        share: how many of the words that were asked for are among them, above 0 to 1.
        evidence: see `mllm.search.fusion`; 0 where hits are not fused.
    """

    id: str
    item: Item
    modality: str
    start: float
    end: float
    score: float
    text: str = ""
    words: tuple[Matched, ...] = ()
    share: float = 1.0
    evidence: float = 0.0


@dataclass(frozen=True)
class HitList:
    """Hits by one score, best first, and how much they count."""

    hits: Sequence[Hit]
    weight: float = 1.0


@dataclass
class Moment:
    """A stretch of a recording, or all of it, that a search found.

    Attributes:
        item: the recording.
        start, end: in seconds, of the neighbours in the list that counts most.
        matches: why it was found: the best hit of each list, the one that counts most first, and then what is
            written about the recording.
        relevance: what moments are ordered by, see above.
        confidence: how probable it is that this recording is the one that is meant, where that was measured.
    """

    item: Item
    start: float
    end: float
    matches: list[Hit]
    relevance: float
    confidence: float | None = None

    @property
    def is_still(self) -> bool:
        """Whether it is a picture, without a time."""
        return any(hit.modality == "image" for hit in self.matches)

    @property
    def score(self) -> float | None:
        """The cosine of its best window; None if only words were found."""
        return max((hit.score for hit in self.matches if not hit.text), default=None)


@dataclass
class _Stretch:
    """Neighbouring hits of one list, as one."""

    best: Hit
    start: float
    end: float
    relevance: float = 0.0


def hits_of(
    rows: Sequence[Mapping[str, Any]], wanted: WantedWords | None = None, chance: Chance | None = None
) -> list[Hit]:
    """Hits of rows that were found by vector ("_distance") or by words ("_score"), best first.

    Ties are sorted by name and time.

    Args:
        wanted: the words that texts are searched for.
        chance: of cosines; None for hits that are not fused.
    """
    items: dict[str, Item] = {}
    hits = []
    for row in rows:
        item_id = row["item_id"]
        if item_id not in items:
            items[item_id] = item_of(row)
        by_words = "_score" in row
        score = row["_score"] if by_words else 1.0 - row["_distance"]
        hit = Hit(row["id"], items[item_id], row["modality"], row["start"], row["end"], score)
        if wanted is not None:
            timed = [(word["start"], word["end"], word["text"]) for word in row["words"] or ()]
            words = tuple(wanted.matched(row["text"], timed))
            share = wanted.coverage(words) if by_words else 1.0
            hit = replace(hit, text=row["text"].strip(), words=words, share=share)
        if by_words:
            hit = replace(hit, evidence=evidence_of_words(hit.share))
        elif chance is not None:
            hit = replace(hit, evidence=chance.evidence(score))
        hits.append(hit)
    return sorted(hits, key=lambda hit: (-hit.score, hit.item.shown, hit.start))


def fuse(lists: Sequence[HitList], fusion: Fusion = "evidence") -> list[Moment]:
    """The moments of all lists, best first.

    Stretches of different lists that overlap are one moment. A stretch that lies in a better moment of its
    own list is none of its own. What is written about a recording counts for all of its moments.
    """
    stretches: list[tuple[int, _Stretch]] = []
    for number, one in enumerate(lists):
        for rank, stretch in enumerate(_stretches(one.hits), start=1):
            best = stretch.best
            counts = best.evidence if fusion == "evidence" else best.share / (RANK_OFFSET + rank)
            stretch.relevance = one.weight * counts
            stretches.append((number, stretch))
    stretches.sort(key=lambda pair: -pair[1].relevance)
    moments: dict[str, list[tuple[set[int], Moment]]] = {}
    for number, stretch in stretches:
        if stretch.best.modality != WRITTEN:
            _join(moments.setdefault(str(stretch.best.item.id), []), number, stretch, fusion)
    for number, stretch in stretches:
        if stretch.best.modality == WRITTEN:
            of_item = moments.setdefault(str(stretch.best.item.id), [])
            for _, moment in of_item:
                _count(moment, stretch, fusion)
            if not of_item:
                of_item.append(({number}, _begin(stretch)))
    found = [moment for of_item in moments.values() for _, moment in of_item]
    return sorted(found, key=_order)


def _order(moment: Moment) -> tuple[float, float, str, float]:
    """Best first; of equal relevance by the score of their best match, name and time."""
    return -moment.relevance, -moment.matches[0].score, moment.item.shown, moment.start


def by_item(moments: Sequence[Moment]) -> dict[str, list[Moment]]:
    """Moments of each recording by its id, both best first."""
    found: dict[str, list[Moment]] = {}
    for moment in moments:
        found.setdefault(str(moment.item.id), []).append(moment)
    return found


def _stretches(hits: Sequence[Hit]) -> list[_Stretch]:
    """Joins hits with their neighbours in time, best first.

    A neighbour belongs to a hit if its score is more than half way up from the middle (median) of the list to
    the hit's, or nearly the same. A line of text is one already: by their vectors all are nearly the same.
    """
    if not hits:
        return []
    middle = statistics.median(hit.score for hit in hits)
    rows: dict[str, list[Hit]] = {}
    for hit in sorted(hits, key=lambda hit: (hit.start, hit.end)):
        rows.setdefault(str(hit.item.id), []).append(hit)
    places = {hit.id: place for row in rows.values() for place, hit in enumerate(row)}
    taken: set[str] = set()
    found: list[_Stretch] = []
    for hit in hits:
        if hit.id in taken:
            continue
        least = hit.score - max((hit.score - middle) / 2, NEAR * abs(hit.score))
        row, place = rows[str(hit.item.id)], places[hit.id]
        taken.add(hit.id)
        stretch = _Stretch(hit, hit.start, hit.end)
        for step in () if hit.text else (-1, 1):
            at = place + step
            while 0 <= at < len(row) and row[at].id not in taken and row[at].score >= least:
                if row[at].start - stretch.end > GAP or stretch.start - row[at].end > GAP:
                    break
                stretch.start, stretch.end = min(stretch.start, row[at].start), max(stretch.end, row[at].end)
                taken.add(row[at].id)
                at += step
        found.append(stretch)
    return found


def _join(of_item: list[tuple[set[int], Moment]], number: int, stretch: _Stretch, fusion: Fusion) -> None:
    """Adds a stretch to the moment of its recording that it overlaps, or begins a new one."""
    for lists, moment in of_item:
        if min(moment.end, stretch.end) > max(moment.start, stretch.start):
            if number not in lists:
                lists.add(number)
                _count(moment, stretch, fusion)
            return
    of_item.append(({number}, _begin(stretch)))


def _begin(stretch: _Stretch) -> Moment:
    return Moment(stretch.best.item, stretch.start, stretch.end, [stretch.best], stretch.relevance)


def _count(moment: Moment, stretch: _Stretch, fusion: Fusion) -> None:
    join = max if fusion == "evidence" else sum
    moment.relevance = join((moment.relevance, stretch.relevance))
    if all(hit.id != stretch.best.id for hit in moment.matches):  # a text by its words, and by its vector
        moment.matches.append(stretch.best)
