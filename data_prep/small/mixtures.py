"""Mixtures, true by construction: sounds in order, at times and in numbers, voices over sounds, pictures with
sounds, silence and noise; and questions that compare two recordings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain

from data_prep.small.made import Plan
from data_prep.small.phrasing import Ask, captions, things
from data_prep.small.questions import row_of
from data_prep.small.sets import Facts, Recording
from mllm.records.record import Record

SET = "mixtures"
SEQUENCES, TIMED, COUNTED, OVER, QUIET, SHOWN = 300, 240, 280, 320, 140, 160  # recordings for training
SAME, CHILD, SIDE_BY_SIDE = 180, 420, 320  # questions about two recordings; SAME of each kind
TEST_SHARE = 0.2  # of these numbers for the test
SINGLE = ("dog bark", "person sneeze", "rooster")  # sounds that can be counted
TIMES = ["once", "twice", "three times", "four times"]
KINDS = {"digit": "digit", "keyword": "word", "emotion": "emotion", "event": "sound", "thing": "thing"}


def mixtures(plan: Plan, recordings: list[Recording]) -> list[Recording]:
    """All made recordings of a split, of that split's recordings alone."""
    share = TEST_SHARE if plan.split == "test" else 1.0
    return list(
        chain.from_iterable(
            make(plan, recordings, round(number * share))
            for make, number in (
                (_sequences, SEQUENCES),
                (_timed, TIMED),
                (_counted, COUNTED),
                (_over, OVER),
                (_quiet, QUIET),
                (_shown, SHOWN),
            )
        )
    )


def _having(recordings: list[Recording], fact: str) -> list[Recording]:
    return [recording for recording in recordings if fact in recording.facts]


