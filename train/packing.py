"""Packs the examples of a batch into rows, since their lengths differ and padding costs as much as tokens.

Of the decoder's work on batches of `configs/small.yaml`, 45 % was padding (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from mllm.models.encoded import GROUP, Encoded
from train.shapes import TOKENS

LONGEST = 256  # tokens of a row of several examples; attention, which grows with it, then still costs little


def pack(lengths: Sequence[int], kinds: Sequence[object]) -> list[list[int]]:
    """Chooses which examples share a row, so that rows of one length hold as little padding as possible.

    First fit decreasing (Johnson 1973), for every length of rows that is worth a try.

    Args:
        lengths: tokens of each example.
        kinds: examples of different kinds don't share a row.

    Returns:
        The examples of each row, by number; each row in order, and the rows by their first example.
    """
    shortest = max(lengths) + -max(lengths) % TOKENS
    sizes = range(shortest, max(shortest, LONGEST) + 1, TOKENS)
    rows = min((_first_fit(lengths, kinds, size) for size in sizes), key=lambda rows: _cells(lengths, rows))
    return sorted(map(sorted, rows))


def join(examples: Sequence[Encoded]) -> Encoded:
    """Puts examples in one row, in which the block mask of the processor's `collate` keeps them apart."""
    if len(examples) == 1:
        return examples[0]
    row = Encoded([], [], [], [], [])
    for number, example in enumerate(examples):
        length = len(example.input_ids)
        row.input_ids += example.input_ids
        row.labels += example.labels
        row.media += example.media
        row.position_ids += example.position_ids or range(length)  # type: ignore[operator]
        segments = example.segment_ids or [0] * length
        row.segment_ids += [segment + number * GROUP for segment in segments]  # type: ignore[operator]
    return row


def _first_fit(lengths: Sequence[int], kinds: Sequence[object], size: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = size - lengths[example]
        for row in rows:
            if kinds[row[0]] == kinds[example] and sum(lengths[i] for i in row) <= room:
                row.append(example)
                break
        else:
            rows.append([example])
    return rows


def _cells(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    longest = max(sum(lengths[i] for i in row) for row in rows)
    return len(rows) * (longest + -longest % TOKENS)
