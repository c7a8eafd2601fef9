"""Finds damage in recordings that open: a missing end, undecodable packets, sound that is not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import MediaInfo
from mllm.media.decode import interleaved
from mllm.media.scan import configure, open_container, packets
from mllm.media.sources import MediaLimits, Source, clear_errors, locate

SHORT = 0.9  # of the announced length: a recording with less was cut off
ANNOUNCING = {"mov", "matroska", "asf", "flac"}  # elsewhere FFmpeg guesses the length from the bit rate
STREAMED = 0x7FFF0000  # bytes: RIFF headers with this size or more were written before the end was known
UNDECODABLE = 0.02  # share of packets, beyond the two that a clean cut may spoil, that counts as damage
MOST = 2000  # packets of a picture that are decoded to find damage


def find_damage(
    source: str | Path,
    info: MediaInfo,
    choose: Callable[[float], np.ndarray],
    limits: MediaLimits = MediaLimits(),
    sound: bool = True,
) -> list[str]:
    """One phrase for each kind of damage; decodes all of the sound and a part of the picture.

    Args:
        info: the result of `probe`.
        choose: duration (s) -> ascending times (s) at which the picture is decoded.
        sound: whether to decode the sound, too.

    Raises:
        MediaError: if the recording cannot be found.
    """
    found = locate(source, limits)
    if info.is_image or found.path.is_dir():
        return []
    kinds = ("video", "audio") if sound else ("video",)
    try:
        with clear_errors(found.name), open_container(found) as container:
            best = [container.streams.best(kind) for kind in kinds]
            streams = [stream for stream in best if stream is not None and stream.codec_context is not None]
            wanted = _to_decode(container, streams, choose(info.duration).tolist(), limits.max_pixels)
            return _cut_off(found, container, info) or _undecodable(wanted)
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


def _undecodable(wanted: Iterable[Any]) -> list[str]:
    """Counts undecodable packets; `media.decode` skips them, as players do."""
    met: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    numbers = True
    for packet in wanted:
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
    problems = [
        f"{failed[kind]} of {count} packets of its {kind} cannot be decoded: fetch it again"
        for kind, count in met.items()
        if failed[kind] > max(2, UNDECODABLE * count)
    ]
    return problems + ([] if numbers else ["its sound holds values that are no numbers: encode it again"])


def _to_decode(
    container: Any, streams: list[Any], moments: list[float], max_pixels: int | None
) -> Iterator[Any]:
    """All packets of the sound, and those of the picture from a keyframe up to each of the times (s)."""
    begin = (container.start_time or 0) / av.time_base
    moments = [begin + moment for moment in moments]
    waiting: list[Any] = []  # packets of the picture since a keyframe
    for stream in streams:
        if stream.type == "video":
            configure(stream, max_pixels)
            # Only whether it decodes matters, not the result: this takes half the time.
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
