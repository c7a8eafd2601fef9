"""The same recording twice in an index: copied, encoded anew, or trimmed.

Windows of two recordings that look and sound alike vote for the time by which one lies behind the other. The
recordings are the same where most windows of the shorter one agree. That finds copies, and cuts by whole
windows; after any other cut, the windows show other stretches of time. So `same_sounds` compares what
recordings sound like, step by step (`mllm.search.alignment`), for those whose windows are most alike. It
reads their files, and finds nothing in recordings without sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mllm.errors import MediaError
from mllm.search.items import ITEM_COLUMNS, Item, item_of
from mllm.search.store import open_table, read_columns

if TYPE_CHECKING:
    from mllm.search.alignment.sequence import Sequence as Sound

ALIKE = 0.98  # cosine of windows that are taken for the same
SHARE = 0.6  # of the windows of the shorter recording
FEWEST = 2  # windows that agree, unless neither recording has as many
NEAREST = 3  # recordings that each is compared with by sound
CORRELATED = 0.25  # correlation of a second of two sounds that are the same
_BLOCK = 1024  # rows that are compared at once with all others
_MOST_WINDOWS = 64  # of a recording, that tell which others are most like it
_SOUNDS_KEPT = 16


@dataclass(frozen=True)
class Duplicate:
    """Two items that are the same recording, or the same but for a trim.

    Attributes:
        first, second: the longer one first.
        share: of the shorter one that is alike.
        score: mean cosine of its windows, or confidence that its sound is aligned.
        offset: where the second begins in the first, s.
        by: what was compared.
    """

    first: Item
    second: Item
    share: float
    score: float
    offset: float
    by: Literal["windows", "sound"] = "windows"


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
    for (one, other, milliseconds), (votes, score) in _votes(windows, alike).items():
        fewer, more = sorted((counts[one], counts[other]))
        found = Duplicate(
            windows.items[one], windows.items[other], votes / fewer, score / votes, milliseconds / 1000
        )
        known = best.get((one, other))
        better = known is None or (found.share, found.score) > (known.share, known.score)
        if better and found.share >= share and votes >= min(FEWEST, more):
            best[one, other] = found
    return _sorted(_longer_first(pair, counts[one], counts[other]) for (one, other), pair in best.items())


def same_sounds(
    folder: str | Path,
    by_windows: Sequence[Duplicate] = (),
    share: float = SHARE,
    passed_over: Callable[[str, str], None] = lambda name, cause: None,
) -> list[Duplicate]:
    """Pairs of items whose sound is the same, wherever they are cut, the surest first.

    Each item is compared with the `NEAREST` others whose windows are most like its own.

    Args:
        by_windows: pairs that `duplicates` has found: they are compared too, and those with an item that
            cannot be heard are kept as they are.
        share: least share of the shorter recording that agrees.
        passed_over: called with the name of each recording that cannot be read, and the cause.

    Raises:
        ConfigError: if there is no index, or it is damaged.
    """
    windows = _read(Path(folder))

    @lru_cache(maxsize=_SOUNDS_KEPT)
    def sound_of(number: int) -> Sound | None:
        try:
            return _sound(windows.items[number])
        except MediaError as error:
            passed_over(windows.items[number].shown, str(error))
            return None

    numbers = {item.id: number for number, item in enumerate(windows.items)}
    known = {_pair(numbers[one.first.id], numbers[one.second.id]): one for one in by_windows}
    found: list[Duplicate | None] = []
    for pair in sorted(known.keys() | _candidates(windows)):
        first, second = map(sound_of, pair)
        if first is None or second is None:
            found.append(known.get(pair))
        else:
            items = windows.items[pair[0]], windows.items[pair[1]]
            found.append(_compared(items, first, second, share))
    return _sorted(one for one in found if one is not None)


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def _compared(items: tuple[Item, Item], first: Sound, second: Sound, share: float) -> Duplicate | None:
    """The items as duplicates, if so much of their sound is the same."""
    from mllm.search.alignment.engine import align_sequences

    try:
        aligned = align_sequences(first, second)
    except MediaError:  # too short
        return None
    offset = aligned.offset or 0.0
    part = _seconds_alike(first, second, offset) / min(first.seconds, second.seconds)
    if aligned.unsure or part < share:
        return None
    pair = Duplicate(*items, part, aligned.confidence, -offset, "sound")
    return _longer_first(pair, len(first), len(second))


def _sound(item: Item) -> Sound | None:
    """What an item sounds like; None if it is no file, or is silent.

    Raises:
        MediaError: if it cannot be read.
    """
    from mllm.media.recording import open_recording
    from mllm.media.sources import OWN_FILES
    from mllm.search.alignment import features
    from mllm.search.alignment.align import waveform_of

    if item.path is None:
        return None
    with open_recording(item.path, OWN_FILES, isolated=True) as recording:
        if not recording.info.has_audio:
            return None
        sound = features.mel(waveform_of(recording), item.shown)
    return sound if sound.vectors.any() else None


def _seconds_alike(first: Sound, second: Sound, offset: float) -> float:
    """How much of two sounds that lie upon each other at an offset correlates, second by second."""
    from mllm.search.alignment.engine import overlap

    one, other = (side.vectors.astype(np.float64) for side in overlap(first, second, offset))
    starts = np.arange(0, len(one), round(first.rate))
    if not len(starts):
        return 0.0
    products, *squares = (
        np.add.reduceat((left * right).sum(1), starts)
        for left, right in ((one, other), (one, one), (other, other))
    )
    alike = products > CORRELATED * np.sqrt(squares[0] * squares[1])
    return float((alike * np.diff(np.r_[starts, len(one)])).sum() / first.rate)


def _candidates(windows: _Windows) -> set[tuple[int, int]]:
    """Pairs of items, of each one and the `NEAREST` others whose windows are most like its own."""
    begins = np.searchsorted(windows.of, np.arange(len(windows.items)))
    still = windows.still[begins]
    pairs: set[tuple[int, int]] = set()
    for one, (first, last) in enumerate(zip(begins, np.r_[begins[1:], len(windows.of)], strict=True)):
        if still[one]:
            continue
        places = np.unique(np.linspace(first, last - 1, _MOST_WINDOWS).astype(int))
        best = np.maximum.reduceat(windows.vectors[places] @ windows.vectors.T, begins, axis=1).mean(0)
        best[still] = best[one] = -np.inf
        for other in np.argsort(-best)[:NEAREST].tolist():
            if np.isfinite(best[other]):
                pairs.add(_pair(one, other))
    return pairs


def _sorted(pairs: Iterable[Duplicate]) -> list[Duplicate]:
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.score, pair.first.shown, pair.second.shown))


def _longer_first(pair: Duplicate, first: int, second: int) -> Duplicate:
    if (-first, pair.first.shown) <= (-second, pair.second.shown):
        return pair
    return replace(pair, first=pair.second, second=pair.first, offset=-pair.offset)


def _votes(windows: _Windows, alike: float) -> dict[tuple[int, ...], tuple[int, float]]:
    """Number and summed cosine of windows that are alike, by item, another, and ms at which that begins."""
    votes: dict[tuple[int, ...], tuple[int, float]] = {}
    for first in range(0, len(windows.of), _BLOCK):
        rows = slice(first, first + _BLOCK)
        of, starts = windows.of[rows], windows.starts[rows]
        scores = windows.vectors[rows] @ windows.vectors.T
        others = (of[:, None] < windows.of) & (windows.still[rows, None] == windows.still)
        here, there = np.nonzero((scores >= alike) & others)
        begins = np.round(1000 * (starts[here] - windows.starts[there])).astype(np.int64)
        keys = np.stack([of[here], windows.of[there], begins], 1)
        found, place = np.unique(keys, axis=0, return_inverse=True)
        numbers = np.bincount(place, minlength=len(found))
        sums = np.bincount(place, weights=scores[here, there], minlength=len(found))
        for key, number, total in zip(found.tolist(), numbers.tolist(), sums.tolist(), strict=True):
            before = votes.get(tuple(key), (0, 0.0))
            votes[tuple(key)] = (before[0] + number, before[1] + total)
    return votes


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
