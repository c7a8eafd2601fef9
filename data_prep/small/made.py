"""Recordings made of the sets' own: copies that differ, single words, mixtures; planned, then written once.

A plan is a function of the seed and of the recordings that it is made of; files that are there are kept.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.small import sounds
from data_prep.small.sets import LANGUAGES, Facts, Recording, Split
from data_prep.world.write import write_mp4
from mllm.files import replacing
from mllm.media.recording import SAMPLE_RATE
from mllm.yaml_text import read_yaml

COPIES = {"esc10": 2, "emodb": 2, "speechocean762": 1, "arabic_commands": 1}
SPEED = {"speechocean762": 0.03}  # a child's voice has to stay one
CUTS, SPOKEN = 420, 180  # single words, or pieces as short, of each language
SHORT = (0.25, 1.0)  # s


@dataclass(frozen=True)
class Made:
    """A recording and the call that makes its sound.

    Attributes:
        make: name of a function below that takes a random stream and `args`.
    """

    recording: Recording
    make: str
    args: tuple[Any, ...]


class Plan:
    """Names files below `media` and remembers how each is made."""

    def __init__(self, media: Path, split: Split, seed: int) -> None:
        self.media = media
        self.split: Split = split
        self.seed = seed
        self.made: list[Made] = []

    def rng(self, *key: object) -> random.Random:
        """A random stream of this plan."""
        return random.Random("/".join(map(str, (self.seed, self.split, *key))))

    def add(
        self, set: str, name: str, facts: Facts, make: str, *args: Any, suffix: str = ".flac"
    ) -> Recording:
        """A recording that will be written as `<media>/<split>-<seed>/<name><suffix>`."""
        path = (self.media / f"{self.split}-{self.seed}" / f"{name}{suffix}").absolute()
        modality = "audio" if suffix == ".flac" else "video"
        part = {"type": modality, modality: str(path)}
        recording = Recording(f"{set}/{name}", set, part, facts)
        self.made.append(Made(recording, make, args))
        return recording


def copies(plan: Plan, recordings: Iterable[Recording]) -> Iterator[Recording]:
    """Copies of the scarce sets that differ in speed, pitch, noise, band and loudness."""
    for recording in recordings:
        for number in range(COPIES.get(recording.set, 0)):
            name = f"copies/{recording.id.replace('/', '-')}-{number}"
            speed = SPEED.get(recording.set, 0.06)
            yield plan.add(recording.set, name, recording.facts, "copy", str(recording.path), speed)


def short_speech(plan: Plan, recordings: list[Recording]) -> Iterator[Recording]:
    """Single words, and pieces as short, in every language: neither length nor set tells the language."""
    for language in LANGUAGES:
        spoken = [r for r in recordings if r.facts.get("language") == language and "event" not in r.facts]
        rng = plan.rng("cuts", language)
        facts: Facts = {"language": language, "speech": True}
        for number in range(CUTS if spoken else 0):
            recording = rng.choice(spoken)
            name = f"words/{language}-{number}"
            seconds, telephone = round(rng.uniform(*SHORT), 2), rng.random() < 0.5
            timed = recording.facts.get("words")
            if timed and rng.random() < 0.8:
                start, end, word = rng.choice([word for word in timed if len(word[2]) > 1])
                cut = (str(recording.path), start, end, telephone)
                yield plan.add("words", name, facts | {"text": word}, "word", *cut)
            else:
                yield plan.add("words", name, facts, "cut", str(recording.path), seconds, telephone)
        voices = _words()[language]
        for number in range(SPOKEN):
            word = voices["words"][number % len(voices["words"])]
            voice = rng.choice(voices["voices"]) + rng.choice(_words()["variants"])
            text = {} if language == "Arabic" else {"text": word}  # the decoder does not write Arabic
            yield plan.add("words", f"words/{language}-said-{number}", facts | text, "say", word, voice)


@cache
def _words() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("words.yaml"))


# --- how each is made: (random stream, *args) -> float32 [samples] ------------------------------------------


def copy(rng: random.Random, path: str, speed: float) -> np.ndarray:
    """A changed copy, begun elsewhere if it is longer than a window: then its loudest 4 s."""
    wave = sounds.read(path)
    if len(wave) > 4.9 * SAMPLE_RATE and speed > 0.05:
        wave = sounds.loudest(np.roll(wave, rng.randrange(len(wave))), 4.0)
    return sounds.changed(wave, rng, speed)


def cut(rng: random.Random, path: str, seconds: float, telephone: bool) -> np.ndarray:
    """A short piece of a recording."""
    return sounds.piece(sounds.read(path), rng, seconds, telephone)


def word(rng: random.Random, path: str, start: float, end: float, telephone: bool) -> np.ndarray:
    """One word of a recording, with a little of what is around it."""
    wave = sounds.read(path, max(start - 0.04, 0), end + 0.04)
    return sounds.piece(wave, rng, 10.0, telephone)


def say(rng: random.Random, text: str, voice: str) -> np.ndarray:
    """A word by espeak-ng."""
    return sounds.spoken(text, voice, rng)


def sequence(rng: random.Random, pieces: list[tuple[int, str, float]], seconds: float) -> np.ndarray:
    """The loudest stretches of recordings at whole seconds, over faint noise."""
    parts = []
    for time, path, longest in pieces:
        stretch = sounds.loudest(sounds.read(path), longest)
        level = sounds.loudness(stretch)  # begin where the sound begins, so that the time is true
        onset = int(np.argmax(level > 0.2 * level.max())) * sounds.FRAME
        parts.append((float(time), sounds.scaled(sounds.faded(stretch[onset:]), rng.uniform(0.5, 0.9))))
    mixed = sounds.placed(parts, seconds)
    return mixed + sounds.hiss(len(mixed), rng, -0.5) * rng.uniform(0.0005, 0.003)


def repeated(rng: random.Random, path: str, gaps: list[float]) -> np.ndarray:
    """One short event again and again, each time as loud but for a little."""
    event = sounds.burst(sounds.read(path), 0.6)
    time, parts = rng.uniform(0.1, 0.6), []
    for gap in gaps:
        parts.append((time, event * rng.uniform(0.75, 1.0)))
        time += len(event) / SAMPLE_RATE + gap
    mixed = sounds.placed(parts, max(time, 4.0))
    return mixed + sounds.hiss(len(mixed), rng, -0.5) * rng.uniform(0.0005, 0.003)


def over(rng: random.Random, voice: dict[str, Any], sound: str, decibels: float) -> np.ndarray:
    """A voice over a sound."""
    said = sounds.read(voice[voice["type"]], voice.get("start"), voice.get("end"))
    bed = sounds.read(sound)
    return sounds.under(said, np.roll(bed, rng.randrange(len(bed))), decibels)


def noise(rng: random.Random, seconds: float, loudness: float, slope: float) -> np.ndarray:
    """Noise, or silence where `loudness` is 0."""
    return sounds.hiss(round(seconds * SAMPLE_RATE), rng, slope) * loudness


def clip(rng: random.Random, picture: str, sound: str) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 [frames, height, width, 3] at 8 a second, sound): a still picture of 4 s."""
    from PIL import Image

    with Image.open(picture) as image:
        width, height = (max(side * 224 // max(image.size), 32) // 2 * 2 for side in image.size)
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    wave = sounds.loudest(sounds.read(sound), 4.0)
    return np.repeat(pixels[None], 32, axis=0), np.resize(wave, 4 * SAMPLE_RATE)


Media = np.ndarray | tuple[np.ndarray, np.ndarray]
MAKERS: dict[str, Callable[..., Media]] = {
    make.__name__: make for make in (copy, cut, word, say, sequence, repeated, over, noise, clip)
}


# --- writing them -------------------------------------------------------------------------------------------


def write_media(plan: Plan, workers: int | None, progress: Callable[[Iterator], Iterable] = iter) -> int:
    """Writes what is not there yet and returns how many files that were."""
    missing = [made for made in plan.made if not made.recording.path.exists()]
    write = partial(write_one, plan.media.absolute())
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(missing) < 2:
        return sum(1 for _ in progress(map(write, missing)))
    # Fresh processes: a copy of this one might copy a lock that another thread of it holds.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            return sum(1 for _ in progress(pool.map(write, missing, chunksize=16)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_one(media: Path, made: Made) -> None:
    """Writes one recording: FLAC, 16 bit, 16 kHz, or mp4."""
    import soundfile

    path = made.recording.path
    content = MAKERS[made.make](random.Random(str(path.relative_to(media))), *made.args)
    with replacing(path) as unfinished:
        if isinstance(content, tuple):
            write_mp4(unfinished, *content)
        else:
            soundfile.write(unfinished, content, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
