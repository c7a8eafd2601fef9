"""What happens in a clip: which shapes and sounds, when and where. Everything else follows from a `Scene`.

A clip is a row of windows of two seconds. Every shape and every sound belongs to one window. A scene is a
pure function of (split, seed, index): the same three give the same scene in any process on any day.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

WINDOW = 2.0  # seconds of a window of the world; the last one of a clip may be one second long
CANVAS = 64  # positions and radii are written in pixels of a 64 × 64 picture, and scaled when drawn larger

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("left", "right", "up", "down", "still")
KINDS = ("rising tone", "falling tone", "beeps", "bell", "piano", "flute", "drum", "noise", "voice")
WORDS = ("circle", "square", "triangle", "star", "hello", "banana", "seven", "window")
VOICES = ("en-us+m1", "en-us+m3", "en-us+m7", "en-us+f1", "en-us+f2", "en-us+f4")  # espeak-ng variants
EMOTIONS = ("happy", "sad", "angry", "calm")
SPLITS = ("train", "val", "comp")

# How often each form of conversation comes; `both` is video with sound, `chat` has no media at all.
FORMS = {"both": 0.47, "video": 0.14, "audio": 0.14, "image": 0.13, "two": 0.085, "chat": 0.035}
COMP_FORMS = {"both": 0.5, "video": 0.2, "audio": 0.2, "two": 0.1}
MEDIA_FORMS = {"av": "both", "video": "video", "audio": "audio", "image": "image"}  # names in a source's spec

DURATIONS = {2: 0.2, 3: 0.12, 4: 0.18, 5: 0.2, 6: 0.3}
EVENT_COUNTS = {1: {1: 1.0}, 2: {1: 0.35, 2: 0.65}, 3: {1: 0.2, 2: 0.35, 3: 0.45}}  # by number of windows

Look = tuple[str, str, str]  # colour, shape, motion

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_RADII = {1: (10.0, 13.0), 2: (9.0, 11.5), 3: (9.0, 10.0)}  # px, by shapes in the same window
_TRAVEL = (22.0, 36.0)  # px that a moving shape covers while it is seen
_GAP = 2.5  # px between the circles around two shapes


@dataclass(frozen=True)
class Shape:
    """One coloured shape, seen from `appear` until `vanish` (s), going from `begin` to `end` (px)."""

    colour: str
    shape: str
    motion: str
    window: int
    appear: float
    vanish: float
    radius: float
    begin: tuple[float, float]
    end: tuple[float, float]
    tint: tuple[int, int, int]  # added to the colour, so that no two reds are equal

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Sound:
    """One sound, heard for about `length` s from `start` (s of the clip)."""

    kind: str
    window: int
    start: float
    length: float
    loudness: float
    seed: int  # of pitch and timbre
    count: int = 0  # beeps
    word: str = ""
    voice: str = ""
    emotion: str = ""
    take: int = 0  # which recording of this word, voice and emotion


@dataclass(frozen=True)
class Scene:
    """One recording. `form` is "both", "video" (silent), "audio" (no picture) or "image"."""

    split: str
    form: str
    duration: float
    shapes: tuple[Shape, ...]
    sounds: tuple[Sound, ...]
    seed: int  # of the background and the hiss
    planned: str | None = None  # a kind put in on purpose, so never the answer to "what do you hear?"
    target: Shape | None = None  # in the split `comp`: the held-out shape that is asked about

    @property
    def windows(self) -> int:
        return window_count(self.duration)

    @property
    def has_picture(self) -> bool:
        return self.form != "audio"

    @property
    def has_sound(self) -> bool:
        return self.form in ("both", "audio")


@dataclass(frozen=True)
class Episode:
    """What one conversation is about: no recording (`chat`), one, or two (`two`)."""

    split: str
    index: int
    form: str
    scenes: tuple[Scene, ...]


def window_count(duration: float) -> int:
    return max(1, math.ceil(duration / WINDOW - 0.05))


def rng_for(*key: object) -> random.Random:
    """A random stream named by `key`; unlike `hash()` it does not depend on the process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


# --- what the split `comp` holds out ------------------------------------------------------------------------


def held_out_shape(colour: str, shape: str, motion: str) -> bool:
    """True for the 20 of 120 combinations never trained: one colour for each shape and motion.

    So every shape is missing 5 times, every motion 4, every colour 3 or 4 and every pair at most once.
    """
    return (SHAPES.index(shape) + MOTIONS.index(motion) - COLOURS.index(colour)) % len(COLOURS) == 0


def held_out_voice(word: str, voice: str) -> bool:
    """True for the 8 of 48 combinations never trained: each word misses one voice."""
    return WORDS.index(word) % len(VOICES) == VOICES.index(voice)


