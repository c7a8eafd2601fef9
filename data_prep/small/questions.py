"""What is asked about one recording, and the captions that are true of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_prep.small.phrasing import Ask, capital, captions, put, things, with_article
from data_prep.small.sets import DIGITS, LANGUAGES, Recording, Split
from mllm.records.record import Record

NO_SOUND, NO_PICTURE, NO_SPEECH = "There is no sound.", "There is no picture.", "There is no speech."
SILENT = ("caltech101", "coco_mini", "intel_clips")
COLOURS = ["blue", "green", "red", "white"]
EMOTIONS = ["afraid", "angry", "bored", "disgusted", "happy", "neutral", "sad"]
AGES = ["a child", "an adult"]
WORDS = {"adverb": ["again", "now", "please", "soon"], "command": ["bin", "lay", "place", "set"]}
FACE = "A person speaks to the camera."
MOST = 6  # questions about one recording: the rest would wait for another round of training


class Questions:
    """Asks about recordings: which questions, in which words, depends on the seed and the recording alone.

    Args:
        vocabulary: the answers of the sets: "keyword" -> 40 words, "thing" -> names, "object" -> names.
    """

    def __init__(self, split: Split, seed: int, vocabulary: dict[str, list[str]]) -> None:
        self.split: Split = split
        self.seed = seed
        self.vocabulary = vocabulary

    def rows(self, recording: Recording, most: int = MOST) -> list[Record]:
        """Records about one recording, of which the first has the captions."""
        rng = random.Random(f"{self.seed} {self.split} {recording.id}")
        asks = list(self.asks(recording, rng))
        if self.split == "train" and len(asks) > most:
            chosen = sorted(rng.sample(range(len(asks)), most))
            asks = [asks[i] for i in chosen]
        rows = [
            row_of(recording.id, number, [recording.part], ask, self.split, rng, recording)
            for number, ask in enumerate(asks)
        ]
        if rows and (told := captions_of(recording)):
            rows[0]["captions"] = told
        return rows

    def asks(self, recording: Recording, rng: random.Random) -> Iterator[Ask]:
        """The questions; those of the test are each task's plain one, once."""
        train = self.split == "train"
        for fact, asked in ASKED.items():
            made = recording.set == "mixtures" and fact in ("event", "thing") and not train
            if recording.facts.get(fact) is not None and not made:
                yield from asked(self, recording, rng, train)
        if recording.set == "fsdd" and not train:  # never trained for language: a corpus apart
            yield Ask("language", "English", LANGUAGES)
        if recording.set in SILENT and rng.random() < 0.6:
            yield Ask("no_sound", NO_SOUND)
        elif recording.is_sound and rng.random() < 0.08:
            yield Ask("no_picture", NO_PICTURE)

    def _some(self, kind: str, answer: str, number: int, rng: random.Random) -> list[str]:
        """The answer and some other words of its kind, in the order of the vocabulary."""
        others = [word for word in self.vocabulary[kind] if word != answer]
        chosen = {answer, *rng.sample(others, min(number - 1, len(others)))}
        return [word for word in self.vocabulary[kind] if word in chosen]

    # --- what is heard --------------------------------------------------------------------------------------

    def _text(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("transcript", recording.facts["text"])

    def _digit(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        digit = recording.facts["digit"]
        yield Ask("digit", digit, DIGITS)
        if train and recording.set == "fsdd" and rng.random() < 0.4:
            yield Ask("digit", digit, DIGITS)

    def _colour(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("colour", recording.facts["colour"], COLOURS)

    def _letter(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("letter", recording.facts["letter"])

    def _word(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        kind = rng.choice(sorted(WORDS))
        yield Ask("word", recording.facts[kind], WORDS[kind])

    def _face(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        if not train or recording.is_sound:
            return
        said = recording.facts["text"]
        yield Ask("caption_both", f'A person says to the camera: "{said}."')
        if rng.random() < 0.25:
            yield Ask("caption_video", FACE)

    def _keyword(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        word = recording.facts["keyword"]
        if not train or rng.random() < 0.13:  # a list of forty words is long, and others are padded to it
            yield Ask("keyword", word, self.vocabulary["keyword"])
        if not train:
            return
        if rng.random() < 0.6:
            yield Ask("keyword", word, self._some("keyword", word, rng.choice((4, 10, 10)), rng))
        if rng.random() < 0.5:
            yield Ask("keyword_open", word)

    def _language(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        share = {"arabic_commands": 0.35, "grid": 0.35, "words": 1.0}.get(recording.set, 0.6)
        if not train or rng.random() < share:
            yield Ask("language", recording.facts["language"], LANGUAGES)

    def _age(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("age_group", recording.facts["age"], AGES)
        if train and (recording.facts["age"] == "a child" or rng.random() < 0.6):
            yield Ask("age_group", recording.facts["age"], AGES)

    def _emotion(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        emotion = recording.facts["emotion"]
        yield Ask("emotion", emotion, EMOTIONS)
        if not train:
            return
        yield Ask(
            "emotion", emotion, EMOTIONS if rng.random() < 0.5 else self._some("emotion", emotion, 4, rng)
        )
        if rng.random() < 0.9:
            yield Ask("emotion_open", emotion)

    def _event(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        event = recording.facts["event"]
        if recording.set == "mixtures":  # which asks its own questions
            yield Ask("sound_event", event, self.vocabulary["event"])
            return
        sounds = things()["sounds"]
        options = self.vocabulary["event"]
        yield Ask("sound_event", event, options)
        if train and rng.random() < 0.6:
            yield Ask("sound_event", event, self._some("event", event, 4, rng))
        yield Ask("sound_open", event)
        for other in yes_or_no(event, options, rng, both=train):
            words = {"thing": sounds[other]["thing"]}
            yield Ask("sound_yes", "yes" if other == event else "no", words=words)
        if train and rng.random() < 0.5:
            yield Ask("caption_audio", sounds[event]["captions"][0])

    def _order(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        first, last = recording.facts["order"]
        yield Ask("first", first, words={"place": "first"})
        yield Ask("first", last, words={"place": rng.choice(("last", "second", "at the end"))})
        absent = [event for event in self.vocabulary["event"] if event not in (first, last)]
        if train and absent:
            there, not_there = rng.choice((first, last)), rng.choice(absent)
            yield Ask("sound_yes", "yes", words={"thing": things()["sounds"][there]["thing"]})
            yield Ask("sound_yes", "no", words={"thing": things()["sounds"][not_there]["thing"]})

    def _when(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        for event, second in recording.facts["when"].items():
            for _ in range(2 if train else 1):
                yield Ask("when", f"{second}s", words={"thing": things()["sounds"][event]["thing"]})

    def _count(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        thing = things()["sounds"][recording.facts["event"]]["thing"]
        for _ in range(3 if train else 1):
            yield Ask("count", recording.facts["count"], words={"thing": thing})

    def _behind(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        for _ in range(2 if train else 1):
            yield Ask("behind", recording.facts["behind"])

    def _nothing(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        for _ in range(3 if train else 1):
            yield Ask("nothing", recording.facts["nothing"])

    def _pictured(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        thing, event = recording.facts["thing"], recording.facts["event"]
        yield Ask("seen_heard", f"{thing}, {event}")
        if train:
            yield Ask("object_open", thing)
            yield Ask("sound_open", event)

    def _speech(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        speaks = recording.facts["speech"]
        if rng.random() < ((0.07 if speaks else 0.8) if train else 0.2):
            yield Ask("speech_yes", "yes" if speaks else "no")
        if not speaks and rng.random() < (0.6 if train else 0.4):
            yield Ask("no_speech", NO_SPEECH)

    # --- what is seen ---------------------------------------------------------------------------------------

    def _thing(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        thing = recording.facts["thing"]
        yield Ask("object", thing, self._some("thing", thing, 10, rng))
        if recording.set == "mixtures":
            return
        yield Ask("object_open", thing)
        for other in yes_or_no(thing, self.vocabulary["thing"], rng, both=False):
            words = {"thing": with_article(other)}
            yield Ask("object_yes", "yes" if other == thing else "no", words=words)
        if train and rng.random() < 0.4:
            yield Ask("caption_image", f"A picture of {with_article(thing)}.")

    def _objects(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        seen = list(recording.facts["objects"])
        others = [name for name in self.vocabulary["object"] if name not in seen]
        if train and seen and others:
            yield Ask("object_yes", "yes", words={"thing": with_article(rng.choice(seen))})
            yield Ask("object_yes", "no", words={"thing": with_article(rng.choice(others))})

    def _seen(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        task = "caption_image" if recording.part["type"] == "image" else "caption_video"
        told = list(recording.facts["seen"])
        for caption in rng.sample(told, min(3, len(told))) if train else told[:1]:
            yield Ask(task, caption)

    def _wear(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("wear", recording.facts["wear"])

    def _filmed(self, recording: Recording, rng: random.Random, train: bool) -> Iterator[Ask]:
        yield Ask("object", recording.facts["filmed"], recording.facts["filmed_options"])


ASKED = {
    "text": Questions._text,
    "digit": Questions._digit,
    "colour": Questions._colour,
    "letter": Questions._letter,
    "adverb": Questions._word,
    "face": Questions._face,
    "keyword": Questions._keyword,
    "language": Questions._language,
    "age": Questions._age,
    "emotion": Questions._emotion,
    "event": Questions._event,
    "order": Questions._order,
    "when": Questions._when,
    "count": Questions._count,
    "behind": Questions._behind,
    "nothing": Questions._nothing,
    "pictured": Questions._pictured,
    "speech": Questions._speech,
    "thing": Questions._thing,
    "objects": Questions._objects,
    "seen": Questions._seen,
    "wear": Questions._wear,
    "filmed": Questions._filmed,
}


def row_of(
    id: str,
    number: int | str,
    parts: list[dict],
    ask: Ask,
    split: Split,
    rng: random.Random,
    recording: Recording | None = None,
) -> Record:
    """A record of one question about `parts`."""
    text, options = put(ask, split, rng)
    row: Record = {
        "id": f"{id}/{ask.task}/{number}",
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": text}]},
            {"role": "assistant", "content": ask.answer},
        ],
        "task": ask.task,
        "source": recording.set if recording else id.partition("/")[0],
        "answer": ask.answer,
    }
    return row | ({"options": options} if options else {})


def yes_or_no(true: str, names: list[str], rng: random.Random, both: bool) -> list[str]:
    """What to ask for: the true name or another, each as often; with `both` one of each, in random order."""
    other = rng.choice([name for name in names if name != true])
    asked = [true, other]
    rng.shuffle(asked)
    return asked if both else asked[:1]


def captions_of(recording: Recording) -> dict[str, list[str]]:
    """True captions: of what is seen, what is heard, and both; {} if nothing is known that has a name."""
    facts = recording.facts
    seen = list(facts.get("seen") or [])
    heard: list[str] = list(facts.get("heard") or [])
    both: list[str] = []
    if "thing" in facts:
        thing = with_article(facts["thing"])
        seen += captions("object", thing=thing, Thing=capital(thing), name=facts["thing"])
    if "event" in facts:
        heard += things()["sounds"][facts["event"]]["captions"]
    if "text" in facts:
        said = capital(facts["text"]).rstrip(".") + "."
        kind = "said" if facts.get("language") != "German" else "said_in"
        heard += captions(kind, text=said, language=facts.get("language", ""))
        if "age" in facts:
            heard += captions("by", who=facts["age"], Who=capital(facts["age"]), text=said)
        if "face" in facts and not recording.is_sound:
            seen += captions("face")
            both += captions("face_says", text=said)
    elif "digit" in facts:
        heard += captions("digit", digit=facts["digit"])
    if "keyword" in facts:
        heard += captions("keyword", word=facts["keyword"])
    if "emotion" in facts:
        emotion = facts["emotion"]
        heard += captions("emotion", emotion=emotion, Emotion=capital(emotion))
    if not (seen or heard):
        return {}
    return {"video": seen, "audio": heard, "both": both}
