"""Sounds and pictures made up for alignment: bursts at known times, late copies, flashes with clicks."""

from __future__ import annotations

import numpy as np

from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE


def bursts(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 [samples]: bursts of noise of many colours, about four a second, over a faint hiss."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    sound = rng.normal(0, 0.003, samples)
    for start in np.sort(rng.uniform(0, seconds, round(4 * seconds))):
        length = round(rng.uniform(0.05, 0.3) * SAMPLE_RATE)
        time = np.arange(length) / SAMPLE_RATE
        pitch = rng.uniform(150, 5000)
        burst = np.sin(2 * np.pi * pitch * time * (1 + rng.uniform(-0.3, 0.3) * time))
        first = round(start * SAMPLE_RATE)
        piece = (rng.uniform(0.1, 0.5) * burst * np.hanning(length))[: samples - first]
        sound[first : first + len(piece)] += piece
    return sound.astype(np.float32)


def later(sound: np.ndarray, seconds: float, drift: float = 0.0, noise: float = 0.0) -> np.ndarray:
    """The sound, late by some seconds (early if negative), slower by drift (ppm), with noise (deviation).

    What happens at time t of the sound happens at `seconds + t · (1 + drift · 1e-6)`.
    """
    samples = round((len(sound) * (1 + drift * 1e-6)) + seconds * SAMPLE_RATE)
    places = (np.arange(samples) - seconds * SAMPLE_RATE) / (1 + drift * 1e-6)
    moved = np.interp(places, np.arange(len(sound)), sound, left=0, right=0)
    return (moved + np.random.default_rng(9).normal(0, noise or 1e-6, samples)).astype(np.float32)


def sounding(sound: np.ndarray, name: str = "sound") -> Clip:
    """A recording of sound alone."""
    return Clip(None, np.zeros(0), sound, len(sound) / SAMPLE_RATE, name)


def flashes(seconds: float, late: float = 0.0, seed: int = 0, fps: float = 25.0) -> Clip:
    """A picture that changes its grey at random times, with a click for each, late by some seconds."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * fps)) / fps
    flashing = np.cumsum(rng.uniform(0.3, 1.2, round(seconds)))
    flashing = flashing[flashing < seconds - 0.5]
    greys = rng.integers(0, 256, len(flashing) + 1).astype(np.uint8)
    bright = greys[np.searchsorted(flashing, times, "right")]
    sound = rng.normal(0, 0.002, round(seconds * SAMPLE_RATE))
    for moment in flashing:
        first = round((moment + late) * SAMPLE_RATE)
        if 0 <= first < len(sound) - 2000:
            sound[first : first + 2000] += rng.normal(0, 0.3, 2000) * np.hanning(4000)[2000:]
    frames = np.broadcast_to(bright[:, None, None, None], (len(times), 32, 32, 3)).copy()
    return Clip(frames, times, sound.astype(np.float32), seconds, "flashes")
