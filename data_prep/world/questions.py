"""Questions about an episode and their answers.

Every closed type is balanced by construction: its answer is a free choice of the scene's sampler (a colour, a
word, which of two random moments comes first), and its subject is picked without looking at it. A kind of
sound that is put into a scene on purpose therefore never answers "what do you hear?".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.world import describe
from data_prep.world.phrases import (
    COMP_TYPES,
    NO_PICTURE,
    NO_RECORDING,
    NO_SOUND,
    PHRASES,
    TALK,
    TYPES,
    WEIGHTS,
)
from data_prep.world.scene import (
    COLOURS,
    EMOTIONS,
    KINDS,
    MOTIONS,
    SHAPES,
    WORDS,
    Episode,
    Scene,
    Shape,
    Sound,
)

_TIMES = tuple(describe.clock(window) for window in range(3))
_COUNTS = describe.NUMBERS[1:4]
_BEEPS = describe.NUMBERS[1:5]
_HEARD = tuple(describe.KIND_ANSWERS[kind] for kind in KINDS)
_YES_NO = ("yes", "no")
_CLIPS = ("the first", "the second")
_NAMED = tuple(f"it says {word}: {verdict}" for word in SHAPES for verdict in _YES_NO)


@dataclass(frozen=True)
class Question:
    """A question, its answer and, for closed types, all answers that the type has."""

    type: str
    text: str
    answer: str
    options: tuple[str, ...] | None = None


def ask(episode: Episode, rng: random.Random, count: int | None = None) -> list[Question]:
    """Up to `count` questions about an episode, of different types if possible; of all types if None."""
    if episode.form == "chat":
        return _several(lambda: _chat(rng), 4 if count is None else count)
    if episode.form == "two":
        asked = _ask_two(episode, rng)
        rng.shuffle(asked)
        return asked[:count]
    (scene,) = episode.scenes
    types = COMP_TYPES if episode.split == "comp" else TYPES
    asked = [q for kind in types if kind in _ASKERS and (q := _ASKERS[kind](scene, rng)) is not None]
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006).
    ranked = sorted(asked, key=lambda q: rng.random() ** (1 / WEIGHTS[q.type]), reverse=True)
    return ranked[:count]


def _question(
    kind: str, answer: str, options: tuple[str, ...] | None, rng: random.Random, **slots: str
) -> Question:
    text = rng.choice(PHRASES[kind])
    for slot, value in slots.items():
        text = text.replace("{" + slot.replace("_", " ") + "}", value)
    return Question("kind" if kind == "kind_at" else kind, text, answer, options)


def _several(make: Callable[[], Question], count: int) -> list[Question]:
    """`count` different questions."""
    made: dict[str, Question] = {}
    while len(made) < count:
        question = make()
        made[question.text] = question
    return list(made.values())


def _has_times(scene: Scene, rng: random.Random) -> bool:
    """Whether to ask for a time.

    Clips of two windows have only two of the three times; asking rarely keeps each a poor guess.
    """
    return scene.windows > 2 or (scene.windows == 2 and rng.random() < 0.1)


# --- about shapes -------------------------------------------------------------------------------------------


def _subject(scene: Scene, rng: random.Random) -> Shape:
    """The shape to ask about in a scene that has some: the held-out one if there is one."""
    return scene.target or rng.choice(scene.shapes)


def _names(shape: Shape) -> dict[str, str]:
    return {"shape": shape.shape, "colour": shape.colour, "name": shape.name}


def _about_shape(kind: str, options: tuple[str, ...], answer: Callable[[Shape], str]):
    def asker(scene: Scene, rng: random.Random) -> Question | None:
        if not scene.shapes or (scene.form == "image") != kind.startswith("image"):
            return None
        shape = _subject(scene, rng)
        return _question(kind, answer(shape), options, rng, **_names(shape))

    return asker


def _when_shape(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.shapes or not _has_times(scene, rng):
        return None
    shape = _subject(scene, rng)
    return _question("when_shape", describe.clock(shape.window), _TIMES, rng, **_names(shape))


def _first_colour(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.shapes) < 2 or scene.form == "image" or scene.shapes[0].window == scene.shapes[1].window:
        return None
    first = scene.shapes[0]
    if scene.target not in (None, first):
        return None
    return _question("first_colour", first.colour, COLOURS, rng)


# --- about sounds -------------------------------------------------------------------------------------------


def _heard(scene: Scene) -> list[Sound]:
    """The sounds that came by chance: their kinds are all equally likely."""
    return [sound for sound in scene.sounds if sound.kind != scene.planned]


def _kind(scene: Scene, rng: random.Random) -> Question | None:
    if not _heard(scene):
        return None
    sound = rng.choice(_heard(scene))
    kind = "kind" if len(scene.sounds) == 1 and rng.random() < 0.6 else "kind_at"
    answer = describe.KIND_ANSWERS[sound.kind]
    return _question(kind, answer, _HEARD, rng, time=describe.clock(sound.window))


def _beeps(scene: Scene, rng: random.Random) -> Question | None:
    for sound in scene.sounds:
        if sound.kind == "beeps":
            return _question("beeps", describe.NUMBERS[sound.count], _BEEPS, rng)
    return None


def _voice(scene: Scene) -> Sound | None:
    return next((sound for sound in scene.sounds if sound.kind == "voice"), None)


def _word(scene: Scene, rng: random.Random) -> Question | None:
    voice = _voice(scene)
    return _question("word", voice.word, WORDS, rng) if voice else None


def _emotion(scene: Scene, rng: random.Random) -> Question | None:
    voice = _voice(scene)
    return _question("emotion", voice.emotion, EMOTIONS, rng) if voice else None


def _first_sound(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.sounds) < 2:
        return None
    ends = {"first": scene.sounds[0], "last": scene.sounds[-1]}
    which = rng.choice([name for name, sound in ends.items() if sound.kind != scene.planned])
    return _question("first_sound", describe.KIND_ANSWERS[ends[which].kind], _HEARD, rng, first=which)


def _when_sound(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.sounds or not _has_times(scene, rng):
        return None
    sound = (_voice(scene) if scene.split == "comp" else None) or rng.choice(scene.sounds)
    return _question("when_sound", describe.clock(sound.window), _TIMES, rng, **_sound_names(sound))


def _sound_names(sound: Sound) -> dict[str, str]:
    a_sound = describe.KIND_ANSWERS[sound.kind]
    the_sound = "the " + sound.kind
    return {"a_sound": a_sound, "the_sound": the_sound, "happens": describe.KIND_HAPPENS[sound.kind]}


# --- about both ---------------------------------------------------------------------------------------------


def _together(scene: Scene, sounds: list[Sound], alone: bool) -> list[tuple[Shape, Sound]]:
    """Shapes and sounds of the same window; if `alone`, only shapes without another in that window."""
    pairs = []
    for sound in sounds:
        shapes = [shape for shape in scene.shapes if shape.window == sound.window]
        if not alone or len(shapes) == 1:
            pairs += [(shape, sound) for shape in shapes if scene.target in (None, shape)]
    return pairs


def _see_at_sound(scene: Scene, rng: random.Random) -> Question | None:
    pairs = _together(scene, list(scene.sounds), alone=True)
    if not pairs:
        return None
    shape, sound = rng.choice(pairs)
    return _question("see_at_sound", shape.colour, COLOURS, rng, **_sound_names(sound))


def _hear_at_shape(scene: Scene, rng: random.Random) -> Question | None:
    pairs = _together(scene, _heard(scene), alone=False)
    if not pairs:
        return None
    shape, sound = rng.choice(pairs)
    return _question("hear_at_shape", describe.KIND_ANSWERS[sound.kind], _HEARD, rng, **_names(shape))


def _order(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [
        (shape, sound)
        for shape in scene.shapes
        for sound in scene.sounds
        if shape.window != sound.window and scene.target in (None, shape)
    ]
    if not pairs:
        return None
    shape, sound = rng.choice(pairs)
    before = rng.choice(("before", "after"))
    answer = "yes" if (shape.window < sound.window) == (before == "before") else "no"
    return _question("order", answer, _YES_NO, rng, before=before, **_names(shape), **_sound_names(sound))


def _named(scene: Scene, rng: random.Random) -> Question | None:
    """Only if the word is the name of some shape; otherwise the word alone would give the answer away.

    The answer says what it heard before it judges: comparing sound with picture in one step was not learned.
    """
    voice = _voice(scene)
    if voice is None or voice.word not in SHAPES or not scene.shapes:
        return None
    verdict = "yes" if any(shape.shape == voice.word for shape in scene.shapes) else "no"
    return _question("named", f"it says {voice.word}: {verdict}", _NAMED, rng)


# --- two clips, captions, what is missing, chat -------------------------------------------------------------


def _ask_two(episode: Episode, rng: random.Random) -> list[Question]:
    asked = []
    for clip, scene in zip(_CLIPS, episode.scenes, strict=True):
        shape, sound = scene.shapes[0], scene.sounds[0]
        if episode.split != "comp":
            asked.append(_question("two_sound", clip, _CLIPS, rng, **_sound_names(sound)))
        if episode.split != "comp" or scene.target:
            asked.append(_question("two_shape", clip, _CLIPS, rng, **_names(shape)))
    return asked


def _caption(which: str):
    def asker(scene: Scene, rng: random.Random) -> Question | None:
        text = describe.caption(scene, which)
        if text is None or (which == "both" and scene.form != "both"):
            return None
        return _question(f"caption_{which}", text, None, rng)

    return asker


def _missing(scene: Scene, rng: random.Random) -> Question | None:
    """A question about the modality that the recording lacks."""
    if scene.form == "video":
        kind = rng.choice(
            ("kind", "kind", "kind_at", "beeps", "word", "emotion", "caption_audio", "when_sound")
        )
        slots = {"time": rng.choice(_TIMES[: scene.windows])}
        slots |= _sound_names(rng.choice(_ANY_SOUNDS))
        return Question("no_sound", _question(kind, "", None, rng, **slots).text, NO_SOUND)
    if scene.form == "audio":
        kind = rng.choice(("colour", "shape", "motion", "count", "when_shape", "caption_video"))
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        names = {"colour": colour, "shape": shape, "name": f"{colour} {shape}"}
        return Question("no_picture", _question(kind, "", None, rng, **names).text, NO_PICTURE)
    return None


_ANY_SOUNDS = tuple(Sound(kind, 0, 0.0, 1.0, 1.0, 0) for kind in KINDS)


def _chat(rng: random.Random) -> Question:
    part = rng.random()
    if part < 0.4:
        answer = rng.choice(tuple(TALK))
        return Question("chat", rng.choice(TALK[answer]), answer)
    if part < 0.7:
        first, second = rng.randint(1, 5), rng.randint(1, 5)
        sign, total = "plus", first + second
        if first > second and rng.random() < 0.5:
            sign, total = "minus", first - second
        ask_for = rng.choice(("what is {}?", "how much is {}?", "tell me what {} is."))
        numbers = describe.NUMBERS
        text = ask_for.format(f"{numbers[first]} {sign} {numbers[second]}")
        return Question("chat", text, numbers[total])
    kind = rng.choice(
        ("colour", "shape", "motion", "count", "when_shape", "order", "caption_video", "caption_both")
        if rng.random() < 0.5
        else ("kind", "word", "emotion", "beeps", "when_sound", "caption_audio")
    )
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    names = {"colour": colour, "shape": shape, "name": f"{colour} {shape}"}
    names |= {"before": rng.choice(("before", "after")), **_sound_names(rng.choice(_ANY_SOUNDS))}
    return Question("chat", _question(kind, "", None, rng, **names).text, NO_RECORDING)


_ASKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "colour": _about_shape("colour", COLOURS, lambda shape: shape.colour),
    "shape": _about_shape("shape", SHAPES, lambda shape: shape.shape),
    "motion": _about_shape("motion", MOTIONS, lambda shape: shape.motion),
    "count": lambda scene, rng: (
        _question("count", describe.NUMBERS[len(scene.shapes)], _COUNTS, rng)
        if scene.shapes and scene.form != "image"
        else None
    ),
    "first_colour": _first_colour,
    "when_shape": _when_shape,
    "kind": _kind,
    "beeps": _beeps,
    "word": _word,
    "emotion": _emotion,
    "first_sound": _first_sound,
    "when_sound": _when_sound,
    "see_at_sound": _see_at_sound,
    "hear_at_shape": _hear_at_shape,
    "order": _order,
    "named": _named,
    "image_colour": _about_shape("image_colour", COLOURS, lambda shape: shape.colour),
    "image_shape": _about_shape("image_shape", SHAPES, lambda shape: shape.shape),
    "image_count": lambda scene, rng: (
        _question("image_count", describe.NUMBERS[len(scene.shapes)], _COUNTS, rng)
        if scene.form == "image"
        else None
    ),
    "no_sound": lambda scene, rng: _missing(scene, rng) if scene.form == "video" else None,
    "no_picture": lambda scene, rng: _missing(scene, rng) if scene.form == "audio" else None,
    "caption_video": _caption("video"),
    "caption_audio": _caption("audio"),
    "caption_both": _caption("both"),
}
