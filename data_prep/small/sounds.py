"""Sound as arrays, float32 [samples] at 16 kHz: reading, copies that differ, pieces, mixtures."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np

from data_prep.world.voice import resample, speak, trim
from mllm.errors import MllmError
from mllm.media.recording import SAMPLE_RATE, load_clip

EDGE = SAMPLE_RATE // 100  # samples that a piece fades in and out
FRAME = SAMPLE_RATE // 50  # samples of one loudness value


@lru_cache(maxsize=64)
def read(path: str, start: float | None = None, end: float | None = None) -> np.ndarray:
    """The sound of a recording.

    Raises:
        MllmError: if it has none.
    """
    waveform = load_clip(path, start=start, end=end, want_video=False).waveform
    if waveform is None or not len(waveform):
        raise MllmError(f"{path}: has no sound: take its row out of the set")
    return np.asarray(waveform, np.float32)


def changed(wave: np.ndarray, rng: random.Random, speed: float) -> np.ndarray:
    """A copy with another speed and pitch, noise, band and loudness.

    Args:
        speed: greatest change, such as 0.06.
    """
    wave = resample(wave, rng.uniform(1 - speed, 1 + speed))
    if rng.random() < 0.35:
        wave = _low_pass(wave, rng.uniform(3000, 6000))
    noise = hiss(len(wave), rng, rng.uniform(-1.0, 0.0))
    wave = wave + noise * _level(wave) / max(_level(noise), 1e-6) * 10 ** (-rng.uniform(12, 40) / 20)
    return scaled(wave, rng.uniform(0.25, 1.0))


def piece(wave: np.ndarray, rng: random.Random, seconds: float, telephone: bool) -> np.ndarray:
    """A piece around one of the louder places, faded at both ends, with a telephone's band if asked for."""
    length = min(round(seconds * SAMPLE_RATE), len(wave))
    loud = np.flatnonzero(loudness(wave) > np.quantile(loudness(wave), 0.6)) * FRAME
    middle = int(rng.choice(list(loud))) if len(loud) else len(wave) // 2
    start = min(max(middle - length // 2, 0), len(wave) - length)
    cut = faded(wave[start : start + length])
    return scaled(_low_pass(cut, 3800) if telephone else cut, rng.uniform(0.4, 1.0))


def loudest(wave: np.ndarray, seconds: float) -> np.ndarray:
    """The stretch of this length with most energy."""
    length = round(seconds * SAMPLE_RATE)
    if len(wave) <= length:
        return wave
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    starts = np.arange(0, len(wave) - length + 1, FRAME)
    start = int(starts[np.argmax(energy[starts + length] - energy[starts])])
    return wave[start : start + length]


def burst(wave: np.ndarray, longest: float) -> np.ndarray:
    """The loudest event of a recording: from its peak to where it is quiet on both sides, faded."""
    level = loudness(wave)
    peak = int(level.argmax())
    quiet = level < 0.12 * level[peak]
    before, after = np.flatnonzero(quiet[:peak]), np.flatnonzero(quiet[peak:])
    start = before[-1] + 1 if len(before) else 0
    end = peak + after[0] if len(after) else len(level)
    start = max(start, end - round(longest * SAMPLE_RATE / FRAME)) if end - peak < 5 else start
    end = min(end, start + round(longest * SAMPLE_RATE / FRAME))
    return scaled(faded(wave[start * FRAME : max(end, start + 3) * FRAME]), 0.9)


def spoken(text: str, voice: str, rng: random.Random) -> np.ndarray:
    """Text spoken by espeak-ng, in a manner drawn from `rng`."""
    raw, rate = speak(text, voice, rng.randint(120, 200), rng.randint(20, 80), rng.randint(20, 80))
    wave = resample(trim(raw.astype(np.float32)), rate / SAMPLE_RATE)
    return changed(wave / max(np.abs(wave).max(), 1.0), rng, 0.03)


def hiss(length: int, rng: random.Random, slope: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to the power of `slope` (0 white, -0.5 pink, -1 brown)."""
    draw = np.random.default_rng(rng.getrandbits(32))
    spectrum = np.fft.rfft(draw.standard_normal(max(length, 2)))
    spectrum *= np.arange(1, len(spectrum) + 1) ** slope
    return scaled(np.fft.irfft(spectrum, max(length, 2))[:length], 1.0)


def placed(pieces: list[tuple[float, np.ndarray]], seconds: float) -> np.ndarray:
    """Pieces at their times (s) in a recording of this length."""
    mixed = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for time, wave in pieces:
        start = round(time * SAMPLE_RATE)
        wave = wave[: len(mixed) - start]
        mixed[start : start + len(wave)] += wave
    return mixed


def under(voice: np.ndarray, sound: np.ndarray, decibels: float) -> np.ndarray:
    """A voice over a sound that is quieter by `decibels`; the sound is repeated to the voice's length."""
    bed = np.resize(sound, len(voice))
    bed = bed * _level(voice) / max(_level(bed), 1e-6) * 10 ** (-decibels / 20)
    return scaled(voice + bed, 0.9)


def scaled(wave: np.ndarray, peak: float) -> np.ndarray:
    """The wave with this peak."""
    return (wave * (peak / max(float(np.abs(wave).max(initial=0.0)), 1e-6))).astype(np.float32)


def faded(wave: np.ndarray) -> np.ndarray:
    """The wave with a short fade at both ends."""
    edge = min(EDGE, len(wave) // 2)
    ramp = np.linspace(0, 1, edge, dtype=np.float32)
    wave = wave.copy()
    wave[:edge] *= ramp
    wave[len(wave) - edge :] *= ramp[::-1]
    return wave


def loudness(wave: np.ndarray) -> np.ndarray:
    """Root mean square of every 20 ms."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    return np.sqrt((frames**2).mean(1)) if len(frames) else np.zeros(1, np.float32)


def _level(wave: np.ndarray) -> float:
    """Root mean square of the louder half, so that pauses do not count."""
    level = np.sort(loudness(wave))
    return float(level[len(level) // 2 :].mean())


def _low_pass(wave: np.ndarray, hertz: float) -> np.ndarray:
    cut = 2 * hertz / SAMPLE_RATE
    offsets = np.arange(-32, 33)
    return np.convolve(wave, cut * np.sinc(cut * offsets) * np.hanning(65), mode="same")