@cache
def _held_out_weights() -> tuple[tuple[tuple[str, str, str], float], ...]:
    """The held-out combinations, weighted so that colours, shapes and motions each come equally often."""
    combos = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS if held_out_shape(c, s, m)]
    weights = dict.fromkeys(combos, 1 / len(combos))
    for _ in range(200):  # iterative proportional fitting
        for place, values in enumerate((COLOURS, SHAPES, MOTIONS)):
            for value in values:
                total = sum(w for combo, w in weights.items() if combo[place] == value)
                for combo in combos:
                    if combo[place] == value:
                        weights[combo] *= 1 / len(values) / total
    return tuple(weights.items())


@cache
def _motions(colour: str, shape: str) -> tuple[str, ...]:
    return tuple(m for m in MOTIONS if not held_out_shape(colour, shape, m))


@cache
def _voices(word: str, held_out: bool) -> tuple[str, ...]:
    return tuple(v for v in VOICES if held_out_voice(word, v) == held_out)


# --- sampling -----------------------------------------------------------------------------------------------


def sample_episode(
    split: str, seed: int, index: int, *, forms: dict[str, float] | None = None, objects: int = 3
) -> Episode:
    """The episode number `index` of a split.

    Args:
        forms: how often each form comes; the split's own mixture when None.
        objects: most shapes in a clip (1–3), for a curriculum.
    """
    rng = rng_for("episode", split, seed, index)
    form = _draw(rng, forms or (COMP_FORMS if split == "comp" else FORMS))
    if form == "chat":
        scenes: tuple[Scene, ...] = ()
    elif form == "two":
        scenes = _sample_two(rng, split)
    else:
        scenes = (_sample_scene(rng, split, form, objects),)
    return Episode(split, index, form, scenes)


def _sample_scene(rng: random.Random, split: str, form: str, objects: int) -> Scene:
    if form == "image":
        count = rng.randint(1, objects)
        looks = [(c, s, "still") for c, s, _ in _sample_looks(rng, split, count, None, still=True)]
        return Scene(split, form, 0.0, _in_order(_place(rng, 0, 0.0, 0.0, looks)), (), rng.getrandbits(60))
    duration = float(_draw(rng, DURATIONS))
    windows = window_count(duration)
    sounds: tuple[Sound, ...] = ()
    planned: str | None = None
    if form != "video":
        planned = "voice" if split == "comp" else _draw(rng, {"voice": 0.5, "beeps": 0.16, None: 0.34})
        sounds = _sample_sounds(rng, split, duration, planned)
    shapes: tuple[Shape, ...] = ()
    target: Shape | None = None
    if form != "audio":
        word = next((s.word for s in sounds if s.word in SHAPES), None)
        looks = _sample_looks(rng, split, rng.randint(1, objects), word)
        places = [rng.randrange(windows) for _ in looks]
        placed: dict[Look, Shape] = {}
        for window in sorted(set(places)):
            mine = [look for look, place in zip(looks, places, strict=True) if place == window]
            start, stop = window * WINDOW, min((window + 1) * WINDOW, duration)
            placed |= zip(mine, _place(rng, window, start, stop, mine), strict=True)
        target = placed[looks[0]] if split == "comp" else None
        shapes = _in_order(placed.values())
    return Scene(split, form, duration, shapes, sounds, rng.getrandbits(60), planned, target)


