"""Other views of the same recording, so that a model learns what stays the same.

Each is drawn from a seeded generator that belongs to an example, so a resumed run sees the same ones. What a
text says must stay true: a picture is not flipped where the text knows left and right, nor is a recording cut
where it tells a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mllm.experiment import Augment
from mllm.media import SAMPLE_RATE, Clip

SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise)\b", re.IGNORECASE)
TIMES = re.compile(
    r"\d\d:\d\d|\b(first|last|begin\w*|end\w*|before|after|then|when|seconds?|how (?:many|often))\b",
    re.IGNORECASE,
)
VISIBLE = 1.0  # of 255: how much two videos differ on average before they count as different
FFT, HOP = 512, 128  # of the phase vocoder: 32 ms and 8 ms


def augment(clip: Clip, settings: Augment, rng: np.random.Generator, texts: Iterable[str] = ()) -> Clip:
    """A clip as it might also have been recorded.

    Args:
        texts: all that is said about it.
    """
    said = " ".join(texts)
    if settings.temporal_crop and not clip.is_image and not TIMES.search(said):
        clip = temporal_crop(clip, rng.uniform(1 - settings.temporal_crop, 1), rng.uniform())
    frames, waveform = clip.frames, clip.waveform
    if frames is not None:
        if settings.crop:
            frames = crop(frames, rng.uniform(1 - settings.crop, 1), rng.uniform(size=2))
        if settings.jitter:
            frames = jitter(frames, 1 + settings.jitter * rng.uniform(-1, 1, 3))
        if settings.flip and not SIDES.search(said) and rng.uniform() < 0.5:
            frames = np.ascontiguousarray(frames[:, :, ::-1])
        if settings.frame_dropout:
            frames = drop_frames(frames, rng.uniform(size=len(frames)) < settings.frame_dropout)
    if waveform is not None and len(waveform):
        if settings.pitch:
            waveform = pitch(waveform, settings.pitch * rng.uniform(-1, 1))
        if settings.noise_snr is not None:
            waveform = noise(waveform, rng.uniform(settings.noise_snr, settings.noise_snr + 20), rng)
        if settings.time_mask:
            waveform = time_mask(waveform, settings.time_mask * rng.uniform(), rng.uniform())
        if settings.frequency_mask:
            waveform = frequency_mask(waveform, settings.frequency_mask * rng.uniform(), rng.uniform())
    clip = replace(clip, frames=frames, waveform=waveform)
    if settings.speed and not clip.is_image and not TIMES.search(said):
        clip = speed(clip, 1 + settings.speed * rng.uniform(-1, 1))
    return clip


# --- pictures: uint8 [frames, height, width, 3] ---


def crop(frames: np.ndarray, share: float, place: np.ndarray) -> np.ndarray:
    """A part of every frame, `share` of its sides, enlarged; `place` (0 to 1) says which part."""
    height, width = frames.shape[1:3]
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = round((height - rows) * place[0]), round((width - columns) * place[1])
    box = (left, top, left + columns, top + rows)
    images = [Image.fromarray(frame).resize((width, height), Image.BILINEAR, box) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def jitter(frames: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Brightness, contrast and saturation times `factors`, the same in all frames."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    changed = []
    for frame in frames:
        image = Image.fromarray(frame)
        for kind, factor in zip(kinds, factors, strict=True):
            image = kind(image).enhance(float(factor))
        changed.append(np.asarray(image))
    return np.stack(changed)


def drop_frames(frames: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Dropped frames show what the frame before them shows, as a recording that stutters does."""
    kept = np.where(dropped, 0, np.arange(len(frames)))
    return frames[np.maximum.accumulate(kept)]


def permute_frames(pixel_values: torch.Tensor, rng: np.random.Generator) -> torch.Tensor | None:
    """Frames of a whole video in another order: no view of it, but what its captions do not tell.

    Args:
        pixel_values: uint8 [windows, frames, channels, height, width].

    Returns:
        the same shape; None where nobody would see a difference.
    """
    frames = pixel_values.flatten(0, 1)
    shuffled = frames[torch.from_numpy(rng.permutation(len(frames)))]
    if (shuffled.float() - frames.float()).abs().mean() < VISIBLE:
        return None
    return shuffled.view_as(pixel_values)