def _sequences(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """Two sounds, one after the other."""
    sounds = _having(recordings, "event")
    for i in range(number if sounds else 0):
        rng = plan.rng("sequence", i)
        first = rng.choice(sounds)
        second = rng.choice(
            [other for other in sounds if other.facts["event"] != first.facts["event"]] or [first]
        )
        begins, then = rng.choice((0, 0, 1)), rng.randint(3, 5)
        events = [first.facts["event"], second.facts["event"]]
        facts: Facts = {"order": events, "when": {events[1]: then}, "heard": _in_order(events)}
        pieces = [(begins, str(first.path), 1.7), (then, str(second.path), 1.7)]
        yield plan.add(SET, f"mixtures/order-{i}", facts, "sequence", pieces, float(then + 2))


def _in_order(events: list[str]) -> list[str]:
    first, second = (things()["sounds"][event]["captions"][0].rstrip(".") for event in events)
    return [f"{first}, then {second[0].lower()}{second[1:]}."]


def _timed(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """One sound at a whole second."""
    sounds = _having(recordings, "event")
    for i in range(number if sounds else 0):
        rng = plan.rng("timed", i)
        sound, time = rng.choice(sounds), i % 7
        event = sound.facts["event"]
        facts = {"when": {event: time}, "event": event}
        yield plan.add(SET, f"mixtures/timed-{i}", facts, "sequence", [(time, str(sound.path), 1.2)], 8.0)


def _counted(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """The same short sound once to four times."""
    sounds = [sound for sound in _having(recordings, "event") if sound.facts["event"] in SINGLE]
    for i in range(number if sounds else 0):
        rng = plan.rng("counted", i)
        sound, times = rng.choice(sounds), i % 4 + 1
        gaps = [round(rng.uniform(0.3, 0.5), 2) for _ in range(times)]
        facts = {"count": TIMES[times - 1], "event": sound.facts["event"]}
        yield plan.add(SET, f"mixtures/counted-{i}", facts, "repeated", str(sound.path), gaps)


def _over(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """A voice over a sound."""
    sounds = _having(recordings, "event")
    voices = [voice for voice in _having(recordings, "text") if len(voice.facts["text"]) < 60]
    for i in range(number if sounds and voices else 0):
        rng = plan.rng("over", i)
        voice, sound = rng.choice(voices), rng.choice(sounds)
        told: Facts = {key: voice.facts[key] for key in ("text", "language", "speech") if key in voice.facts}
        facts = told | {"behind": sound.facts["event"]}
        args = (voice.part, str(sound.path), round(rng.uniform(3, 12), 1))
        yield plan.add(SET, f"mixtures/over-{i}", facts, "over", *args)


def _quiet(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """Silence, and noise."""
    for i in range(number):
        rng = plan.rng("quiet", i)
        silent = i % 3 == 0
        answer = "Nothing is heard." if silent else "Only noise is heard."
        told = captions("silence" if silent else "noise")
        facts: Facts = {"nothing": answer, "speech": False, "heard": told}
        loudness = 0.0 if silent else round(rng.uniform(0.02, 0.5), 3)
        args = (round(rng.uniform(1, 4), 1), loudness, round(rng.uniform(-1, 0), 2))
        yield plan.add(SET, f"mixtures/quiet-{i}", facts, "noise", *args)


def _shown(plan: Plan, recordings: list[Recording], number: int) -> Iterator[Recording]:
    """A still picture with a sound, as a video."""
    pictures, sounds = _having(recordings, "thing"), _having(recordings, "event")
    for i in range(number if pictures and sounds else 0):
        rng = plan.rng("shown", i)
        picture, sound = rng.choice(pictures), rng.choice(sounds)
        facts = {"thing": picture.facts["thing"], "event": sound.facts["event"], "pictured": True}
        args = (str(picture.path), str(sound.path))
        yield plan.add(SET, f"mixtures/shown-{i}", facts, "clip", *args, suffix=".mp4")


# --- questions about two recordings -------------------------------------------------------------------------


def compared(plan: Plan, recordings: list[Recording]) -> Iterator[list[Record]]:
    """Groups of records about two recordings each."""
    share = TEST_SHARE if plan.split == "test" else 1.0
    for fact in KINDS:
        for i in range(round(SAME * share)):
            if rows := _same(plan, recordings, fact, i):
                yield rows
    children = [r for r in recordings if r.facts.get("age") == "a child"]
    adults = [r for r in recordings if r.facts.get("age") == "an adult"]
    for i in range(round(CHILD * share) if children and adults else 0):
        rng = plan.rng("child", i)
        pair = [rng.choice(children), rng.choice(adults)]
        ask = Ask("which_child", "the second" if i % 2 else "the first")
        yield [_about(plan, f"child-{i}", pair[:: -1 if i % 2 else 1], ask, rng)]
    pictures, sounds = _having(recordings, "thing"), _having(recordings, "event")
    for i in range(round(SIDE_BY_SIDE * share) if pictures and sounds else 0):
        rng = plan.rng("side by side", i)
        pair = [rng.choice(pictures), rng.choice(sounds)]
        thing, event = pair[0].facts["thing"], pair[1].facts["event"]
        asks = [Ask("seen_heard", f"{thing}, {event}"), Ask("object_open", thing), Ask("sound_open", event)]
        yield [_about(plan, f"side-{i}", pair, ask, rng) for ask in asks[: 3 if plan.split == "train" else 1]]


def _same(plan: Plan, recordings: list[Recording], fact: str, number: int) -> list[Record]:
    rng = plan.rng("same", fact, number)
    known = [r for r in _having(recordings, fact) if r.set not in ("grid", SET)]
    values = sorted({r.facts[fact] for r in known})
    if len(values) < 2:
        return []
    alike = number % 2 == 0
    chosen = [[r for r in known if r.facts[fact] == value] for value in rng.sample(values, 2)]
    several = next((some for some in chosen if len(some) > 1), None)
    if alike and several is None:
        return []
    pair = rng.sample(several, 2) if alike and several else [rng.choice(some) for some in chosen]
    ask = Ask("same", "yes" if alike else "no", words={"what": KINDS[fact]})
    return [_about(plan, f"same-{fact}-{number}", pair, ask, rng)]


def _about(plan: Plan, name: str, pair: list[Recording], ask: Ask, rng: random.Random) -> Record:
    return row_of(f"{SET}/{name}", 0, [recording.part for recording in pair], ask, plan.split, rng)
