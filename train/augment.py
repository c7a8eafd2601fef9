"""Data augmentation of recordings and captions.

Each view is drawn from a seeded generator of its example, so a resumed run sees the same ones. Texts must
stay true: a picture is not flipped if a text mentions left or right, nor is a recording cut if it mentions
times. In doubt nothing is changed: "right" may mean correct, but skipping a view costs little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import av
import numpy as np
import torch
from av.filter import Graph

from mllm.experiment import Augment
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE

# What a text may mention. Sides include writing and clocks, which mirroring makes unreadable.
SIDES = re.compile(
    r"\b(left|right|(east|west)(ern|wards?)?\b|mirror|writ(es|ing|ten)|wrote|reads?\b|reading|letter|text|word\b"
    r"|says?\b|spell|signs?\b|logo|label|title|numbers?\b|digit)|clock",
    re.IGNORECASE,
)
TIMES = re.compile(
    r"\d:\d\d|\d ?(ms|s|secs?|min|h)\b|\b(first|second|third|last\b|next|final|start|beg[aiu]n|finish"
    r"|end(s|ed|ing)?\b|middle|halfway|before|after|then\b|when|whil|until|till\b|during|throughout|meanwhile|simultan"
    r"|always|again|once|twice|times?\b|moment|minute|hour|earl[iy]|late[rs]?\b|soon|previous|follow|preced"
    r"|order\b|how (long|often)|slow|fast(er|est)?\b|quick|rapid|speed|pace|tempo|rhythm|bpm\b)",
    re.IGNORECASE,
)
COUNTS = re.compile(
    r"\b(how (many|much|often)|count(s|ed|ing)?\b|number of|once|twice|times\b"
    r"|(two|three|four|five|six|seven|eight|nine|ten|\d+) [a-z])",  # not "one, two, three": a list of labels
    re.IGNORECASE,
)
PITCHES = re.compile(
    r"\b(pitch|high(er|est)?\b|low(er|est)?\b|deep|shrill|octave|notes?\b|chord|key of|frequenc|hertz|soprano"
    r"|tenor|baritone|bass\b)|\d ?k?hz\b",
    re.IGNORECASE,
)
SPEECH = re.compile(r"\b(transcri|what is (said|spoken)\b)", re.IGNORECASE)  # requests for all words
MAKES_FALSE = (  # (what a text mentions, the augmentations that would make it false)
    (SIDES, ("flip",)),
    (TIMES, ("temporal_crop", "speed", "time_mask")),
    (COUNTS, ("temporal_crop", "time_mask", "crop")),
    (PITCHES, ("pitch", "speed")),
    (SPEECH, ("temporal_crop", "time_mask")),
)
VISIBLE = 1.0  # of 255: mean difference from which two videos count as different
LUMA = torch.tensor([0.299, 0.587, 0.114])  # luma weights of red, green and blue
BEHIND = 2048  # samples, 128 ms: padding at the end, since FFmpeg's filters hold back some samples


def augment(clip: Clip, settings: Augment, rng: np.random.Generator, texts: Iterable[str] = ()) -> Clip:
    """Returns a randomly augmented clip.

    Args:
        texts: all texts about it; augmentations that would make one of them false are skipped.
    """
    held = {kind: Augment.model_fields[kind].default for kind in held_back(texts)}
    settings = settings.model_copy(update=held)
    if settings.temporal_crop and not clip.is_image:
        clip = temporal_crop(clip, rng.uniform(1 - settings.temporal_crop, 1), rng.uniform())
    frames, waveform = clip.frames, clip.waveform
    if frames is not None:
        if settings.crop:
            frames = crop(frames, rng.uniform(1 - settings.crop, 1), rng.uniform(size=2))
        if settings.jitter:
            frames = jitter(frames, 1 + settings.jitter * rng.uniform(-1, 1, 3))
        if settings.flip and rng.uniform() < 0.5:
            frames = flip(frames)
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
    if settings.speed and not clip.is_image:
        clip = speed(clip, 1 + settings.speed * rng.uniform(-1, 1))
    return clip


def held_back(texts: Iterable[str]) -> dict[str, str]:
    """The augmentations that would make one of the texts false, each with the words concerned."""
    joined = "\n".join(texts)
    found = [(words.search(joined), kinds) for words, kinds in MAKES_FALSE]
    return {kind: match[0] for match, kinds in found if match for kind in kinds}


# --- pictures: uint8 [frames, height, width, 3] ---


def crop(frames: np.ndarray, share: float, place: np.ndarray) -> np.ndarray:
    """Crops every frame to a `share` of its sides at `place` (0 to 1), and resizes it back."""
    height, width = frames.shape[1:3]
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = round((height - rows) * place[0]), round((width - columns) * place[1])
    part = _tensor(frames)[:, top : top + rows, left : left + columns].permute(0, 3, 1, 2)
    part = torch.nn.functional.interpolate(part, (height, width), mode="bilinear", antialias=True)
    return part.permute(0, 2, 3, 1).contiguous().numpy()


def jitter(frames: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Multiplies brightness, contrast and saturation by `factors`, the same in all frames."""
    brightness, contrast, saturation = map(float, factors)
    changed = torch.empty(frames.shape, dtype=torch.uint8)
    for frame, to in zip(_tensor(frames), changed, strict=True):  # one by one, to fit the cache
        colour = frame * brightness
        grey = (colour @ LUMA).unsqueeze(-1)
        rest = (1 - contrast) * grey.mean() + contrast * (1 - saturation) * grey
        to.copy_(torch.add(rest, colour, alpha=contrast * saturation).round_().clamp_(0, 255))
    return changed.numpy()