def _in_order(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """In the order of captions, so that one picture has one caption: by window, then by colour."""
    return tuple(sorted(shapes, key=lambda shape: (shape.window, COLOURS.index(shape.colour))))


def _sample_two(rng: random.Random, split: str) -> tuple[Scene, ...]:
    """Two short clips, each with one shape and one sound, all different."""
    looks = _sample_looks(rng, split, 2, None)
    order = rng.sample(range(2), 2)
    kinds = rng.sample(KINDS, 2)
    scenes = []
    for place in order:
        duration = float(rng.choice((2, 2, 3)))
        window = rng.randrange(window_count(duration))
        start, stop = window * WINDOW, min((window + 1) * WINDOW, duration)
        (shape,) = _place(rng, window, start, stop, [looks[place]])
        sound = _sample_sound(rng, split, kinds[place], window, start, stop)
        target = shape if split == "comp" and place == 0 else None
        scenes.append(Scene(split, "both", duration, (shape,), (sound,), rng.getrandbits(60), None, target))
    return tuple(scenes)


def _sample_looks(
    rng: random.Random, split: str, count: int, word: str | None, *, still: bool = False
) -> list[Look]:
    """`count` combinations (colour, shape, motion), all colours and shapes different.

    The first one is held out when the split is `comp`. When a voice says the name of a shape (`word`), half
    the clips show that shape.
    """
    shown = word is not None and rng.random() < 0.5
    allowed = [s for s in SHAPES if s != word]
    if split == "comp":
        fitting = [
            (combo, w) for combo, w in _held_out_weights() if word is None or (combo[1] == word) == shown
        ]
        first = rng.choices([c for c, _ in fitting], [w for _, w in fitting])[0]
        shapes = [first[1], *rng.sample([s for s in allowed if s != first[1]], count - 1)]
        colours = [first[0], *rng.sample([c for c in COLOURS if c != first[0]], count - 1)]
        rest = zip(colours[1:], shapes[1:], strict=True)
        return [first, *((c, s, rng.choice(_motions(c, s))) for c, s in rest)]
    colours = rng.sample(COLOURS, count)
    while True:
        if word is None:
            shapes = rng.sample(SHAPES, count)
        elif shown:
            shapes = rng.sample([word, *rng.sample(allowed, count - 1)], count)
        else:
            shapes = rng.sample(allowed, count)
        looks = list(zip(colours, shapes, strict=True))
        if not still:
            return [(c, s, rng.choice(_motions(c, s))) for c, s in looks]
        # A picture shows shapes at rest. Other shapes, not other colours: that keeps both equally frequent.
        if not any(held_out_shape(c, s, "still") for c, s in looks):
            return [(c, s, "still") for c, s in looks]


def _place(rng: random.Random, window: int, start: float, stop: float, looks: list[Look]) -> list[Shape]:
    """Puts the shapes of one window where they stay inside the picture and never touch each other."""
    count = len(looks)
    short = stop - start < 1.5
    appear = start + rng.uniform(0.0, 0.1 if short else 0.2)
    vanish = stop - rng.uniform(0.0, 0.06 if short else 0.1)
    if stop == start:  # an image
        appear = vanish = start
    generator = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    steps = np.array([_STEPS[motion] for _, _, motion in looks], np.float64)  # [shapes, xy]
    low, high = _RADII[count]
    tries = (1, 48, 384)[count - 1]
    for _ in range(2000):  # where three shapes all move along, few places are left
        radii = generator.uniform(low, high, (tries, count, 1))
        room = CANVAS - 2 * radii - 2.5
        travel = np.minimum(generator.uniform(*_TRAVEL, (tries, count, 1)), room)
        shift = steps * travel
        # The box of all positions of a shape is `room` wide: leave out what its own travel needs.
        begin = (
            radii
            + 1.25
            + generator.random((tries, count, 2)) * (room - np.abs(shift))
            + np.maximum(-shift, 0)
        )
        good = _apart(begin, shift, radii[..., 0])
        if good.any():
            chosen = int(np.argmax(good))
            return [
                Shape(
                    *look,
                    window,
                    round(appear, 3),
                    round(vanish, 3),
                    float(radii[chosen, i, 0]),
                    _point(begin[chosen, i]),
                    _point(begin[chosen, i] + shift[chosen, i]),
                    (rng.randint(-14, 14), rng.randint(-14, 14), rng.randint(-14, 14)),
                )
                for i, look in enumerate(looks)
            ]
        high = low  # smaller shapes fit more easily
    raise AssertionError(f"no room for {looks} in one window")


def _point(xy: np.ndarray) -> tuple[float, float]:
    return float(xy[0]), float(xy[1])


def _apart(begin: np.ndarray, shift: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which tries keep all shapes apart throughout: begin, shift [tries, shapes, 2] -> bool [tries]."""
    good = np.ones(len(begin), bool)
    for a in range(begin.shape[1]):
        for b in range(a):
            away, speed = begin[:, a] - begin[:, b], shift[:, a] - shift[:, b]
            nearest = np.clip(-(away * speed).sum(-1) / np.maximum((speed**2).sum(-1), 1e-9), 0, 1)
            distance = np.linalg.norm(away + nearest[:, None] * speed, axis=-1)
            good &= distance >= radii[:, a] + radii[:, b] + _GAP
    return good


def _sample_sounds(rng: random.Random, split: str, duration: float, planned: str | None) -> tuple[Sound, ...]:
    windows = window_count(duration)
    count = _draw(rng, EVENT_COUNTS[windows])
    if planned is None:
        kinds = rng.sample(KINDS, count)
    else:
        kinds = rng.sample([planned, *rng.sample([k for k in KINDS if k != planned], count - 1)], count)
    sounds = []
    for kind, window in zip(kinds, sorted(rng.sample(range(windows), count)), strict=True):
        start, stop = window * WINDOW, min((window + 1) * WINDOW, duration)
        sounds.append(_sample_sound(rng, split, kind, window, start, stop))
    return tuple(sounds)


def _sample_sound(rng: random.Random, split: str, kind: str, window: int, start: float, stop: float) -> Sound:
    short = stop - start < 1.5
    begin = start + rng.uniform(0.02, 0.1 if short else 0.3)
    length = rng.uniform(0.7, 0.8) if short else rng.uniform(0.9, 1.5)
    fields: dict[str, Any] = {}
    if kind == "beeps":
        fields["count"] = rng.randint(1, 4)
    elif kind == "voice":
        word = rng.choice(WORDS)
        voice = rng.choice(_voices(word, split == "comp"))
        fields |= {"word": word, "voice": voice, "emotion": rng.choice(EMOTIONS), "take": rng.getrandbits(30)}
    return Sound(
        kind, window, round(begin, 3), round(length, 3), rng.uniform(0.4, 1.0), rng.getrandbits(60), **fields
    )


def _draw(rng: random.Random, weights: dict) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
