"""Plays a scene: tones, beeps, instruments, noise and spoken words over a quiet hiss."""

from __future__ import annotations

import random
from functools import cache, lru_cache

import numpy as np

from data_prep.world import voice
from data_prep.world.scene import Scene, Sound, rng_for
from mllm.media.recording import SAMPLE_RATE

_NOISE_SAMPLES = 1 << 18
_TIME = np.arange(2 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
_TURN = np.float32(2 * np.pi)


def play(scene: Scene) -> np.ndarray:
    """The sound of a scene, float32 [samples] at 16 kHz, within -1 and 1."""
    rng = random.Random(scene.seed)
    samples = round(scene.duration * SAMPLE_RATE)
    wave = _hiss(scene.split, rng, samples) * np.float32(rng.uniform(0.0015, 0.006))
    for sound in scene.sounds:
        event = synthesize(scene.split, sound)
        start = round(sound.start * SAMPLE_RATE)
        event = event[: samples - start]
        wave[start : start + len(event)] += event
    return np.clip(wave, -1, 1, out=wave)


def synthesize(split: str, sound: Sound) -> np.ndarray:
    """One sound alone, float32 [samples]."""
    rng = random.Random(sound.seed)
    if sound.kind == "voice":
        event = voice.say(split, sound.word, sound.voice, sound.emotion, sound.take)
        # Loudness tells emotions apart, so it varies less than that of the other sounds.
        return event * np.float32(0.55 + 0.3 * sound.loudness)
    event = _MAKERS[sound.kind](split, rng, sound)
    event *= np.float32(0.6 * sound.loudness / max(float(np.abs(event).max()), 1e-6))
    fade = min(160, len(event) // 4)
    event[-fade:] *= _ramp(fade)[::-1]
    event[:fade] *= _ramp(fade)
    return event


def _sweep(low_to_high: bool, rng: random.Random, sound: Sound) -> np.ndarray:
    time = _times(sound.length)
    low = rng.uniform(220, 420)
    high = low * rng.uniform(2.2, 3.2)
    first, last = (low, high) if low_to_high else (high, low)
    phase = _TURN * (np.float32(first) * time + np.float32((last - first) / (2 * sound.length)) * time**2)
    return np.sin(phase) + np.float32(rng.uniform(0.05, 0.35)) * np.sin(2 * phase)


def _beeps(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    short = sound.length < 0.85
    period = rng.uniform(0.17, 0.19) if short else rng.uniform(0.22, 0.36)
    length = rng.uniform(0.08, 0.1) if short else rng.uniform(0.1, 0.14)
    beep = np.tanh(
        rng.uniform(1.0, 4.0) * np.sin(_TURN * np.float32(rng.uniform(750, 1500)) * _times(length))
    )
    fade = 80
    beep[:fade] *= _ramp(fade)
    beep[-fade:] *= _ramp(fade)[::-1]
    event = np.zeros(round(((sound.count - 1) * period + length) * SAMPLE_RATE) + 1, np.float32)
    for i in range(sound.count):
        start = round(i * period * SAMPLE_RATE)
        event[start : start + len(beep)] += beep[: len(event) - start]
    return event


def _bell(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    pitch, decay = rng.uniform(600, 1100), rng.uniform(3.0, 5.0)
    partials = ((0.5, 0.3, 0.6), (1.0, 1.0, 1.0), (1.19, 0.5, 1.3), (2.0, 0.5, 1.6), (2.74, 0.45, 2.2))
    return _partials(pitch, decay, partials, _times(sound.length), rng)


def _piano(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    """Two or three notes of a chord, one after the other."""
    root = rng.uniform(200, 420)
    steps = rng.sample((1.0, 1.25, 1.5, 2.0), rng.choice((2, 3)))
    gap = sound.length / (len(steps) + 1)
    partials = ((1.0, 1.0, 1.0), (2.0, 0.5, 1.3), (3.0, 0.3, 1.7), (4.0, 0.12, 2.2))
    event = np.zeros(len(_times(sound.length)), np.float32)
    for i, step in enumerate(steps):
        start = round(i * gap * SAMPLE_RATE)
        event[start:] += _partials(
            root * step, rng.uniform(4, 6), partials, _times(sound.length)[: len(event) - start], rng
        )
    return event


def _flute(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    """One long note with vibrato, a soft beginning and some breath."""
    time = _times(sound.length)
    pitch, rate = rng.uniform(480, 900), rng.uniform(4.5, 6.5)
    wobble = np.float32(pitch * rng.uniform(0.006, 0.014) / rate)
    phase = _TURN * np.float32(pitch) * time + wobble * np.sin(_TURN * np.float32(rate) * time)
    event = np.sin(phase) + np.float32(rng.uniform(0.1, 0.3)) * np.sin(2 * phase)
    event += np.float32(rng.uniform(0.03, 0.08)) * _hiss(split, rng, len(time))
    attack = round(rng.uniform(0.08, 0.14) * SAMPLE_RATE)
    event[:attack] *= _ramp(attack)
    event[-attack:] *= _ramp(attack)[::-1]
    return event


def _drum(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    """Two to four low strokes, each with a click of noise."""
    stroke = _times(0.22)
    low = rng.uniform(60, 95)
    phase = _TURN * (np.float32(low) * stroke + np.float32(low / 25) * (1 - np.exp(-25 * stroke)))
    hit = np.sin(phase) * np.exp(-np.float32(rng.uniform(12, 18)) * stroke)
    hit += np.float32(rng.uniform(0.1, 0.25)) * _hiss(split, rng, len(stroke)) * np.exp(-60 * stroke)
    count = rng.choice((2, 3, 4))
    event = np.zeros(round(sound.length * SAMPLE_RATE), np.float32)
    for i in range(count):
        start = round(i * (len(event) - len(hit)) / (count - 1))
        event[start : start + len(hit)] += hit
    return event


def _noise(split: str, rng: random.Random, sound: Sound) -> np.ndarray:
    """Broad noise, duller or brighter."""
    length = len(_times(sound.length))
    event = _hiss(split, rng, length + 1)
    event = event[1:] + np.float32(rng.uniform(-0.6, 0.9)) * event[:-1]
    attack = round(rng.uniform(0.02, 0.12) * SAMPLE_RATE)
    event[:attack] *= _ramp(attack)
    return event


def _partials(
    pitch: float, decay: float, partials: tuple, time: np.ndarray, rng: random.Random
) -> np.ndarray:
    """A struck sound: partials (ratio, strength, decay ratio), the higher ones dying sooner."""
    event = np.zeros(len(time), np.float32)
    for ratio, strength, faster in partials:
        part = np.sin(np.float32(2 * np.pi * pitch * ratio * rng.uniform(0.997, 1.003)) * time)
        part *= np.exp(np.float32(-decay * faster) * time)
        part *= np.float32(strength * rng.uniform(0.7, 1.3))
        event += part
    return event


_MAKERS = {
    "rising tone": lambda split, rng, sound: _sweep(True, rng, sound),
    "falling tone": lambda split, rng, sound: _sweep(False, rng, sound),
    "beeps": _beeps,
    "bell": _bell,
    "piano": _piano,
    "flute": _flute,
    "drum": _drum,
    "noise": _noise,
}


def _times(length: float) -> np.ndarray:
    return _TIME[: round(length * SAMPLE_RATE)]


@lru_cache(maxsize=4096)
def _ramp(samples: int) -> np.ndarray:
    ramp = np.linspace(0, 1, samples, dtype=np.float32)
    ramp.flags.writeable = False
    return ramp


def _hiss(split: str, rng: random.Random, samples: int) -> np.ndarray:
    """White noise, a piece of a long strip: drawing it anew would cost more than the rest of a clip."""
    start = rng.randrange(_NOISE_SAMPLES - samples)
    return _strip(split)[start : start + samples]


@cache
def _strip(split: str) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(rng_for("hiss", split).getrandbits(64)))
    strip = generator.standard_normal(_NOISE_SAMPLES, dtype=np.float32)
    strip.flags.writeable = False
    return strip
