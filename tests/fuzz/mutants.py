"""Damage: a mutant is named by its number, and is the same whenever it is made."""

from __future__ import annotations

import random
from collections.abc import Callable

HEAD = 2048  # bytes in which half of the damage is done: what says how the rest is to be read
TELLING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE]

Mutation = Callable[[bytearray, random.Random], None]


def mutant(data: bytes, dice: random.Random) -> bytes:
    """The recording with one to four kinds of damage."""
    damaged = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        if damaged:
            dice.choice(MUTATIONS)(damaged, dice)
    return bytes(damaged)


def _place(data: bytearray, dice: random.Random) -> int:
    """Somewhere; often near the beginning or the end, where indexes lie."""
    where = dice.random()
    if where < 0.5:
        return dice.randrange(min(HEAD, len(data)))
    if where < 0.65:
        return len(data) - 1 - dice.randrange(min(HEAD, len(data)))
    return dice.randrange(len(data))


def _flip_bit(data: bytearray, dice: random.Random) -> None:
    data[_place(data, dice)] ^= 1 << dice.randrange(8)


def _set_bytes(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randrange(1, 9)):
        data[_place(data, dice)] = dice.randrange(256)


def _telling_number(data: bytearray, dice: random.Random) -> None:
    """A size, a count or an offset that is none."""
    width = dice.choice([1, 2, 4, 8])
    place = _place(data, dice) // 4 * 4 if dice.random() < 0.5 else _place(data, dice)
    number = dice.choice(TELLING) & (256**width - 1)
    order = dice.choice(["big", "little"])
    data[place : place + width] = number.to_bytes(width, order)[: len(data) - place]


def _overwrite(data: bytearray, dice: random.Random) -> None:
    place, length = _place(data, dice), dice.randrange(1, 512)
    filled = dice.choice([bytes(length), b"\xff" * length, dice.randbytes(length)])
    data[place : place + length] = filled[: len(data) - place]


def _cut_off(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def _take_out(data: bytearray, dice: random.Random) -> None:
    place = _place(data, dice)
    del data[place : place + dice.randrange(1, 256)]


def _repeat(data: bytearray, dice: random.Random) -> None:
    place = _place(data, dice)
    data[place:place] = data[place : place + dice.randrange(1, 1024)]


def _move(data: bytearray, dice: random.Random) -> None:
    """A piece of it over another one: well-formed, and in the wrong place."""
    begin, end, length = _place(data, dice), _place(data, dice), dice.randrange(4, 256)
    piece = data[begin : begin + length]
    data[end : end + len(piece)] = piece[: len(data) - end]


MUTATIONS: list[Mutation] = [
    _flip_bit,
    _set_bytes,
    _telling_number,
    _telling_number,
    _overwrite,
    _cut_off,
    _take_out,
    _repeat,
    _move,
]
