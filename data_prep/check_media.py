"""One recording put to the test: does it open, decode, last as long as it says, and is it more than silence?

Runs in worker processes of `check.py`, so that a file which hangs or crashes a decoder costs one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import av
import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import MediaInfo
from mllm.media.decode import interleaved
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from mllm.media.scan import configure, open_container, packets
from mllm.media.sources import MediaLimits, Source, clear_errors, locate

Severity = Literal["error", "warning"]

SILENCE = 1e-4  # peak of a waveform between -1 and 1 (-80 dB), below which nobody hears anything
LONGEST = MediaLimits().max_seconds or math.inf  # s: longer ones are not listened to
SAMPLED_FRAMES = 4  # decoded over the length of a picture, the last one included
SHORT = 0.9  # of the length that a container announces: what holds less was cut off
ANNOUNCING = {"mov", "matroska", "asf", "flac"}  # elsewhere FFmpeg guesses the length from the bit rate
STREAMED = 0x7FFF0000  # bytes: RIFF headers that say so many, or more, were written before the end was known
UNDECODABLE = 0.02  # of the packets, and more than the two that a clean cut may spoil: damaged
MOST = 2000  # packets of a picture that are decoded to find damage
THUMBNAIL = 96  # pixels


@dataclass
class MediaFacts:
    """What is known of a recording after a look at it.

    Attributes:
        error: why it cannot be read; None if it can.
        problems: (severity, what) of one that can be read.
        info: duration (s), fps, rotation (degrees), width, height, codecs, has_video, has_audio, and when the
            last frame leaves the screen and the sound ends (picture_ends, sound_ends, s).
        thumbnail: JPEG of a frame.
    """

    error: str | None = None
    problems: list[tuple[Severity, str]] = field(default_factory=list)
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
        for place, info in [(path, found), *([(audio, probe(audio))] if audio else [])]:
            facts.problems += [("error", what) for what in _damage(locate(place, limits), info)]
    except MediaError as error:
        facts.error = str(error)
        return facts
    if found.clock_jumps:
        told = "its clock jumps: such gaps are closed, and its times are not those that a player shows"
        facts.problems.append(("warning", told))
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


def _damage(source: Source, info: MediaInfo) -> list[str]:
    """What a recording that opens lacks all the same: its end, packets that decode, sound made of numbers."""
    if info.is_image or source.path.is_dir():
        return []
    kinds = ("video", "audio") if info.duration <= LONGEST else ("video",)
    try:
        with clear_errors(source.name), open_container(source) as container:
            best = [container.streams.best(kind) for kind in kinds]
            streams = [stream for stream in best if stream is not None and stream.codec_context is not None]
            return _cut_off(source, container, info) or _undecodable(container, streams, info.duration)
    except MediaError:
        return []  # an animation, which Pillow reads


def _cut_off(source: Source, container: Any, info: MediaInfo) -> list[str]:
    head = source.head(8)
    if head.startswith(b"RIFF"):
        there = source.size()
        announced = int.from_bytes(head[4:], "little") + len(head)
        if there < SHORT * announced and announced < STREAMED:
            return [f"cut off: {there} of the {announced} bytes that it announces are there: fetch it again"]
    elif container.format.name.split(",")[0] in ANNOUNCING and container.duration:
        seconds = container.duration / av.time_base
        if info.duration < SHORT * seconds:
            short = f"{info.duration:.1f} s can be read of the {seconds:.1f} s that it announces"
            return [f"cut off: {short}: fetch it again"]
    return []


def _undecodable(container: Any, streams: list[Any], duration: float) -> list[str]:
    """Decodes once more, since `mllm.media.decode` passes over what is damaged, as playing does."""
    met: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    numbers = True
    for packet in _to_decode(container, streams, duration):
        kind = {"video": "picture", "audio": "sound"}[packet.stream.type]
        if kind == "picture" and met[kind] == MOST:
            continue
        met[kind] += 1
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError):
            failed[kind] += 1
            continue
        if kind == "sound":
            numbers = numbers and all(np.isfinite(interleaved(frame)).all() for frame in frames)
    told = [
        f"{failed[kind]} of {count} packets of its {kind} cannot be decoded: fetch it again"
        for kind, count in met.items()
        if failed[kind] > max(2, UNDECODABLE * count)
    ]
    return told + ([] if numbers else ["its sound holds values that are no numbers: encode it again"])


def _to_decode(container: Any, streams: list[Any], duration: float) -> Iterator[Any]:
    """All packets of the sound; of the picture, those from a keyframe to each of the sampled moments."""
    begin = (container.start_time or 0) / av.time_base
    moments = (begin + _sampled(duration)).tolist()
    waiting: list[Any] = []  # packets of the picture since a keyframe
    for stream in streams:
        if stream.type == "video":
            configure(stream, MediaLimits().max_pixels)
            # Only whether it decodes matters, not how it looks: half the time.
            stream.codec_context.options |= {"skip_loop_filter": "all"}
            stream.codec_context.skip_frame = "NONREF"
    for packet in packets(container, streams):
        if packet.stream.type == "audio":
            yield packet
            continue
        if packet.is_keyframe:
            waiting.clear()
        waiting.append(packet)
        stamp = packet.pts if packet.pts is not None else packet.dts
        time = None if stamp is None else float(stamp * packet.time_base)
        if time is None or (moments and time >= moments[0]):
            moments = [moment for moment in moments if time is None or moment > time]
            yield from waiting
            waiting.clear()
    yield from waiting


def _jpeg(frame: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()
