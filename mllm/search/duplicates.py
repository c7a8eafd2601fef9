"""The same recording twice in an index: copied, encoded anew, or trimmed by whole windows.

Windows of two recordings that look and sound alike vote for the time by which one lies behind the other. The
recordings are the same where most windows of the shorter one agree. Sums of neighbouring windows vote too: in
a recording that was trimmed by half a window, each window is halves of two. They are less alike than whole
windows are, so that such a cut needs a lower cosine than `ALIKE`, and other cuts off the grid are missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mllm.search.items import ITEM_COLUMNS, Item, item_of
from mllm.search.store import open_table, read_columns

ALIKE = 0.98  # cosine of windows that are taken for the same
SHARE = 0.6  # of the windows of the shorter recording
FEWEST = 2  # windows that agree, unless neither recording has as many
_BLOCK = 1024  # rows that are compared at once with all others


@dataclass(frozen=True)
class Duplicate:
    """Two items that are the same recording, or the same but for a trim.

    Attributes:
        first, second: the longer one first.
        share: of the windows of the shorter one that are alike.
        score: mean cosine of those.
        offset: where the second begins in the first, s.
    """

    first: Item
    second: Item
    share: float
    score: float
    offset: float


@dataclass(frozen=True)
class _Windows:
    """The windows of all items, sorted by item and start.

    Attributes:
        items: by number.
        of: [windows], number of the item.
        starts: [windows], s.
        still: [windows], whether it is a picture.
        vectors: [windows, dim].
    """

    items: list[Item]
    of: np.ndarray
    starts: np.ndarray
    still: np.ndarray
    vectors: np.ndarray


def duplicates(folder: str | Path, alike: float = ALIKE, share: float = SHARE) -> list[Duplicate]:
    """Pairs of items that are the same recording, the surest first; each window is compared with each other.

    Args:
        alike: least cosine of windows that vote; pictures are compared with pictures alone.
        share: least share of the windows of the shorter recording that agree.

    Raises:
        ConfigError: if there is no index, or it is damaged.
    """
    windows = _read(Path(folder))
    counts = np.bincount(windows.of, minlength=len(windows.items)).tolist()
    best: dict[tuple[int, int], Duplicate] = {}
    for (one, other, milliseconds, _), (votes, score) in _votes(windows, alike).items():
        fewer, more = sorted((counts[one], counts[other]))
        found = Duplicate(
            windows.items[one], windows.items[other], votes / fewer, score / votes, milliseconds / 1000
        )
        known = best.get((one, other))
        better = known is None or (found.share, found.score) > (known.share, known.score)
        if better and found.share >= share and votes >= min(FEWEST, more):
            best[one, other] = found
    pairs = [_longer_first(pair, counts[one], counts[other]) for (one, other), pair in best.items()]
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.score, pair.first.shown, pair.second.shown))


def _longer_first(pair: Duplicate, first: int, second: int) -> Duplicate:
    if (-first, pair.first.shown) <= (-second, pair.second.shown):
        return pair
    return replace(pair, first=pair.second, second=pair.first, offset=-pair.offset)


def _votes(windows: _Windows, alike: float) -> dict[tuple[int, ...], tuple[int, float]]:
    """Number and summed cosine of windows that are alike.

    Returns:
        By item, another, ms at which that begins in it, and whose windows are halves (0: nobody's).
    """
    votes: dict[tuple[int, ...], tuple[int, float]] = {}
    for of, starts, still, vectors, halves in _compared(windows):
        scores = vectors @ windows.vectors.T
        others = of[:, None] != windows.of if halves else of[:, None] < windows.of
        here, there = np.nonzero((scores >= alike) & others & (still[:, None] == windows.still))
        one, another = of[here], windows.of[there]
        begins = np.round(1000 * (starts[here] - windows.starts[there])).astype(np.int64)
        turned = one > another  # a pair has one order, whichever of the two the halves are of
        whose = np.where(turned, 2, 1) * int(halves)
        first, second = np.minimum(one, another), np.maximum(one, another)
        keys = np.stack([first, second, np.where(turned, -begins, begins), whose], 1)
        found, place = np.unique(keys, axis=0, return_inverse=True)
        numbers = np.bincount(place, minlength=len(found))
        sums = np.bincount(place, weights=scores[here, there], minlength=len(found))
        for key, number, total in zip(found.tolist(), numbers.tolist(), sums.tolist(), strict=True):
            before = votes.get(tuple(key), (0, 0.0))
            votes[tuple(key)] = (before[0] + number, before[1] + total)
    return votes


def _compared(windows: _Windows) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of windows, in blocks, and whether they are halves: sums of neighbours."""
    next_to = np.flatnonzero(windows.of[1:] == windows.of[:-1])
    halves = windows.vectors[next_to] + windows.vectors[next_to + 1]
    halves /= np.maximum(np.linalg.norm(halves, axis=1, keepdims=True), 1e-12)
    between = (windows.starts[next_to] + windows.starts[next_to + 1]) / 2
    whole = (windows.of, windows.starts, windows.still, windows.vectors, np.array(False))
    halved = (windows.of[next_to], between, windows.still[next_to], halves, np.array(True))
    for *columns, flag in (whole, halved):
        for first in range(0, len(columns[0]), _BLOCK):
            yield *(column[first : first + _BLOCK] for column in columns), flag


def _read(folder: Path) -> _Windows:
    names = [*ITEM_COLUMNS, "modality", "start", "vector"]
    rows = read_columns(open_table(folder), names, folder, "fullest")
    order = np.lexsort((rows["start"].to_numpy(), rows["item_id"].to_numpy(zero_copy_only=False)))
    rows = rows.take(order)
    ids = rows["item_id"].to_numpy(zero_copy_only=False)
    first = np.r_[True, ids[1:] != ids[:-1]][: len(ids)]
    items = [item_of(row) for row in rows.filter(first).select(ITEM_COLUMNS).to_pylist()]
    dim = rows["vector"].type.list_size
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    still = rows["modality"].to_numpy(zero_copy_only=False) == "image"
    return _Windows(items, np.cumsum(first) - 1, rows["start"].to_numpy(), still, vectors)