# --- time: the whole clip ---


def temporal_crop(clip: Clip, share: float, place: float) -> Clip:
    """A stretch of the clip, `share` of its length; `place` (0 to 1) says which."""
    length = clip.duration * share
    first = (clip.duration - length) * place
    frames, times = clip.frames, clip.frame_times
    if frames is not None:
        inside = (times >= first) & (times < first + length)
        inside[int(clip.on_screen(np.array([first]))[0])] = True
        frames, times = frames[inside], np.maximum(times[inside] - first, 0)
    waveform = clip.waveform
    if waveform is not None:
        waveform = waveform[round(first * SAMPLE_RATE) : round((first + length) * SAMPLE_RATE)]
    until = None if clip.picture_end is None else float(np.clip(clip.picture_end - first, 0, length))
    return replace(
        clip, frames=frames, frame_times=times, waveform=waveform, duration=length, picture_end=until
    )


def speed(clip: Clip, factor: float) -> Clip:
    """The clip played so many times as fast; its sound changes in pitch, too."""
    waveform = None if clip.waveform is None else _resample(clip.waveform, factor)
    until = None if clip.picture_end is None else clip.picture_end / factor
    return replace(
        clip,
        frame_times=clip.frame_times / factor,
        waveform=waveform,
        duration=clip.duration / factor,
        picture_end=until,
    )


# --- sound: float32 [samples] at 16 kHz ---


def noise(waveform: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """White noise under it, at a signal-to-noise ratio in dB; silence stays silent."""
    power = float(np.mean(np.square(waveform)))
    hiss = rng.standard_normal(len(waveform)).astype(np.float32)
    return waveform + hiss * np.float32(np.sqrt(power / 10 ** (snr / 10)))


def pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Higher or lower, of the same length: stretched by a phase vocoder, then played as much faster."""
    factor = 2 ** (semitones / 12)
    window = torch.hann_window(FFT)
    sound = torch.from_numpy(np.pad(waveform, (0, max(0, FFT - len(waveform)))))
    spectrum = torch.stft(sound, FFT, HOP, window=window, return_complex=True)
    steps = torch.arange(0, spectrum.shape[1] - 1, 1 / factor)
    before = spectrum[:, steps.long()]
    behind = spectrum[:, (steps.long() + 1).clamp(max=spectrum.shape[1] - 1)]
    share = steps % 1
    size = (1 - share) * before.abs() + share * behind.abs()
    expected = torch.linspace(0, torch.pi * HOP, FFT // 2 + 1).unsqueeze(1)
    turn = behind.angle() - before.angle() - expected
    turn = turn - 2 * torch.pi * torch.round(turn / (2 * torch.pi)) + expected
    phase = torch.cumsum(torch.cat([before[:, :1].angle(), turn[:, :-1]], 1), 1)
    stretched = torch.istft(torch.polar(size, phase), FFT, HOP, window=window).numpy()
    higher = _resample(stretched, factor)
    return np.pad(higher, (0, max(0, len(waveform) - len(higher))))[: len(waveform)].astype(np.float32)


def time_mask(waveform: np.ndarray, share: float, place: float) -> np.ndarray:
    """Silence over a `share` of it (SpecAugment, Park et al. 2019, on the waveform)."""
    length = round(len(waveform) * share)
    first = round((len(waveform) - length) * place)
    masked = waveform.copy()
    masked[first : first + length] = 0
    return masked


def frequency_mask(waveform: np.ndarray, share: float, place: float) -> np.ndarray:
    """Without a band of frequencies, a `share` of all that there are (SpecAugment, Park et al. 2019)."""
    spectrum = np.fft.rfft(waveform)
    width = round(len(spectrum) * share)
    first = round((len(spectrum) - width) * place)
    spectrum[first : first + width] = 0
    return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


def _resample(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Played so many times as fast."""
    places = np.arange(0, len(waveform) - 1, factor)
    return np.interp(places, np.arange(len(waveform)), waveform).astype(np.float32)


# --- text ---


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text without some of its words, never without all."""
    words = text.split()
    kept = [word for word, draw in zip(words, rng.uniform(size=len(words)), strict=True) if draw >= share]
    return " ".join(kept) if kept else text
