"""Checks one recording: whether it opens, decodes, lasts as long as it claims, and is not silent.

Runs in worker processes of `check.py`, so that a file that hangs or crashes a decoder costs just one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mllm.errors import MediaError
from mllm.media.damage import find_damage
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from mllm.media.sources import MediaLimits

Severity = Literal["error", "warning"]

SILENCE = 1e-4  # peak of a waveform between -1 and 1 (-80 dB), below which it counts as silent
LONGEST = MediaLimits().max_seconds or math.inf  # s; the sound of longer recordings is not checked
SAMPLED_FRAMES = 4  # decoded over the length of a video, including the last frame
THUMBNAIL = 96  # pixels


@dataclass
class MediaFacts:
    """What a check finds out about one recording.

    Attributes:
        error: why it cannot be read; None if it can.
        problems: (severity, description), if it can be read.
        info: duration (s), fps, rotation (degrees), width, height, codecs, has_video, has_audio, and when the
            picture and the sound end (picture_ends, sound_ends, s).
        thumbnail: JPEG of a frame.
    """

    error: str | None = None
    problems: list[tuple[Severity, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None


def look(path: str, audio: str | None = None) -> MediaFacts:
    """Opens, samples and checks a recording; never raises a MediaError.

    Args:
        audio: a separate recording of its sound.
    """
    facts = MediaFacts()
    try:
        found = probe(path)
        facts.info = {key: value for key, value in vars(found).items() if value not in (None, 0, False)}
        # Rows may use short spans of a long recording, whose whole sound would fill the memory.
        limits = MediaLimits(max_seconds=None)
        heard = found.duration <= LONGEST
        clip = load_clip(path, size=THUMBNAIL, choose=_sampled, audio=audio, want_audio=heard, limits=limits)
        for source, info in [(path, found), *([(audio, probe(audio))] if audio else [])]:
            facts.problems += [
                ("error", what)
                for what in find_damage(source, info, _sampled, limits, info.duration <= LONGEST)
            ]
    except MediaError as error:
        facts.error = str(error)
        return facts
    if found.clock_jumps:
        problem = "its clock jumps: such gaps are closed, and its times are not those that a player shows"
        facts.problems.append(("warning", problem))
    if clip.frames is not None:
        facts.thumbnail = _jpeg(clip.frames[len(clip.frames) // 2])
        facts.info["picture_ends"] = round(clip.picture_until(), 3)
        if not found.is_image and len(clip.frames) > 1 and (clip.frames == clip.frames[0]).all():
            facts.problems.append(("warning", "the picture never changes"))
    if clip.waveform is not None:
        facts.info["sound_ends"] = round(len(clip.waveform) / SAMPLE_RATE, 3)
        if np.abs(clip.waveform).max(initial=0.0) < SILENCE:
            facts.problems.append(("warning", "its sound track is silent"))
    facts.info["duration"] = max(found.duration, clip.duration)
    return facts


def _sampled(duration: float) -> np.ndarray:
    return np.linspace(0, duration, SAMPLED_FRAMES)


def _jpeg(frame: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()
