"""`mllm train views`: a recording before and after each augmentation, to be looked at before it trains.

Each is drawn as strong as the settings let it become, and only where what is said of the recording allows it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mlab import specgram
from PIL import Image

from mllm.errors import RecordError
from mllm.experiment import Augment
from mllm.files import replacing
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE, load_clip
from mllm.media.windows import WindowSpec
from mllm.records.chat import validate_messages
from mllm.records.record import answered
from mllm.records.source import DataSource
from mllm.records.templates import paraphrase
from train import augment as views
from train.conversations import caption_conversations

FRAMES = 6  # shown of a clip
NFFT = 512  # samples of a spectrum, 32 ms
DRAWS = 20  # of which the strongest is shown, where chance decides how strong one is
FLOOR = 1e-12  # added to a spectrum's power: silence has no logarithm
SHOWN = {  # what a kind changes, and how much of it
    "noise_snr": ("sound", "{:g} dB"),
    "pitch": ("sound", "+{:g} semitones"),
    "time_mask": ("sound", "{:.0%} silent"),
    "frequency_mask": ("sound", "{:.0%} taken out"),
    "crop": ("picture", "{:.0%} of the sides"),
    "jitter": ("picture", "±{:.0%}"),
    "flip": ("picture", ""),
    "frame_dropout": ("picture", "{:.0%} of frames"),
    "frame_permutation": ("picture", "(as a negative)"),
    "temporal_crop": ("both", "{:.0%} cut off"),
    "speed": ("both", "{:.0%} faster"),
    "word_dropout": ("text", "{:.0%} of words"),
    "paraphrase": ("text", ""),
}


@dataclass
class Scene:
    """A recording with its texts.

    Attributes:
        clip: as training loads it.
        texts: all texts about the recording.
        caption: "" if it has none.
        task, request: an instruction about it, and the task that it is phrased for.
    """

    clip: Clip
    texts: list[str]
    caption: str = ""
    task: str = "caption"
    request: str = "Describe the recording."


def open_scene(source: DataSource, number: int, spec: WindowSpec) -> Scene:
    """A scene's first recording: with its captions, as in stage 1, or else with its questions, as in stage 2.

    Raises:
        RecordError: there is no such scene, or no recording in it.
        MediaError: the recording cannot be read.
    """
    if number >= len(source):
        raise RecordError(f"{source.name} has {len(source)} scenes: take one from 0 to {len(source) - 1}")
    captions: list[str] = []
    records: list[dict[str, Any]] = []
    try:
        pair = source.pair(number)
    except RecordError:  # no captions
        records = source.conversations(number)
        conversations = [answered(record) for record in records]
    else:
        captions = [text for kind in ("both", "video", "audio") if (text := pair["captions"].get(kind))]
        conversations = caption_conversations(pair, 0)
    checked = [validate_messages(messages) for messages in conversations]
    media = next((part for conversation in checked for part in conversation.media), None)
    if media is None:
        raise RecordError(f"{source.name}: scene {number} has no recording: take another")
    clip = load_clip(
        media.source,
        size=spec.image_size,
        choose=lambda duration: spec.frame_times(duration).ravel(),
        want_video=media.modality != "audio",
        **media.options,
    )
    texts = [text for conversation in checked for text in conversation.texts]
    if records:
        return Scene(clip, texts, task=records[0].get("task") or "", request=texts[0])
    return Scene(clip, texts + captions, captions[0])


def draw_views(scene: Scene, settings: Augment, path: Path, seed: int = 0) -> None:
    """Writes a PNG: for each kind that the settings turn on, what was before and what comes after."""
    kinds = [kind for kind in SHOWN if getattr(settings, kind) != Augment.model_fields[kind].default]
    rows = [(kind, panel) for kind in kinds for panel in _panels(kind, scene.clip)]
    heights = [0.5 if panel == "text" else 1.0 for _, panel in rows]
    figure = Figure(figsize=(10, 0.75 * sum(heights) + 0.7), layout="constrained")
    said = textwrap.shorten(scene.caption or " ".join(scene.texts[:2]), 300)
    figure.suptitle(textwrap.fill(said, 120), fontsize=10, parse_math=False)
    grid = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
    for axes, title in zip(grid[0], ("before", "after"), strict=True):
        axes.set_title(title, fontsize=10)
    labelled = ""
    for (kind, panel), (left, right) in zip(rows, grid, strict=True):
        value = getattr(settings, kind)
        before, after = before_and_after(scene, kind, value, np.random.default_rng(seed))
        _draw(left, before, panel, scene.clip)
        _draw(right, after, panel, scene.clip)
        if kind != labelled:
            label = f"{kind}\n{SHOWN[kind][1].format(value)}".strip()
            left.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            labelled = kind
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with replacing(path) as partial:  # in 256 colours, a third as large
        Image.open(drawn).convert("RGB").quantize(kmeans=3).save(partial, "PNG", optimize=True)


def before_and_after(
    scene: Scene, kind: str, value: Any, rng: np.random.Generator
) -> tuple[Clip | str, Clip | str]:
    """What a kind of augmentation changes, and the strongest that it makes of it; or why it does nothing."""
    clip, changes = scene.clip, SHOWN[kind][0]
    if changes == "text":
        return _say(scene, kind, value, rng)
    if word := views.held_back(scene.texts).get(kind):
        return clip, f'as it is: a text says "{word}"'
    if clip.is_image and (changes == "both" or kind.startswith("frame_")):
        return clip, "as it is: a picture that stands still"
    if changes == "sound":
        if clip.waveform is None or not len(clip.waveform):
            return clip, "as it is: no sound in it"
        return clip, replace(clip, waveform=_sound(clip.waveform, kind, value, rng))
    if changes == "picture":
        if clip.frames is None:
            return clip, "as it is: no picture in it"
        return clip, replace(clip, frames=_picture(clip.frames, kind, value, rng))
    if kind == "speed":
        return clip, views.speed(clip, 1 + value)
    return clip, views.temporal_crop(clip, 1 - value, 1.0)


def _sound(waveform: np.ndarray, kind: str, value: float, rng: np.random.Generator) -> np.ndarray:
    if kind == "noise_snr":
        return views.noise(waveform, value, rng)
    if kind == "pitch":
        return views.pitch(waveform, value)
    if kind == "time_mask":
        return views.time_mask(waveform, value, 0.5)
    return views.frequency_mask(waveform, value, 0.1)


def _picture(frames: np.ndarray, kind: str, value: float, rng: np.random.Generator) -> np.ndarray:
    if kind == "crop":
        return views.crop(frames, 1 - value, rng.uniform(size=2))
    if kind == "jitter":
        return views.jitter(frames, 1 + value * np.array([-1, 1, 1]))
    if kind == "flip":
        return views.flip(frames)
    if kind == "frame_dropout":
        draws = [rng.uniform(size=len(frames)) < value for _ in range(DRAWS)]
        return views.drop_frames(frames, max(draws, key=np.sum))
    return rng.permutation(frames)


def _say(scene: Scene, kind: str, value: float, rng: np.random.Generator) -> tuple[str, str]:
    if kind == "word_dropout":
        draws = [views.drop_words(scene.caption, value, rng) for _ in range(DRAWS)]
        return scene.caption or "no caption", min(draws, key=len)
    draws = [paraphrase(scene.task, scene.request, str(draw)) for draw in range(DRAWS)]
    other = next((text for text in draws if text != scene.request), "as it is: no other phrasing")
    return scene.request, other


def _panels(kind: str, clip: Clip) -> list[str]:
    """The panels drawn for a kind of augmentation, one per row."""
    if SHOWN[kind][0] != "both":
        return [SHOWN[kind][0]]
    there = [name for name, part in (("picture", clip.frames), ("sound", clip.waveform)) if part is not None]
    return there or ["text"]


def _draw(axes: Axes, view: Clip | str, panel: str, original: Clip) -> None:
    """Draws a text, or a clip's pictures or sound on the time axis of the original."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if isinstance(view, str):
        text = textwrap.fill(view, 62)
        axes.text(0.01, 0.5, text, fontsize=9, va="center", transform=axes.transAxes, parse_math=False)
    elif panel == "picture" and view.frames is not None:
        count = 1 if original.is_image else FRAMES
        times = (np.arange(count) + 0.5) / count * original.duration
        shown = view.frames[view.on_screen(times[times <= view.duration])]
        for index, frame in enumerate(shown):
            axes.imshow(frame, extent=(index, index + 0.96, 0, 1), aspect="auto")
        axes.set(xlim=(0, FRAMES), ylim=(0, 1))
    elif panel == "sound" and view.waveform is not None and len(view.waveform):
        loudest = 0.0 if original.waveform is None else np.abs(original.waveform).max()
        sound = view.waveform / max(loudest, 1e-6)
        power = np.asarray(specgram(sound, NFFT=NFFT, noverlap=NFFT // 2, Fs=SAMPLE_RATE)[0], float)
        axes.imshow(
            10 * np.log10(power + FLOOR),
            extent=(0, view.duration, 0, 1),
            origin="lower",
            aspect="auto",
            vmin=-110,
            vmax=-30,
        )
        axes.set_xlim(0, original.duration)
