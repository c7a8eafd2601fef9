"""Clocks that jump: after a splice, a stream continues with the next piece's own clock. Private to `scan`.

An MPEG transport stream of 8 s may thus announce two hours. Sound and picture close such gaps together.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import merge
from itertools import pairwise
from typing import NamedTuple, TypeAlias

# Other containers have one clock, and a gap is an intended pause.
JUMPING = {"mpegts", "mpeg", "flv"}
FORWARD = 5.0  # s: a longer gap in all streams is a jump …
SPARSE, SPARSEST = 2.0, 60.0  # … unless shorter than this many usual steps (of at most 60 s), as with slides
BACKWARD = 0.5  # s: decoding times never go back, except for a muxer's rounding


class Stamp(NamedTuple):
    """The timestamps of a packet, in ticks of its stream.

    Attributes:
        time: presentation time.
        key: whether decoding can begin here.
        duration: 0 if the container does not say.
        number: index of the packet within its stream.
        decoded: decoding time, ascending in file order.
        place: index of the packet among those of all streams.
    """

    time: int
    key: bool
    duration: int
    number: int
    decoded: int
    place: int


Shifts: TypeAlias = tuple[tuple[int, int], ...]  # (number of a packet, shift of it and later ones in ticks)


def shifts(streams: Sequence[tuple[Sequence[Stamp], Fraction]]) -> list[Shifts]:
    """How to shift the packets of each stream so that the clock no longer jumps.

    The file is split into consecutive pieces, each with its own clock. A packet that continues neither its
    own stream nor the others starts a piece; each stream enters it with its next packet that fits better
    there. A gap in one stream while another continues is a still picture or silence, and is kept.

    Args:
        streams: picture and sound, or one of them: stamps in file order, and seconds per tick.
    """
    tracks = [_Track(float(time_base), _patience(stamps, time_base)) for stamps, time_base in streams]
    pieces = _Pieces(tracks)
    in_order = merge(
        *([(stamp.place, which, stamp) for stamp in stamps] for which, (stamps, _) in enumerate(streams))
    )
    for _, which, stamp in in_order:
        pieces.add(tracks[which], stamp)
    return [
        tuple((number, round(pieces.moves[piece] / track.tick)) for number, piece in track.entered)
        for track in tracks
    ]


def moved_by(moves: Shifts, number: int) -> int:
    """The shift of a packet in ticks."""
    place = bisect_right(moves, number, key=lambda move: move[0])
    return moves[place - 1][1] if place else 0


def moved(stamps: Sequence[Stamp], moves: Shifts) -> list[Stamp]:
    """Stamps on the corrected clock."""
    if not moves:
        return list(stamps)
    return [stamp._replace(time=stamp.time + moved_by(moves, stamp.number)) for stamp in stamps]


def _patience(stamps: Sequence[Stamp], time_base: Fraction) -> float:
    """The longest gap that is not a jump, s."""
    steps = [abs(after.decoded - before.decoded) for before, after in pairwise(stamps)]
    usual = float(statistics.median(steps) * time_base) if steps else 0.0
    return FORWARD + SPARSE * min(usual, SPARSEST)


@dataclass
class _Track:
    """The state of a stream, in s on its own clock.

    Attributes:
        tick: s.
        patience: the longest gap that is not a jump.
        piece: index of its current piece.
        newest: decoding time of its newest packet; None before the first.
        step: duration of that packet.
        entered: (number of a packet, piece that begins with it), except for the first piece.
    """

    tick: float
    patience: float
    piece: int = 0
    newest: float | None = None
    step: float = 0.0
    entered: list[tuple[int, int]] = field(default_factory=list)


class _Pieces:
    """The pieces of a file; `moves` holds the shift of each piece's clock, s."""

    def __init__(self, tracks: Sequence[_Track]):
        self.tracks = tracks
        self.moves = [0.0]
        self.begin: float | None = None  # start of the newest piece, s on the corrected clock

    def add(self, track: _Track, stamp: Stamp) -> None:
        clock = stamp.decoded * track.tick
        ends = [
            each.newest + each.step + self.moves[each.piece]
            for each in self.tracks
            if each.newest is not None
        ]
        if self.begin is None:
            self.begin = clock
        elif (piece := self._piece_of(track, clock, max(ends))) is None:
            self.begin = self._own_end(track, max(ends))
            self.moves.append(self.begin - clock)
            self._enter(track, stamp, clock)
        elif piece != track.piece:
            self._enter(track, stamp, clock)
        lasts = stamp.duration * track.tick
        if track.newest is None or track.entered[-1:] == [(stamp.number, track.piece)]:
            track.newest, track.step = clock, lasts or track.step
        elif clock > track.newest:
            track.newest, track.step = clock, lasts or clock - track.newest

    def _piece_of(self, track: _Track, clock: float, end: float) -> int | None:
        """The piece in which a packet is not a jump: the track's own, or the newest; None if neither."""
        newest = len(self.moves) - 1
        assert self.begin is not None
        expected, early = self.begin, {newest: self.begin - FORWARD}
        if track.newest is not None:
            before = track.newest + self.moves[track.piece]
            # If it overlaps what came before, `_enter` moves the new piece.
            expected, early = before + track.step, {newest: before - FORWARD, track.piece: before - BACKWARD}
        times = {piece: clock + self.moves[piece] for piece in early}
        fitting = [piece for piece in early if early[piece] < times[piece] < end + track.patience]
        return min(fitting, key=lambda piece: abs(times[piece] - expected), default=None)

    def _own_end(self, track: _Track, end: float) -> float:
        """Start of a piece that this track opens: after all tracks, or after its own if that is near."""
        if track.newest is None:
            return end
        own = track.newest + track.step + self.moves[track.piece]
        return own if own > end - BACKWARD else end

    def _enter(self, track: _Track, stamp: Stamp, clock: float) -> None:
        """Continues the track in the newest piece, which moves back if the track would overlap itself."""
        if track.newest is not None:
            expected = track.newest + track.step + self.moves[track.piece]
            self.moves[-1] += max(0.0, expected - clock - self.moves[-1])
        track.piece = len(self.moves) - 1
        track.entered.append((stamp.number, track.piece))