def flip(frames: np.ndarray) -> np.ndarray:
    """Mirrors every frame horizontally."""
    return _tensor(frames).flip(2).numpy()


def drop_frames(frames: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Replaces dropped frames by the frame before them, as in a stuttering recording."""
    kept = np.where(dropped, 0, np.arange(len(frames)))
    return frames[np.maximum.accumulate(kept)]


def permute_frames(pixel_values: torch.Tensor, rng: np.random.Generator) -> torch.Tensor | None:
    """Shuffles the frames of a whole video, to make a negative for its captions.

    Args:
        pixel_values: uint8 [windows, frames, channels, height, width].

    Returns:
        the same shape; None if there is no visible difference.
    """
    frames = pixel_values.flatten(0, 1)
    shuffled = frames[torch.from_numpy(rng.permutation(len(frames)))]
    if (shuffled.float() - frames.float()).abs().mean() < VISIBLE:
        return None
    return shuffled.view_as(pixel_values)


def _tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(frames, requirements=["C", "W"]))  # arrays from shards are read-only


# --- time: the whole clip ---


def temporal_crop(clip: Clip, share: float, place: float) -> Clip:
    """Cuts a span of `share` of the clip's length, at `place` (0 to 1)."""
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
    """Plays the clip `factor` times as fast, which also changes the pitch of its sound."""
    waveform = clip.waveform
    if waveform is not None:
        longer = np.pad(waveform, (0, BEHIND))
        waveform = _filtered(longer, _faster(factor))[: round(len(waveform) / factor)]
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
    """Adds white noise at a signal-to-noise ratio in dB; silence stays silent."""
    power = float(np.mean(np.square(waveform)))
    hiss = rng.standard_normal(len(waveform), np.float32)
    return waveform + hiss * np.float32(np.sqrt(power / 10 ** (snr / 10)))


def pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Shifts the pitch by at most an octave: resamples, then stretches to the same length (WSOLA)."""
    factor = 2 ** (semitones / 12)
    longer = np.pad(waveform, (0, BEHIND), mode="reflect")
    return _filtered(longer, _faster(factor) | {"atempo": 1 / factor})[: len(waveform)]


def time_mask(waveform: np.ndarray, share: float, place: float) -> np.ndarray:
    """Silences a `share` of the sound (SpecAugment, Park et al. 2019, on the waveform)."""
    length = round(len(waveform) * share)
    first = round((len(waveform) - length) * place)
    masked = waveform.copy()
    masked[first : first + length] = 0
    return masked


def frequency_mask(waveform: np.ndarray, share: float, place: float) -> np.ndarray:
    """Removes a band of frequencies, a `share` of the spectrum (SpecAugment, Park et al. 2019)."""
    length = 1 << (len(waveform) - 1).bit_length()  # the transform is slow for other lengths, most for primes
    spectrum = np.fft.rfft(waveform, length)
    width = round(len(spectrum) * share)
    first = round((len(spectrum) - width) * place)
    spectrum[first : first + width] = 0
    return np.fft.irfft(spectrum, length)[: len(waveform)].astype(np.float32)


def _faster(factor: float) -> dict[str, float]:
    """Filters that play a sound `factor` times as fast, without aliasing."""
    return {"asetrate": round(SAMPLE_RATE * factor), "aresample": SAMPLE_RATE}


def _filtered(waveform: np.ndarray, filters: Mapping[str, float]) -> np.ndarray:
    """Applies FFmpeg's audio filters, name -> setting, in order."""
    graph = Graph()
    graph.threads = 1  # by default one for each core, in every data worker
    begin = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="fltp", layout="mono")
    between = [graph.add(name, str(setting)) for name, setting in filters.items()]
    graph.link_nodes(begin, *between, graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(waveform[None], "fltp", "mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    graph.push(frame)
    graph.push(None)
    parts = []
    with suppress(EOFError):
        while True:
            parts.append(graph.pull().to_ndarray()[0])
    return np.concatenate(parts)


# --- text ---


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Drops words of a text at random, but never all."""
    words = text.split()
    kept = [word for word, draw in zip(words, rng.uniform(size=len(words)), strict=True) if draw >= share]
    return " ".join(kept) if kept else text
