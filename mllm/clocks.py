"""Clocks that jump: after a splice, a stream counts on from wherever its next piece began. Private to `scan`.

So an MPEG transport stream of 8 s may announce two hours. Sound and picture close such gaps together.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

JUMPING = {
    "mpegts",
    "mpeg",
    "flv",
}  # elsewhere the container has one clock, and a gap is a pause that was meant
FORWARD = 5.0  # s: a longer gap between the packets of a stream is a jump
BACKWARD = 0.5  # s: decoding times never go back, but for a muxer's rounding


class Stamp(NamedTuple):
    """Of a packet, in ticks of its stream.

    Attributes:
        time: when it is seen or heard.
        key: decoding can begin here.
        duration: 0 where the container does not say.
        number: of the packet within its stream.
        decoded: when it is decoded, which is in the order of the file.
    """

    time: int
    key: bool
    duration: int
    number: int
    decoded: int


Jump: TypeAlias = tuple[int, float]  # number of the first packet after it, s
Shifts: TypeAlias = tuple[tuple[int, int], ...]  # (number of a packet, ticks that it and later ones move by)


def shifts(streams: Sequence[tuple[Sequence[Stamp], Fraction]]) -> list[Shifts]:
    """How to move the packets of each stream so that its clock no longer jumps.

    Where picture and sound jump alike, both move by the same, so that they stay together. A gap in one of
    them alone is a still picture or silence, and stays.

    Args:
        streams: of picture and of sound, or of one of them: stamps in the order of the file, seconds a tick.
    """
    jumps = [_jumps(*stream) for stream in streams]
    matched = _matched(*jumps) if len(jumps) == 2 else jumps
    found = []
    for (_, time_base), kept in zip(streams, matched, strict=True):
        total, steps = 0.0, []
        for number, seconds in kept:
            total += seconds
            steps.append((number, -round(total / time_base)))
        found.append(tuple(steps))
    return found


def moved_by(moves: Shifts, number: int) -> int:
    """Ticks to add to the stamps of this packet."""
    return next((ticks for first, ticks in reversed(moves) if number >= first), 0)


def moved(stamps: Sequence[Stamp], moves: Shifts) -> list[Stamp]:
    """Stamps on the mended clock."""
    if not moves:
        return list(stamps)
    return [stamp._replace(time=stamp.time + moved_by(moves, stamp.number)) for stamp in stamps]


def _jumps(stamps: Sequence[Stamp], time_base: Fraction) -> list[Jump]:
    found: list[Jump] = []
    newest = removed = step = 0.0
    for place, stamp in enumerate(stamps):
        time = float(stamp.decoded * time_base) - removed
        expected = newest + step
        if place and not newest - BACKWARD < time < expected + FORWARD:
            found.append((stamp.number, time - expected))
            removed += time - expected
            time = expected
        if not place or time > newest:
            step = float(stamp.duration * time_base) or (time - newest if place else 0.0)
            newest = time
    return found


def _matched(one: list[Jump], other: list[Jump]) -> tuple[list[Jump], list[Jump]]:
    """Jumps of two streams that happen in both, and those of one that go back, as no recording does."""
    kept: tuple[list[Jump], list[Jump]] = ([], [])
    waiting = list(other)
    for number, seconds in one:
        twin = next((jump for jump in waiting if abs(jump[1] - seconds) < FORWARD), None)
        if twin is None:
            kept[0].extend([(number, seconds)] if seconds < 0 else [])
            continue
        passed = waiting[: waiting.index(twin)]
        waiting = waiting[len(passed) + 1 :]
        kept[1].extend(jump for jump in passed if jump[1] < 0)
        least = min(seconds, twin[1])  # else what follows in one of them would overlap what came before
        kept[0].append((number, least))
        kept[1].append((twin[0], least))
    kept[1].extend(jump for jump in waiting if jump[1] < 0)
    return kept
