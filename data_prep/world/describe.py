"""Puts a scene into words: phrases for shapes and sounds, the timeline, and captions."""

from __future__ import annotations

from data_prep.world.scene import WINDOW, Scene, Shape, Sound

PHRASINGS = 3  # of a caption
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# "what do you hear?" — "a bell"
KIND_ANSWERS = {
    "rising tone": "a rising tone",
    "falling tone": "a falling tone",
    "beeps": "beeps",
    "bell": "a bell",
    "piano": "a piano",
    "flute": "a flute",
    "drum": "a drum",
    "noise": "noise",
    "voice": "a voice",
}
# "when does the bell ring?"
KIND_HAPPENS = {
    "rising tone": "does the tone rise",
    "falling tone": "does the tone fall",
    "beeps": "do the beeps sound",
    "bell": "does the bell ring",
    "piano": "does the piano play",
    "flute": "does the flute play",
    "drum": "does the drum beat",
    "noise": "does the noise hiss",
    "voice": "does the voice speak",
}
_KIND_EVENTS = {
    "rising tone": "a tone rises",
    "falling tone": "a tone falls",
    "bell": "a bell rings",
    "piano": "a piano plays",
    "flute": "a flute plays",
    "drum": "a drum beats",
    "noise": "noise hisses",
}
_MOTION_VERBS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
}


def clock(window: int) -> str:
    """When a window starts, "00:02"."""
    seconds = int(window * WINDOW)
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def shape_event(shape: Shape) -> str:
    """ "a red star moves left" """
    return f"a {shape.name} {_MOTION_VERBS[shape.motion]}"


def sound_event(sound: Sound) -> str:
    """ "three beeps sound", "a calm voice says banana" """
    if sound.kind == "beeps":
        return "one beep sounds" if sound.count == 1 else f"{NUMBERS[sound.count]} beeps sound"
    if sound.kind == "voice":
        article = "an" if sound.emotion[0] in "aeiou" else "a"
        return f"{article} {sound.emotion} voice says {sound.word}"
    return _KIND_EVENTS[sound.kind]


def timeline(scene: Scene, which: str) -> str | None:
    """What is seen and heard in every window: "[00:00] a red star moves left. a bell rings. [00:02] nothing."

    Args:
        which: "video", "audio" or "both"; None comes back when the scene lacks the asked-for modality, and
            "both" of a scene that has only one is that one.
    """
    if (which == "video" and not scene.has_picture) or (which == "audio" and not scene.has_sound):
        return None
    if scene.form == "image":
        return image_caption(scene)
    lines = []
    for window in range(scene.windows):
        shapes, sounds = events(scene, window, which)
        sentences = [text + "." for text in (" and ".join(shapes), *sounds) if text]
        lines.append(f"[{clock(window)}] {' '.join(sentences) or 'nothing.'}")
    return " ".join(lines)


def caption(scene: Scene, which: str, phrasing: int = 0) -> str | None:
    """The scene in order of time: "a red star moves left while a bell rings, then a blue circle stays still."

    Args:
        which: as in `timeline`.
        phrasing: 0 to PHRASINGS - 1; the first is what caption questions are answered with.
    """
    if (which == "video" and not scene.has_picture) or (which == "audio" and not scene.has_sound):
        return None
    if scene.form == "image":
        return image_caption(scene)
    steps = []
    for window in range(scene.windows):
        shapes, sounds = events(scene, window, which)
        if shapes or sounds:
            steps.append(" while ".join(text for text in (" and ".join(shapes), *sounds) if text))
    if phrasing == 1 and len(steps) > 1:
        return f"first {', then '.join(steps)}."
    if phrasing == 2 and len(steps) > 1:
        return f"{steps[0]}. {' '.join(f'then {step}.' for step in steps[1:])}"
    return ", then ".join(steps) + "."


def image_caption(scene: Scene) -> str:
    return " and ".join(f"a {shape.name}" for shape in scene.shapes) + "."


def events(scene: Scene, window: int, which: str = "both") -> tuple[list[str], list[str]]:
    """(what is seen, what is heard) in one window, shapes in the order of `scene.COLOURS`."""
    shapes = [shape_event(s) for s in scene.shapes if s.window == window and which != "audio"]
    sounds = [sound_event(s) for s in scene.sounds if s.window == window and which != "video"]
    return shapes, sounds
