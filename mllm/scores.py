"""The scores that training and evaluation share.

Exact match, token F1 (Rajpurkar et al., 2016, arXiv:1606.05250), word errors and recall at k.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

RECALL_AT = (1, 5, 10)
_MEANINGFUL = "%‰@&"  # punctuation by Unicode class that changes an answer: 50% is not 50
_TYPED = str.maketrans("‘’−", "''-")  # typographic characters to those that people type
_MARKUP = "`´~|"  # symbols by Unicode class that are markup: `yes`, ~~yes~~


def normalise(answer: str) -> str:
    """Normalises an answer: Unicode NFKC, lower case, single spaces, no punctuation at either end.

    Brackets, quotation marks and markdown count as punctuation: "(yes)", "yes:", "**Yes.**" are all "yes".
    Characters that change an answer are kept: "-5", ".5", "50%", "#3", "c#".
    """
    return _bare(" ".join(unicodedata.normalize("NFKC", answer).translate(_TYPED).casefold().split()))


def _bare(text: str) -> str:
    first, last = 0, len(text)
    while (
        last
        and _is_form(text[last - 1])
        and not (text[last - 1] == "#" and text[last - 2 : last - 1].isalnum())
    ):
        last -= 1
    while first < last and _is_form(text[first]) and not _is_sign(text, first):
        first += 1
    return text[first:last]


def _is_form(character: str) -> bool:
    """Whether it is punctuation, white space or invisible."""
    kind = unicodedata.category(character)[0]
    return character in _MARKUP or (kind in "PZC" and character not in _MEANINGFUL)


def _is_sign(text: str, place: int) -> bool:
    """Whether a mark at the beginning belongs to what follows it: "-5", ".5", "#3"."""
    before, mark, after = text[:place], text[place], text[place + 1 : place + 3]
    if mark == "#":
        return after[:1].isalnum()
    if mark == ".":
        return after[:1].isdigit() and not before.endswith(".")
    return mark == "-" and (after[:1].isdigit() or (after[:1] == "." and after[1:].isdigit()))


def exact_match(prediction: str, truth: str) -> bool:
    """True if both say the same after `normalise`. An empty prediction is never right."""
    said = normalise(prediction)
    return bool(said) and said == normalise(truth)


def token_f1(prediction: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words, with multiplicity: for captions. 0.0 to 1.0."""
    said, wanted = Counter(_words(prediction)), Counter(_words(truth))
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((said & wanted).values())
    return 2 * shared / (sum(said.values()) + sum(wanted.values()))


def word_errors(prediction: str, truth: str) -> tuple[int, int]:
    """(least substitutions, insertions and deletions that lead to the truth, words of the truth).

    The sum of the former over the sum of the latter is the word error rate. Case and punctuation don't count.
    """
    said, wanted = _words(prediction), _words(truth)
    distances = list(
        range(len(said) + 1)
    )  # from the words of the truth so far to each beginning of what is said
    for row, word in enumerate(wanted, start=1):
        before, distances[0] = distances[0], row
        for column, heard in enumerate(said, start=1):
            kept = before + (heard != word)
            before = distances[column]
            distances[column] = min(kept, before + 1, distances[column - 1] + 1)
    return distances[-1], len(wanted)


def _words(text: str) -> list[str]:
    return [word for word in map(_bare, normalise(text).split()) if word]


def majority_score(truths: Iterable[str]) -> float:
    """Exact match of always giving the most frequent answer: the baseline that a model has to beat."""
    counts = Counter(normalise(truth) for truth in truths)
    return max(counts.values()) / sum(counts.values()) if counts else 0.0


def recall_at_k(
    similarity: np.ndarray,
    query_labels: Sequence[Hashable],
    item_labels: Sequence[Hashable],
    ks: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """Share of queries that have an item of their own label among their k most similar items.

    Several items may carry one label (two clips with the same caption): any of them is a hit. An item of
    another label that is exactly as similar counts as ranked before, so that a collapsed space scores 0.

    Args:
        similarity: [queries, items].
        query_labels, item_labels: one label a row, one a column.

    Returns:
        {"R@1": …, "R@5": …, …, "median_rank": …}; ranks begin at 1. A query without any item of its label
        never hits.

    Raises:
        ValueError: if the labels do not fit the matrix.
    """
    similarity = np.asarray(similarity)
    if similarity.shape != (len(query_labels), len(item_labels)):
        labels = f"{len(query_labels)} queries and {len(item_labels)} items"
        raise ValueError(f"similarity is {list(similarity.shape)} for {labels}")
    if not similarity.size:
        return {f"R@{k}": 0.0 for k in ks} | {"median_rank": 0.0}
    number = {label: i for i, label in enumerate(dict.fromkeys([*query_labels, *item_labels]))}
    same = np.equal.outer([number[label] for label in query_labels], [number[label] for label in item_labels])
    best = np.where(same, similarity, -np.inf).max(axis=1, keepdims=True)
    # `not (… < …)` rather than `>=`: a NaN, from a model that diverged, must not look like a hit.
    rank = 1 + np.sum(~same & ~(similarity < best), axis=1)
    rank[~same.any(axis=1)] = len(item_labels) + 1
    return {f"R@{k}": float(np.mean(rank <= k)) for k in ks} | {"median_rank": float(np.median(rank))}
