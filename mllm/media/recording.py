"""Recordings in, `Clip`s out: the only decoder of the project.

    clip = load_clip("holiday.mp4", size=224, choose=lambda seconds: np.linspace(0, seconds, 32))

A source is a path, bytes, a `data:` URI, a folder of frames (png or jpg in the order of their names, with at
most one sound file, and `fps.txt` where the rate is not 3), or a `Clip`. PyAV probes; decord decodes the
frames at the size asked for, PyAV where decord cannot (AV1, AVI, open GOPs, deep colours, damage, no wheel);
PyAV decodes the sound. What cannot be read ends in a MediaError of one line. Decoders are large and can be
crashed: what a stranger sent is read with `isolated=True`, in a process that may be lost (`decode_pool`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mllm.errors import MediaError
from mllm.media import decode
from mllm.media.clip import Clip, MediaInfo, on_screen
from mllm.media.scan import Scan, scan
from mllm.media.sources import MediaLimits, Source, check_bytes, check_frame_bytes, locate
from mllm.media.stills import Stills, open_image, read_folder, read_stills

if TYPE_CHECKING:
    from mllm.media.decode_pool import DecodePool

SAMPLE_RATE = 16_000
NO_SOUND = "no sound in it: give a sound file such as wav or flac as `audio`"
HOLD = 0.5  # s: how long the last frame stands in for a picture that ends before the sound

_log = logging.getLogger(__name__)

MediaSource: TypeAlias = "str | Path | bytes | bytearray | memoryview | Source | Clip"


def probe(source: MediaSource, limits: MediaLimits = MediaLimits(), *, isolated: bool = False) -> MediaInfo:
    """What a source holds, without decoding it.

    Args:
        isolated: as in `load_clip`.

    Raises:
        MediaError: as `load_clip`.
    """
    if isinstance(source, Clip):
        frames = source.frames
        height, width = (0, 0) if frames is None else frames.shape[1:3]
        fps = None if frames is None or source.is_image else _rate(source.frame_times, source.picture_until())
        has_audio = source.waveform is not None
        return MediaInfo(
            source.duration,
            frames is not None,
            has_audio,
            source.is_image,
            width,
            height,
            fps=fps,
            clock_jumps=source.clock_jumps,
        )
    if isolated:
        return _pool().probe(locate(source, limits), limits)
    return _open(source, limits).info()


def load_clip(
    source: MediaSource,
    *,
    size: int | None = None,
    choose: Callable[[float], np.ndarray] | None = None,
    start: float | None = None,
    end: float | None = None,
    limits: MediaLimits = MediaLimits(),
    audio: MediaSource | None = None,
    want_video: bool = True,
    want_audio: bool = True,
    isolated: bool = False,
) -> Clip:
    """Read a recording.

    Args:
        source: path, bytes, `data:` URI, folder of frames, or a Clip (which keeps its frames and their size).
        size: pixels; frames are squashed to size×size. None keeps theirs.
        choose: from the duration (s) to the times (s) whose frames are wanted: ascending; one frame for each,
            the one on screen then. None: every frame once. Only what is needed is decoded.
        start, end: s; cut the recording. Times then count from start, and so does what `choose` sees.
        limits: what is too much.
        audio: a separate recording of the sound, from the same moment on; replaces the source's own.
        want_video, want_audio: leave one out.
        isolated: decode in a worker process that may be lost, for what a stranger sent: a crash, a hang or a
            bomb ends in a MediaError, too. The arrays are the same, and writable.

    Raises:
        MediaError: with source, cause and remedy, if it cannot be read, breaks a limit or ends before start.
    """
    if isinstance(audio, Clip):
        told = "a Clip cannot be the sound of another: give a path or bytes as `audio`"
        raise MediaError(f"{audio.source}: {told}")
    if isinstance(source, Clip):
        return _cut_clip(source, start, end, limits, audio, want_video, want_audio, isolated)
    options: dict[str, Any] = {
        "size": size,
        "start": start,
        "end": end,
        "want_video": want_video,
        "want_audio": want_audio,
    }
    if isolated:
        sound = None if audio is None else locate(audio, limits)
        clip = _pool().load_clip(locate(source, limits), sound, limits, choose, options)
    else:
        clip = _decoded(source, audio, limits, choose, **options)
    _warn_of_jumps(clip.source, clip.clock_jumps)
    return clip


def _decoded(
    source: MediaSource,
    audio: MediaSource | None,
    limits: MediaLimits,
    choose: Callable[[float], np.ndarray] | None,
    *,
    size: int | None,
    start: float | None,
    end: float | None,
    want_video: bool,
    want_audio: bool,
) -> Clip:
    media = _open(source, limits, want_video)
    sound = media if audio is None else _open_sound(audio, limits)
    duration = max(media.duration, sound.duration)
    is_image = media.is_image and audio is None
    first, last = (0.0, 0.0) if is_image else _span(media.name, duration, start, end)
    if limits.max_seconds is not None and last - first > limits.max_seconds:
        allowed = f"more than the limit of {limits.max_seconds:g} s"
        raise MediaError(f"{media.name}: {last - first:.1f} s is {allowed}: cut it, or give start and end")

    frames, times, picture_end = None, np.zeros(0), None
    until = duration if len(media.times) == 1 else media.picture_end  # a lone frame accompanies all the sound
    if want_video and len(media.times) and first <= until + HOLD:
        if choose is None or is_image:
            begin = int(on_screen(media.times, np.array([first]))[0])
            wanted: np.ndarray = np.arange(begin, max(begin + 1, np.searchsorted(media.times, last)))
        else:
            wanted = on_screen(media.times, np.asarray(choose(last - first), np.float64).ravel() + first)
        if len(wanted):
            info = media.info()
            check_frame_bytes(
                media.name, len(wanted), size or info.width, size or info.height, limits.max_frame_bytes
            )
            frames, real = media.read_frames(wanted, size)
            times = np.maximum(media.times[real] - first, 0.0)
            picture_end = max(0.0, until - first)
    waveform = sound.read_sound(first, last) if want_audio else None
    return Clip(frames, times, waveform, last - first, media.name, is_image, picture_end, media.clock_jumps)


@lru_cache(maxsize=1000)  # a recording may be read in many pieces
def _warn_of_jumps(name: str, jumps: int) -> None:
    if jumps:
        times = "once" if jumps == 1 else f"{jumps} times"
        _log.warning(
            "%s: its clock jumps %s: such gaps are closed, a player may show other times", name, times
        )


def _pool() -> DecodePool:
    from mllm.media.decode_pool import shared_pool  # it is built on this module

    return shared_pool()


# --- what a source turns out to be ---


class _Recording:
    """A file or bytes with video, sound or both in it."""

    is_image = False

    def __init__(self, source: Source, limits: MediaLimits, want_video: bool = True):
        self.source, self.name, self.max_pixels = source, source.name, limits.max_pixels
        self.found: Scan = scan(source, limits.max_pixels, want_video)
        self.duration = self.found.duration
        picture = self.found.picture
        self.times = picture.times if picture else np.zeros(0)
        self.picture_end = picture.end if picture else 0.0
        tracks = [track for track in (picture, self.found.sound) if track is not None]
        self.clock_jumps = max((len(track.shifts) for track in tracks), default=0)

    def read_frames(self, wanted: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
        return decode.read_frames(self.source, self.found, wanted, size, self.max_pixels)

    def read_sound(self, start: float, end: float) -> np.ndarray | None:
        return decode.read_sound(self.source, self.found, start, end, SAMPLE_RATE)

    def info(self) -> MediaInfo:
        picture, sound = self.found.picture, self.found.sound
        return MediaInfo(
            duration=self.duration,
            has_video=picture is not None,
            has_audio=sound is not None,
            width=picture.width if picture else 0,
            height=picture.height if picture else 0,
            rotation=picture.turns * 90 if picture else 0,
            video_codec=picture.codec if picture else None,
            audio_codec=sound.codec if sound else None,
            fps=_rate(picture.times, picture.end) if picture else None,
            clock_jumps=self.clock_jumps,
        )


class _Pictures:
    """An image, an animation, or a folder of frames with its sound."""

    clock_jumps = 0

    def __init__(self, name: str, stills: Stills, sound: _Recording | None = None):
        self.name, self.stills, self.sound = name, stills, sound
        self.is_image = stills.end == 0.0
        self.times, self.picture_end = stills.times, stills.end
        self.duration = max(stills.end, sound.duration if sound else 0.0)

    def read_frames(self, wanted: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
        positions, back = np.unique(wanted, return_inverse=True)
        return self.stills.read(positions, size)[back], wanted

    def read_sound(self, start: float, end: float) -> np.ndarray | None:
        return self.sound.read_sound(start, end) if self.sound else None

    def info(self) -> MediaInfo:
        sound = self.sound.info() if self.sound else None
        return MediaInfo(
            duration=self.duration,
            has_video=True,
            has_audio=sound is not None,
            is_image=self.is_image,
            width=self.stills.width,
            height=self.stills.height,
            rotation=self.stills.rotation,
            video_codec=self.stills.codec,
            audio_codec=sound.audio_codec if sound else None,
            fps=None if self.is_image else _rate(self.times, self.picture_end),
        )


def _open(source: MediaSource, limits: MediaLimits, want_video: bool = True) -> _Recording | _Pictures:
    place = locate(source, limits)
    if place.path.is_dir():
        stills, path = read_folder(place.path, place.name, limits.max_pixels)
        held = [file.size() for file in stills.files]
        check_bytes(place.name, sum(held), limits)
        return _Pictures(place.name, stills, _open_sound(path, limits) if path else None)
    image = open_image(place, limits.max_pixels)
    if image is not None:
        stills = read_stills(place, image, limits.max_pixels, limits.max_frame_bytes)
        return _Pictures(place.name, stills)
    return _Recording(place, limits, want_video)


def _open_sound(source: MediaSource, limits: MediaLimits) -> _Recording:
    """A recording for its sound alone."""
    found = _open(source, limits, want_video=False)
    if not isinstance(found, _Recording) or found.found.sound is None:
        raise MediaError(f"{found.name}: {NO_SOUND}")
    return found


# --- times ---


def _rate(times: np.ndarray, end: float) -> float | None:
    return len(times) / (end - float(times[0])) if len(times) and end > times[0] else None


def _span(name: str, duration: float, start: float | None, end: float | None) -> tuple[float, float]:
    """From when to when, s, within the recording."""
    first, last = 0.0 if start is None else float(start), math.inf if end is None else float(end)
    if not 0.0 <= first < last:
        raise MediaError(
            f"{name}: a cut from {start} to {end} s is none: start must be 0 or more, and before end"
        )
    if first and first >= duration:
        raise MediaError(
            f"{name}: start {first:g} s lies behind its end ({duration:.2f} s): choose an earlier one"
        )
    return first, min(last, duration)


def _cut_clip(
    clip: Clip,
    start: float | None,
    end: float | None,
    limits: MediaLimits,
    audio: MediaSource | None,
    want_video: bool,
    want_audio: bool,
    isolated: bool,
) -> Clip:
    """A Clip without what is not wanted; the very same one if all of it is."""
    if start is None and end is None and audio is None and want_video and want_audio:
        return clip
    duration, waveform = clip.duration, clip.waveform
    if audio is not None:
        sound = load_clip(audio, want_video=False, limits=limits, isolated=isolated)
        if sound.waveform is None:
            raise MediaError(f"{sound.source}: {NO_SOUND}")
        duration, waveform = max(duration, sound.duration), sound.waveform
    first, last = (0.0, duration) if clip.is_image else _span(clip.source, duration, start, end)
    frames, times, until = None, np.zeros(0), clip.picture_until()
    if want_video and clip.frames is not None and first <= until + HOLD:
        begin = int(clip.on_screen(np.array([first]))[0])
        kept = slice(begin, max(begin + 1, int(np.searchsorted(clip.frame_times, last))))
        frames, times = clip.frames[kept], np.maximum(clip.frame_times[kept] - first, 0.0)
    if waveform is not None:
        waveform = waveform[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
    return Clip(
        frames,
        times,
        waveform if want_audio and waveform is not None and len(waveform) else None,
        last - first,
        clip.source,
        clip.is_image and audio is None,
        max(0.0, until - first) if frames is not None else None,
        clip.clock_jumps,
    )
