"""Aligns recordings and transcripts in time.

    alignment = align("camera.mp4", "recorder.wav")
    alignment.offset, alignment.drift, alignment.confidence, alignment.unsure

What is compared depends on what lies between (`Between`) and on the level:

              sound-sound           picture-sound               sound-transcript
    frame     mel, or onset         motion and onset            speech and lines
    event     onsets                peaks of motion, onsets     words said, words written
    semantic  windows of the shared space; of a transcript, its lines
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mllm.errors import ConfigError, MediaError
from mllm.media.clip import Recording
from mllm.media.recording import SAMPLE_RATE, open_recording
from mllm.media.sources import MediaLimits
from mllm.search.alignment import features
from mllm.search.alignment.engine import Alignment, Calibration, Search, align_sequences
from mllm.search.alignment.events import Events, align_events, peaks
from mllm.search.alignment.sequence import Sequence
from mllm.search.alignment.words import Script, is_script, read_along, read_script, word_events

if TYPE_CHECKING:
    from mllm.models.transcriber import Transcriber
    from mllm.search.embedder import Embedder

Between = Literal["sound-sound", "picture-sound", "sound-transcript"]
Level = Literal["frame", "event", "semantic"]
FEATURES = {  # by what lies between and level; the first is the default
    ("sound-sound", "frame"): ("mel", "onset"),
    ("sound-sound", "event"): ("onset",),
    ("picture-sound", "frame"): ("motion",),
    ("picture-sound", "event"): ("motion",),
    ("sound-transcript", "frame"): ("speech",),
    ("sound-transcript", "event"): ("words",),
} | {(between, "semantic"): ("space",) for between in get_args(Between)}
READING = Calibration(middle=0.5, slope=12.0)  # by the share of a text's words that are heard
FEW_WORDS = 3  # so many more have to be heard
LIMITS = MediaLimits(max_bytes=None, max_seconds=4 * 3600, max_decode_seconds=600)
PICTURE_LIMIT = 10.0  # s


@dataclass(frozen=True)
class Settings(Search):
    """How to align recordings and transcripts.

    Attributes:
        between: by default what the two sides are.
        level: by default `frame`; `event` for a text without times.
        features: by default the first of `FEATURES`.
        limit: by default any, or 10 s between picture and sound.
        model: checkpoint of the shared space, for the level `semantic`; by default the shipped one.
        whisper, language: of the transcriber, for words; the language is detected unless given.
    """

    between: Between | None = None
    level: Level | None = None
    features: str | None = None
    model: str | None = None
    whisper: str = "whisper-base"
    language: str | None = None

    @cached_property
    def embedder(self) -> Embedder:
        from mllm.search.embedder import Embedder

        return Embedder.from_pretrained(self.model)

    @cached_property
    def transcriber(self) -> Transcriber:
        from mllm.models.transcriber import Transcriber

        return Transcriber.from_pretrained(self.whisper, self.language)


def align(first: Any, second: Any = None, settings: Settings = Settings()) -> Alignment:
    """Aligns a recording's sound with its picture, with another recording, or with a transcript.

    Args:
        first: a recording (see `open_recording`).
        second: another recording, or the path of a transcript (.srt, .vtt, .ass, .json, .txt); None for the
            sound of the first.

    Raises:
        MediaError: if a recording cannot be read, is too short, or lacks the side to align.
        RecordError: if a transcript cannot be read.
        ConfigError: if the settings don't fit what is given.
    """
    with ExitStack() as opened:
        if isinstance(first, (str, Path)) and is_script(first):
            raise ConfigError(f"{first}: a transcript comes second: `mllm align RECORDING {first}`")
        one = opened.enter_context(open_recording(first, LIMITS))
        other: Recording | Script
        if isinstance(second, (str, Path)) and is_script(second):
            other = read_script(second)
        else:
            other = one if second is None else opened.enter_context(open_recording(second, LIMITS))
        between = _between(one, other, settings.between)
        level = settings.level or ("event" if isinstance(other, Script) and not other.timed else "frame")
        chosen = _features(between, level, settings.features)
        found = _aligned(one, other, between, level, chosen, settings)
    return replace(found, between=between, level=level, features=chosen, method=settings.method)


def _between(one: Recording, other: Recording | Script, wanted: str | None) -> Between:
    """What lies between the two sides: what is wanted, or else what they are.

    Raises:
        ConfigError: if they cannot be what is wanted.
        MediaError: if a recording lacks a side.
    """
    if isinstance(other, Script):
        possible: tuple[Between, ...] = ("sound-transcript",)
    elif other is one:
        possible = ("picture-sound",)
    else:
        possible = ("sound-sound", "picture-sound")
        if not one.info.has_audio:
            possible = ("picture-sound",)
    if wanted is not None and wanted not in possible:
        given = "one recording" if other is one else f"{one.name} and {other.name}"
        raise ConfigError(f"--between {wanted}: of {given} only {' or '.join(possible)} can be aligned")
    found = next((between for between in possible if between == wanted), possible[0])
    if found == "picture-sound" and (not one.info.has_video or one.info.is_image):
        raise MediaError(
            f"{one.name}: no moving picture to align: give a second recording with sound, or a transcript"
        )
    return found


def _features(between: Between, level: str, wanted: str | None) -> str:
    if (between, level) not in FEATURES:
        raise ConfigError(f"no level '{level}': choose from {', '.join(get_args(Level))}")
    known = FEATURES[between, level]
    if wanted is not None and wanted not in known:
        raise ConfigError(
            f"--features {wanted}: between {between} at level {level} there are: {', '.join(known)}"
        )
    return wanted or known[0]


def _aligned(
    one: Recording, other: Recording | Script, between: Between, level: str, chosen: str, settings: Settings
) -> Alignment:
    limit = PICTURE_LIMIT if between == "picture-sound" and settings.limit is None else settings.limit
    search = Search(settings.method, settings.band, limit)
    if isinstance(other, Script):
        if not other.timed:
            return _read_along(one, other, level, settings)
        if level == "event":
            return align_events(*_words(one, other, settings), search)
        pair = _lines(one, other) if level == "frame" else _lines_in_space(one, other, settings)
    elif level == "event":
        seen = between == "picture-sound"
        return align_events(_events(one, seen), _events(other, seen=False), search)
    elif level == "frame":
        pair = _frames(one, other, between, chosen)
    else:
        pair = _in_space(one, other, between, settings)
    return align_sequences(*pair, search)


def _frames(one: Recording, other: Recording, between: Between, chosen: str) -> tuple[Sequence, Sequence]:
    if between == "picture-sound":
        return features.motion(one), features.onset(waveform_of(other), other.name)
    compare = features.mel if chosen == "mel" else features.onset
    return compare(waveform_of(one), one.name), compare(waveform_of(other), other.name)


def _events(recording: Recording, seen: bool) -> Events:
    """Onsets of the sound, or peaks of motion in the picture."""
    seconds = recording.info.duration
    if seen:
        times, changes = features.frame_changes(recording)
        rises = np.maximum(np.diff(np.log1p(changes), prepend=0), 0)
        return peaks(recording.name, rises, times, seconds)
    strength = features.onset_strength(features.log_mel(waveform_of(recording)))
    return peaks(recording.name, strength, np.arange(len(strength)) / features.SOUND_RATE, seconds)


def _in_space(
    one: Recording, other: Recording, between: Between, settings: Settings
) -> tuple[Sequence, Sequence]:
    from mllm.search.alignment.space import window_vectors

    side = "video" if between == "picture-sound" else "audio"
    first = window_vectors(settings.embedder, one, side)
    return first, window_vectors(settings.embedder, other, "audio")


def _lines(one: Recording, script: Script) -> tuple[Sequence, Sequence]:
    """Where somebody speaks, and where lines stand, as in ffsubsync."""
    from mllm.media.speech import SpeechDetector

    waveform = waveform_of(one)
    spoken = SpeechDetector(longest=30.0)(waveform)
    if not spoken:
        raise MediaError(f"{one.name}: nobody speaks in it: there is nothing to align {script.name} with")
    said = [(line["start"], line["end"]) for line in script.lines]
    first = features.speech(one.name, spoken, len(waveform) / SAMPLE_RATE)
    return first, features.speech(script.name, said, script.seconds)


def _lines_in_space(one: Recording, script: Script, settings: Settings) -> tuple[Sequence, Sequence]:
    from mllm.search.alignment.space import line_vectors, window_vectors

    first = window_vectors(settings.embedder, one, "audio")
    return first, line_vectors(settings.embedder, script, max(script.seconds, one.info.duration))


def _spoken(one: Recording, settings: Settings) -> list[dict[str, Any]]:
    segments = settings.transcriber.transcribe(one).segments
    return [word._asdict() for segment in segments for word in segment.words]


def _words(one: Recording, script: Script, settings: Settings) -> tuple[Events, Events]:
    heard = word_events(one.name, _spoken(one, settings), one.info.duration)
    return heard, word_events(script.name, script.lines, script.seconds)


def _read_along(one: Recording, script: Script, level: str, settings: Settings) -> Alignment:
    """A text without times: when its words are heard."""
    if level != "event":
        raise ConfigError(f"{script.name} has no times: align it at --level event, or give subtitles")
    reading = read_along(script, _spoken(one, settings))
    heard = len(reading.path)
    confidence = READING.confidence(heard / (reading.words + FEW_WORDS))
    found = Alignment(one.name, script.name, None, reading.share, 0.0, confidence, reading.path, None)
    return replace(found, matched=heard, lines=reading.lines)


def waveform_of(recording: Recording) -> np.ndarray:
    """The whole sound, float32 [samples] at 16 kHz.

    Raises:
        MediaError: if there is none.
    """
    waveform = recording.clip(want_video=False).waveform
    if waveform is None or not len(waveform):
        raise MediaError(f"{recording.name}: no sound to align: give a recording with sound")
    return waveform
