"""Spoken words from espeak-ng, in this process, bit for bit the same on every machine.

espeak-ng keeps state between utterances (phase, flutter, random numbers) that `espeak_Terminate` does not
clear, so the sound of a word depends on what was said before. Loading the library afresh for each utterance
costs 3 ms and makes each a function of its parameters alone; utterances are kept, so that each is made once.
"""

from __future__ import annotations

import _ctypes
import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np

from data_prep.world.scene import rng_for
from mllm.media.recording import SAMPLE_RATE

LONGEST = 0.88  # s; a word has to fit into a window of one second
TAKES = {"train": 16, "val": 4, "comp": 8}  # recordings of each word, voice and emotion

# espeak-ng's numbers: rate in words a minute, pitch and range 0–99; then loudness and a push into distortion.
_MANNER: dict[str, dict[str, Any]] = {
    "happy": {"rate": (185, 215), "pitch": (68, 84), "range": (80, 99), "loudness": 0.9, "push": 0.0},
    "sad": {"rate": (122, 138), "pitch": (14, 28), "range": (4, 18), "loudness": 0.45, "push": 0.0},
    "angry": {"rate": (190, 220), "pitch": (38, 56), "range": (50, 75), "loudness": 1.0, "push": 5.0},
    "calm": {"rate": (145, 165), "pitch": (40, 54), "range": (36, 54), "loudness": 0.7, "push": 0.0},
}
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_lock = threading.Lock()


def say(split: str, word: str, voice: str, emotion: str, take: int) -> np.ndarray:
    """A spoken word, float32 [samples] at 16 kHz with a peak of at most 1.

    `take` may be any number: it is reduced to the takes of the split, and no two splits share one.
    """
    take %= TAKES[split]
    return _say(split, word, voice, emotion, take).astype(np.float32) / 32767


@cache  # at most 48 × 4 × 28 short words
def _say(split: str, word: str, voice: str, emotion: str, take: int) -> np.ndarray:
    rng = rng_for("voice", split, word, voice, emotion, take)
    manner = _MANNER[emotion]
    raw, rate = speak(
        word,
        voice,
        rng.randint(*manner["rate"]),
        rng.randint(*manner["pitch"]),
        rng.randint(*manner["range"]),
    )
    # A slight change of speed, drawn from the continuum: no two takes, and so no two splits, can be equal.
    wave = trim(raw.astype(np.float32))
    step = rate / SAMPLE_RATE * rng.uniform(0.965, 1.035)
    wave = resample(wave, max(step, len(wave) / (LONGEST * SAMPLE_RATE)))
    wave /= np.abs(wave).max()
    if manner["push"]:
        wave = np.tanh(wave * manner["push"] * rng.uniform(0.8, 1.2))
        wave /= np.abs(wave).max()
    return np.round(wave * manner["loudness"] * 32767).astype(np.int16)


def speak(word: str, voice: str, rate: int, pitch: int, span: int) -> tuple[np.ndarray, int]:
    """(int16 samples, sample rate) from a library loaded for this one word."""
    import espeakng_loader

    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, _events):
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    with _lock:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            sample_rate = library.espeak_Initialize(
                _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT
            )
            ctypes.CDLL(None).srand(1)
            library.espeak_ng_SetRandSeed(1)
            library.espeak_SetSynthCallback(collect)
            if sample_rate <= 0 or library.espeak_SetVoiceByName(voice.encode()):
                raise RuntimeError(
                    f"espeak-ng could not start with voice {voice!r}: reinstall espeakng-loader"
                )
            for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, span)):
                library.espeak_SetParameter(parameter, value, 0)
            text = word.encode() + b"\0"
            library.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
            library.espeak_Synchronize()
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
    return np.frombuffer(b"".join(chunks), np.int16), sample_rate


def trim(wave: np.ndarray) -> np.ndarray:
    """Without the silence before and after the word."""
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    return wave[max(loud[0] - 100, 0) : loud[-1] + 200]


def resample(wave: np.ndarray, ratio: float) -> np.ndarray:
    """`wave` read `ratio` samples at a step, behind a low-pass that keeps it from aliasing."""
    offsets = np.arange(-32, 33)
    cut = 0.94 / ratio
    kernel = cut * np.sinc(cut * offsets) * np.hanning(65)
    smooth = np.convolve(wave, kernel, mode="same")
    places = np.arange(0, len(wave) - 1, ratio)
    return np.interp(places, np.arange(len(wave)), smooth).astype(np.float32)
