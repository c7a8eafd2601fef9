"""One recording put to the test: does it open, decode, last as long as it says, and is it more than silence?

Runs in worker processes of `check.py`, so that a file which hangs or crashes a decoder costs one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import MediaError
from mllm.media import load_clip, probe
from mllm.sources import MediaLimits

SILENCE = 1e-4  # peak of a waveform between -1 and 1 (-80 dB), below which nobody hears anything
LONGEST = MediaLimits().max_seconds or math.inf  # s: longer ones are not listened to
SAMPLED_FRAMES = 4  # decoded over the length of a picture, the last one included
SHORT = 0.9  # of the length that a container announces: what holds less was cut off
THUMBNAIL = 96  # pixels


@dataclass
class MediaFacts:
    """What is known of a recording after a look at it.

    Attributes:
        error: why it cannot be read; None if it can.
        problems: (severity, what) of one that can be read.
        info: duration (s), fps, rotation (degrees), width, height, codecs, has_video, has_audio.
        thumbnail: JPEG of a frame.
    """

    error: str | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None


def look(path: str, audio: str | None = None) -> MediaFacts:
    """Opens, samples and listens to a recording; never raises a MediaError.

    Args:
        audio: a separate recording of its sound.
    """
    facts = MediaFacts()
    try:
        found = probe(path)
        facts.info = {key: value for key, value in vars(found).items() if value not in (None, 0, False)}
        # Rows may ask for a short span of what is long as a whole, whose sound would fill the memory.
        limits = MediaLimits(max_seconds=None)
        heard = found.duration <= LONGEST
        clip = load_clip(path, size=THUMBNAIL, choose=_sampled, audio=audio, want_audio=heard, limits=limits)
    except MediaError as error:
        facts.error = str(error)
        return facts
    if clip.frames is not None:
        facts.thumbnail = _jpeg(clip.frames[len(clip.frames) // 2])
        if not found.is_image and len(clip.frames) > 1 and (clip.frames == clip.frames[0]).all():
            facts.problems.append(("warning", "the picture never changes"))
    if clip.waveform is not None:
        peak = float(np.abs(clip.waveform).max(initial=0.0))
        if peak < SILENCE:
            facts.problems.append(("warning", "its sound track is silent"))
        elif not np.isfinite(peak):
            facts.problems.append(("error", "its sound holds values that are no numbers: encode it again"))
    announced = None if found.is_image else _announced(path)
    if announced and found.duration < SHORT * announced:
        short = f"{found.duration:.1f} s can be read of the {announced:.1f} s that it announces"
        facts.problems.append(("error", f"cut off: {short}: fetch it again"))
    facts.info["duration"] = max(found.duration, clip.duration)
    return facts


def _sampled(duration: float) -> np.ndarray:
    return np.linspace(0, duration, SAMPLED_FRAMES)


def _announced(path: str) -> float | None:
    """Seconds that the container says it lasts; None where it says nothing."""
    import av

    if not Path(path).is_file():
        return None
    try:
        with av.open(path) as container:
            return container.duration / av.time_base if container.duration else None
    except av.error.FFmpegError:
        return None  # what Pillow reads


def _jpeg(frame: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()
