"""Clocks that jump: after a splice, a stream counts on from wherever its next piece began. Private to `scan`.

So an MPEG transport stream of 8 s may announce two hours. Sound and picture close such gaps together.
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

# Elsewhere the container has one clock, and a gap is a pause that was meant.
JUMPING = {"mpegts", "mpeg", "flv"}
FORWARD = 5.0  # s: longer than this without a packet of any stream is a jump
SPARSE, SPARSEST = 2.0, 60.0  # or, of slides, than so many of their usual steps of at most so many s
BACKWARD = 0.5  # s: decoding times never go back, but for a muxer's rounding


class Stamp(NamedTuple):
    """Of a packet, in ticks of its stream.

    Attributes:
        time: when it is seen or heard.
        key: decoding can begin here.
        duration: 0 where the container does not say.
        number: of the packet within its stream.
        decoded: when it is decoded, which is in the order of the file.
        place: of the packet among those of all streams.
    """

    time: int
    key: bool
    duration: int
    number: int
    decoded: int
    place: int


Shifts: TypeAlias = tuple[tuple[int, int], ...]  # (number of a packet, ticks that it and later ones move by)


def shifts(streams: Sequence[tuple[Sequence[Stamp], Fraction]]) -> list[Shifts]:
    """How to move the packets of each stream so that the clock no longer jumps.

    The file is read as pieces, each with a clock of its own, which follow each other. A packet that follows
    neither its own stream nor the others begins a piece; streams enter it each with its next packet that fits
    there better. A gap in one of them, while another goes on, is a still picture or silence, and stays.

    Args:
        streams: of picture and of sound, or of one of them: stamps in the order of the file, seconds a tick.
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
    """Ticks to add to the stamps of this packet."""
    place = bisect_right(moves, number, key=lambda move: move[0])
    return moves[place - 1][1] if place else 0


def moved(stamps: Sequence[Stamp], moves: Shifts) -> list[Stamp]:
    """Stamps on the mended clock."""
    if not moves:
        return list(stamps)
    return [stamp._replace(time=stamp.time + moved_by(moves, stamp.number)) for stamp in stamps]


def _patience(stamps: Sequence[Stamp], time_base: Fraction) -> float:
    """How long a gap may be, s."""
    steps = [abs(after.decoded - before.decoded) for before, after in pairwise(stamps)]
    usual = float(statistics.median(steps) * time_base) if steps else 0.0
    return FORWARD + SPARSE * min(usual, SPARSEST)


@dataclass
class _Track:
    """A stream, as far as it is read: on its own clock, s.

    Attributes:
        tick: s.
        patience: how long a gap may be, s.
        piece: the one that it is in.
        newest: when its newest packet is decoded; None before the first.
        step: how long that packet lasts.
        entered: (number of a packet, piece that begins with it), but for the first piece.
    """

    tick: float
    patience: float
    piece: int = 0
    newest: float | None = None
    step: float = 0.0
    entered: list[tuple[int, int]] = field(default_factory=list)


class _Pieces:
    """The pieces of a file: `moves`, how far the clock of each has to be moved, s."""

    def __init__(self, tracks: Sequence[_Track]):
        self.tracks = tracks
        self.moves = [0.0]
        self.begin: float | None = None  # of the newest piece, s on the mended clock

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
        """In which piece a packet is no jump: the track's own, or the newest."""
        newest = len(self.moves) - 1
        assert self.begin is not None
        expected, early = self.begin, {newest: self.begin - FORWARD}
        if track.newest is not None:
            before = track.newest + self.moves[track.piece]
            # Where it would overlap what came before, `_enter` moves the new piece.
            expected, early = before + track.step, {newest: before - FORWARD, track.piece: before - BACKWARD}
        times = {piece: clock + self.moves[piece] for piece in early}
        fitting = [piece for piece in early if early[piece] < times[piece] < end + track.patience]
        return min(fitting, key=lambda piece: abs(times[piece] - expected), default=None)

    def _own_end(self, track: _Track, end: float) -> float:
        """Where a piece begins that this track opens: behind all, or right behind its own if that is near."""
        if track.newest is None:
            return end
        own = track.newest + track.step + self.moves[track.piece]
        return own if own > end - BACKWARD else end

    def _enter(self, track: _Track, stamp: Stamp, clock: float) -> None:
        """The track goes on in the newest piece; later, if it would overlap what it holds already."""
        if track.newest is not None:
            expected = track.newest + track.step + self.moves[track.piece]
            self.moves[-1] += max(0.0, expected - clock - self.moves[-1])
        track.piece = len(self.moves) - 1
        track.entered.append((stamp.number, track.piece))
