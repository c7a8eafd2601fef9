"""Windows of recordings, and lines of text, as vectors of the shared space (level `semantic`)."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Recording
from mllm.search.alignment.sequence import Sequence
from mllm.search.alignment.words import Script

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

HOPS = 4  # windows that overlap


def window_vectors(embedder: Embedder, recording: Recording, side: str) -> Sequence:
    """Vectors of one side, "video" or "audio", HOPS of them in the length of a window.

    Raises:
        MediaError: if the recording lacks that side.
    """
    spec = replace(embedder.processor.spec, max_windows=sys.maxsize)
    rate, half = HOPS / spec.window_seconds, spec.window_seconds / 2
    found: dict[int, np.ndarray] = {}
    for phase in range(HOPS):
        start = phase / rate
        if start and start + half >= recording.info.duration:
            break
        clip = recording.clip(
            start=start or None,
            size=spec.image_size,
            choose=lambda seconds: spec.frame_times(seconds).ravel(),
            want_video=side == "video",
            want_audio=side == "audio",
        )
        for window in embedder.windows(clip):
            if window.modality == side and window.end - window.start > half:
                found[phase + round(window.start * rate)] = window.vector
    if not found:
        raise MediaError(f"{recording.name}: no {'picture' if side == 'video' else 'sound'} to align")
    vectors = np.zeros((max(found) + 1, embedder.dim), np.float32)
    for place, vector in found.items():
        vectors[place] = vector
    return Sequence(recording.name, centred(vectors), rate, half, block=spec.window_seconds)


def line_vectors(embedder: Embedder, script: Script, seconds: float) -> Sequence:
    """Vectors of a script's lines while they are said, at the steps of `window_vectors`; else zeros."""
    window = embedder.processor.window_seconds
    rate = HOPS / window
    times = window / 2 + np.arange(max(1, int((seconds - window) * rate) + 1)) / rate
    vectors = np.zeros((len(times), embedder.dim), np.float32)
    for line, vector in zip(
        script.lines, embedder.embed_text([line["text"] for line in script.lines]), strict=True
    ):
        vectors[(times >= line["start"] - window / 4) & (times <= line["end"] + window / 4)] += vector
    return Sequence(script.name, centred(vectors), rate, window / 2, block=window)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Vectors less their mean, with a mean square norm of 1; zeros stay zeros.

    What all moments of a recording share, and what sets picture, sound and text apart, says nothing of time.
    """
    said = np.any(vectors != 0, axis=1)
    moved = np.where(said[:, None], vectors - vectors[said].mean(0), 0) if said.any() else vectors
    return (moved / max(float(np.sqrt((moved**2).sum(1).mean())), 1e-9)).astype(np.float32)
