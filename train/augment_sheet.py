"""`mllm train views`: a recording before and after each augmentation, to be looked at before it trains."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mllm.experiment import Augment
from mllm.files import replacing
from mllm.media import SAMPLE_RATE, Clip
from mllm.templates import paraphrase
from train.augment import augment, drop_words

FRAMES = 4  # shown of a clip
FLOOR = 1e-6  # so that silence has a logarithm
SHOWN = {  # what a kind changes
    "noise_snr": "sound", "pitch": "sound", "time_mask": "sound", "frequency_mask": "sound",
    "crop": "picture", "jitter": "picture", "flip": "picture", "frame_dropout": "picture",
    "temporal_crop": "both", "speed": "both", "word_dropout": "text", "paraphrase": "text",
    "frame_permutation": "picture",
}  # fmt: skip
REQUEST = "Describe the recording."


def draw_views(clip: Clip, caption: str, settings: Augment, path: Path, seed: int = 0) -> None:
    """Writes a PNG: the recording as it is, then one row for each kind that the settings turn on."""
    kinds = [kind for kind in SHOWN if getattr(settings, kind) != Augment.model_fields[kind].default]
    figure = Figure(figsize=(9, 1.1 * (len(kinds) + 1)), layout="constrained")
    figure.suptitle(textwrap.fill(caption, 110), fontsize=9, x=0.02, ha="left")
    rows = figure.subplots(len(kinds) + 1, FRAMES + 1, squeeze=False, width_ratios=[1] * FRAMES + [3])
    _draw(rows[0], "as it is", clip, caption, "both")
    for row, kind in zip(rows[1:], kinds, strict=True):
        alone = Augment(**{kind: getattr(settings, kind)})
        rng = np.random.default_rng(seed)
        said = caption
        if kind == "word_dropout":
            said = drop_words(caption, settings.word_dropout, rng)
        elif kind == "paraphrase":
            said = f"{REQUEST}  →  {paraphrase('caption', REQUEST, str(seed))}"
        view = clip
        for attempt in range(20):  # a flip comes every other time
            view = augment(clip, alone, np.random.default_rng(seed + attempt))
            if kind != "flip" or view.fingerprint() != clip.fingerprint():
                break
        if kind == "frame_permutation" and clip.frames is not None:  # no view: a negative of stage 1
            view = replace(clip, frames=rng.permutation(clip.frames))
        _draw(row, f"{kind} {getattr(settings, kind)}", view, said, SHOWN[kind])
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _draw(row: list[Axes], name: str, clip: Clip, caption: str, changed: str) -> None:
    *pictures, sound = row
    row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    times = (np.arange(FRAMES) + 0.5) / FRAMES * clip.duration
    for place, axes in enumerate(pictures):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if clip.frames is not None and changed in ("picture", "both"):
            axes.imshow(clip.frames[clip.on_screen(times)[place]])
    sound.set(xticks=[], yticks=[])
    sound.spines[:].set_visible(False)
    if changed == "text":
        sound.text(0, 0.5, textwrap.fill(caption, 56), fontsize=8, va="center")
    if clip.waveform is not None and changed in ("sound", "both"):
        hush = FLOOR * np.random.default_rng(0).standard_normal(len(clip.waveform))
        sound.specgram(clip.waveform + hush, NFFT=256, Fs=SAMPLE_RATE, noverlap=128, vmin=-120, vmax=-20)
