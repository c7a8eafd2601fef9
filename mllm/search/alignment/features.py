"""Features of sound and picture that are compared step by step (level `frame`).

Sound against sound: log-mel bands. Picture against sound: envelopes of how much changes, motion and onsets.
Each has its mean over a second or two subtracted, so that what counts is change, not tone or loudness.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Recording
from mllm.media.recording import SAMPLE_RATE
from mllm.search.alignment.sequence import Sequence, high_passed, scaled

HOP = 128  # samples: 125 steps/s
FFT = 512  # samples
BANDS = 32
LOWEST = 60.0  # Hz
SOUND_RATE = SAMPLE_RATE / HOP
FLOOR = 1e-4  # of a band's loud power, below which a recording counts as silent
RISE = 4  # steps over which an onset rises
PICTURE_RATE = 25.0  # steps/s of the envelopes
PICTURE = 64  # pixels
PIECE = 60.0  # s of picture decoded at once
DETAIL = 1.0  # s whose mean is subtracted from log-mel bands
TREND = 3.0  # s whose mean is subtracted from envelopes
SPEECH_TREND = 60.0  # s whose mean is subtracted from speech
START = 0.2  # s, deviation of the bump at the start of a stretch


def mel(waveform: np.ndarray, name: str) -> Sequence:
    """Log-mel bands of float32 [samples] at 16 kHz, 125 steps/s."""
    bands = high_passed(log_mel(waveform), round(DETAIL * SOUND_RATE))
    return Sequence(name, scaled(bands), SOUND_RATE)


def onset(waveform: np.ndarray, name: str) -> Sequence:
    """How much grows louder, and how loud it is, 25 steps/s, to compare with `motion`."""
    bands = log_mel(waveform)
    rises = onset_strength(bands)
    return _envelopes(name, np.stack([rises, bands.mean(1)], axis=1), SOUND_RATE)


def motion(recording: Recording) -> Sequence:
    """How much a picture changes from frame to frame, 25 steps/s.

    Raises:
        MediaError: if there is no moving picture.
    """
    times, changes = frame_changes(recording)
    edges = (np.arange(round(recording.info.duration * PICTURE_RATE) + 1) - 0.5) / PICTURE_RATE
    # What changes from frame to frame is spread over the time between them, whatever the frame rate.
    change = np.log1p(np.diff(np.interp(edges, times, np.cumsum(changes))) * PICTURE_RATE)
    rises = np.maximum(np.diff(change, prepend=change[:1]), 0)
    return _envelopes(recording.name, np.stack([rises, change], axis=1), PICTURE_RATE)


def speech(name: str, spans: Iterable[tuple[float, float]], seconds: float) -> Sequence:
    """Stretches of speech, or of lines (s), 25 steps/s: whether there is one, as in ffsubsync, and where one
    starts, since lines stay on the screen for longer than they are said."""
    times = np.arange(max(1, round(seconds * PICTURE_RATE))) / PICTURE_RATE
    values = np.zeros((len(times), 2))
    for start, end in spans:
        values[slice(*np.searchsorted(times, (start, end))), 0] = 1
        near = slice(*np.searchsorted(times, (start - 4 * START, start + 4 * START)))
        values[near, 1] += np.exp(-0.5 * ((times[near] - start) / START) ** 2)
    vectors = scaled(high_passed(values, round(SPEECH_TREND * PICTURE_RATE)), limit=8.0)
    return Sequence(name, vectors, PICTURE_RATE, block=1.0)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel power of float32 [samples] at 16 kHz: float32 [steps, BANDS]; step i is centred on i · HOP."""
    padded = np.pad(waveform, (FFT // 2, FFT // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
    window, filters = np.hanning(FFT).astype(np.float32), _mel_filters()
    power = np.concatenate(
        [
            np.abs(np.fft.rfft(frames[first : first + 4096] * window)) ** 2 @ filters
            for first in range(0, len(frames), 4096)
        ]
    )
    loud = np.quantile(power, 0.95, axis=0)
    return np.log(power + FLOOR * loud + 1e-10).astype(np.float32)


def onset_strength(bands: np.ndarray) -> np.ndarray:
    """Spectral flux (Bello et al., 2005): mean rise of log-mel bands [steps, bands], float32 [steps]."""
    rises = np.zeros(len(bands), np.float32)
    rises[RISE:] = np.maximum(bands[RISE:] - bands[:-RISE], 0).mean(1)
    return rises


def frame_changes(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """When frames appear (s), and the mean absolute change of each from the one before, in grey levels.

    Raises:
        MediaError: if there is no moving picture.
    """
    info = recording.info
    if not info.has_video or info.is_image:
        raise MediaError(f"{recording.name}: no moving picture to align: give a video, or two sounds")
    times: list[float] = []
    changes: list[float] = []
    last: np.ndarray | None = None
    for start in np.arange(0, max(info.duration, 1e-3), PIECE):
        clip = recording.clip(
            start=float(start) or None, end=float(start + PIECE), size=PICTURE, want_audio=False
        )
        if clip.frames is None:
            break
        for time, frame in zip(clip.frame_times + start, clip.frames, strict=True):
            grey = frame.mean(axis=-1, dtype=np.float32)
            change = 0.0 if last is None else float(np.abs(grey - last).mean())
            if start and time == start and not change:
                continue  # still on the screen from the piece before
            times.append(float(time))
            changes.append(change)
            last = grey
    if len(times) < 2:
        raise MediaError(f"{recording.name}: a single frame, so nothing moves: give a longer video")
    return np.array(times), np.array(changes)


def _envelopes(name: str, values: np.ndarray, rate: float) -> Sequence:
    pooled = Sequence(name, values.astype(np.float32), rate).pooled(round(rate / PICTURE_RATE))
    vectors = scaled(high_passed(pooled.vectors, round(TREND * PICTURE_RATE)))
    return Sequence(name, vectors, PICTURE_RATE, pooled.start, block=0.2)


@cache
def _mel_filters() -> np.ndarray:
    """Triangles at even steps of the mel scale, 2595 log10(1 + Hz / 700): float32 [bins, BANDS]."""
    lowest, highest = 2595 * np.log10(1 + np.array([LOWEST, SAMPLE_RATE / 2]) / 700)
    mels = np.linspace(lowest, highest, BANDS + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[:, None]
    rise, fall = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(np.minimum(rise, fall), 0).astype(np.float32)
