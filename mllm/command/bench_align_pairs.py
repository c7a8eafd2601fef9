"""Pairs whose alignment is known, for `mllm bench align`: real sounds and the generated world."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE, load_clip

CROP = 5.0  # s of picture and of sound (Iashin et al., 2024, arXiv:2401.16423)
CLASSES = np.arange(-10, 11)  # offsets of the protocol, in STEP
STEP = 0.2  # s
FPS = 25


@dataclass(frozen=True)
class Pair:
    """Two recordings; the second is late by `offset` s, or None if they share nothing.

    `number` is that of the recording that both are made of, or of the pair.
    """

    condition: str
    first: Clip
    second: Clip
    offset: float | None
    number: int


# --- two sounds ---------------------------------------------------------------------------------------------


def sound_pairs(sounds: list[np.ndarray], times: int, rng: np.random.Generator) -> Iterator[Pair]:
    """Pairs of a sound and a changed copy that begins later, and pairs that share nothing.

    Args:
        sounds: float32 [samples] at 16 kHz, of different recordings.
        times: pairs of a sound and condition.
    """
    for number, sound in enumerate(sounds):
        for _ in range(times):
            start = rng.uniform(0.05, 0.4) * len(sound) / SAMPLE_RATE
            for condition, change in CONDITIONS.items():
                copy = change(_from(sound, start), rng)
                yield Pair(condition, clip_of(sound), clip_of(copy), -start, number)
            second = round(max(start, 1.0) * SAMPLE_RATE)
            trimmed = clip_of(sound[:SAMPLE_RATE]), clip_of(sound[second : second + SAMPLE_RATE])
            yield Pair("1 s of each", *trimmed, None, number)
            other = sounds[(number + 1) % len(sounds)]
            if len(sounds) > 1:
                yield Pair("unrelated", clip_of(_from(sound, start)), clip_of(other), None, number)


def _from(sound: np.ndarray, start: float) -> np.ndarray:
    """The sound from a time (s) that may lie between two samples, by a shift of phase."""
    first, rest = divmod(start * SAMPLE_RATE, 1.0)
    cut = sound[int(first) :]
    turns = np.fft.rfftfreq(len(cut)) * rest
    return np.fft.irfft(np.fft.rfft(cut) * np.exp(2j * np.pi * turns), len(cut)).astype(np.float32)


def _noisy(decibels: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        power = float((sound**2).mean()) / 10 ** (decibels / 10)
        return (sound + rng.normal(0, np.sqrt(power), len(sound))).astype(np.float32)

    return change


def _encoded(
    container: str, codec: str, bits: int
) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        waveform = load_clip(encoded(sound, container, codec, bits), want_video=False).waveform
        assert waveform is not None
        return waveform

    return change


def encoded(sound: np.ndarray, container: str, codec: str, bits: int) -> bytes:
    """A file of float32 [samples] at 16 kHz, by one of FFmpeg's encoders at so many bits a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=SAMPLE_RATE, layout="mono", bit_rate=bits)
        for first in range(0, len(sound), SAMPLE_RATE):
            piece = np.ascontiguousarray(sound[None, first : first + SAMPLE_RATE])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), first
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


CONDITIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "same": lambda sound, rng: sound,
    "AAC, 32 kbit/s": _encoded("mp4", "aac", 32_000),
    "Opus, 16 kbit/s": _encoded("ogg", "libopus", 16_000),
    "noise, 10 dB": _noisy(10),
    "noise, 0 dB": _noisy(0),
    "noise, -10 dB": _noisy(-10),
}


def clip_of(sound: np.ndarray) -> Clip:
    """A recording of sound alone."""
    return Clip(None, np.zeros(0), sound, len(sound) / SAMPLE_RATE, "sound")


# --- picture and sound --------------------------------------------------------------------------------------


def world_pairs(source: Any, count: int, rng: np.random.Generator, together: bool) -> Iterator[Pair]:
    """Crops of picture and sound with an offset of each class in turn.

    A recording is a row of scenes of the world, as long as the widest offset needs.

    Args:
        source: of the world, with FPS pictures a second.
        together: move each sound to where a shape appears; in the world as it is they start independently.
    """
    index = 0
    for number in range(count):
        clips: list[Clip] = []
        needed = CROP + 2 * STEP * CLASSES[-1]
        while sum(clip.duration for clip in clips) < needed:
            scene = source.episode(index % len(source), pairs=True).scenes[0]
            clips.append(source.clip(_together(scene) if together else scene, "world"))
            index += 1
        whole = joined(clips)
        offset = float(STEP * CLASSES[number % len(CLASSES)])
        # What is seen at time t of its crop is heard at t + offset of the other.
        start = rng.uniform(max(0.0, offset), whole.duration - CROP + min(0.0, offset))
        yield Pair("", *_crops(whole, start, start - offset), offset, number)


def joined(clips: list[Clip]) -> Clip:
    """Clips with picture and sound, one after the other."""
    frames, waveforms, times, end = [], [], [], 0.0
    for clip in clips:
        assert clip.frames is not None
        assert clip.waveform is not None
        frames.append(clip.frames)
        times.append(clip.frame_times + end)
        waveforms.append(clip.waveform)
        end += clip.duration
    return Clip(np.concatenate(frames), np.concatenate(times), np.concatenate(waveforms), end, "world")


def _crops(whole: Clip, seen: float, heard: float) -> tuple[Clip, Clip]:
    """CROP s of picture from `seen` (s), and of sound from `heard`."""
    assert whole.frames is not None
    assert whole.waveform is not None
    inside = (whole.frame_times >= seen) & (whole.frame_times < seen + CROP)
    picture = Clip(whole.frames[inside], whole.frame_times[inside] - seen, None, CROP, "world")
    first = round(heard * SAMPLE_RATE)
    return picture, clip_of(whole.waveform[first : first + round(CROP * SAMPLE_RATE)])


def _together(scene: Any) -> Any:
    appear = sorted((shape.appear, shape.window) for shape in scene.shapes)
    sounds = [
        replace(sound, start=appear[number % len(appear)][0], window=appear[number % len(appear)][1])
        for number, sound in enumerate(scene.sounds)
    ]
    return replace(scene, sounds=tuple(sounds))
