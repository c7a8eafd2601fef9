"""Recordings in, `Clip`s out: the only decoder of the project.

    clip = load_clip("holiday.mp4", size=224, choose=lambda seconds: np.linspace(0, seconds, 32))

    with open_recording("lecture.mkv") as recording:  # scanned once, however many clips are read
        for start in range(0, int(recording.info.duration), 60):
            clip = recording.clip(size=224, start=start, end=start + 60)

A source is a path, bytes, a `data:` URI, a folder of frames (png or jpg in the order of their names, with at
most one sound file, and `fps.txt` where the rate is not 3), or a `Clip`. PyAV probes; decord decodes the
frames at the requested size, PyAV where decord cannot (AV1, AVI, open GOPs, deep colours, damage, no wheel);
PyAV decodes the sound. Unreadable media raise a MediaError of one line. Decoders are large and can be
crashed, so untrusted media are read with `isolated=True`, in an expendable process (`decode_pool`).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Choose, Clip, MediaInfo, Recording, on_screen, warn_of_jumps
from mllm.media.sources import MediaLimits, Source, check_frame_bytes, locate
from mllm.media.tracks import NO_SOUND, open_sound, open_tracks, rate_of

SAMPLE_RATE = 16_000
HOLD = 0.5  # s: how long the last frame stands in for a picture that ends before the sound

_log = logging.getLogger(__name__)

MediaSource: TypeAlias = "str | Path | bytes | bytearray | memoryview | Source | Clip | Recording"


@contextmanager
def open_recording(
    source: MediaSource,
    limits: MediaLimits = MediaLimits(),
    *,
    audio: MediaSource | None = None,
    isolated: bool = False,
) -> Iterator[Recording]:
    """Opens and scans a recording, to be read in one piece or in many.

    Args:
        source: path, bytes, `data:` URI, folder of frames, Clip, or an open recording, which stays open.
        limits: upper bounds on size, length and decoding cost.
        audio: a separate recording of the sound, starting at the same moment; replaces the source's own.
        isolated: decode untrusted media in a worker process, so that a crash, a hang or a decompression bomb
            raises a MediaError, too. The arrays are the same, and writable.

    Raises:
        MediaError: if it cannot be read or exceeds a limit.
    """
    with _opening(source, limits, audio, isolated) as recording:
        recording.begin()
        yield recording


@contextmanager
def _opening(
    source: MediaSource, limits: MediaLimits, audio: MediaSource | None, isolated: bool
) -> Iterator[Recording]:
    """Like `open_recording`, but a worker opens it with the first request, which saves a round trip."""
    if isinstance(audio, Clip):
        problem = "a Clip cannot be the sound of another: give a path or bytes as `audio`"
        raise MediaError(f"{audio.source}: {problem}")
    recording: Recording
    if isinstance(source, Recording):
        if audio is not None:
            raise MediaError(f"{source.name}: it is open already: give `audio` where it is opened")
        yield source
        return
    if isinstance(source, Clip):
        recording = _InMemory(source, limits, audio, isolated)
    elif isolated:
        from mllm.media.decode_pool import shared_pool  # needed for strangers' recordings alone

        sound = None if audio is None else locate(audio, limits)
        recording = shared_pool().open(locate(source, limits), sound, limits)
    else:
        recording = Decoding(source, limits, audio)
    with closing(recording):
        yield recording


def load_clip(
    source: MediaSource,
    *,
    size: int | None = None,
    choose: Choose | None = None,
    start: float | None = None,
    end: float | None = None,
    limits: MediaLimits = MediaLimits(),
    audio: MediaSource | None = None,
    want_video: bool = True,
    want_audio: bool = True,
    isolated: bool = False,
) -> Clip:
    """Opens a recording and reads one clip of it: see `open_recording` and `Recording.clip`.

    Raises:
        MediaError: with source, cause and remedy, if it cannot be read, exceeds a limit or ends before start.
    """
    with _opening(source, limits, audio, isolated) as recording:
        return recording.clip(start, end, size, choose, want_video, want_audio)


def probe(source: MediaSource, limits: MediaLimits = MediaLimits(), *, isolated: bool = False) -> MediaInfo:
    """Describes a source without decoding it.

    Raises:
        MediaError: as `open_recording` does.
    """
    with _opening(source, limits, None, isolated) as recording:
        return recording.info


class Decoding(Recording):
    """A recording that this process decodes."""

    def __init__(self, source: MediaSource, limits: MediaLimits, audio: MediaSource | None):
        self._limits = limits
        self._media = open_tracks(source, limits)
        self._sound = self._media if audio is None else open_sound(audio, limits)
        self.name = self._media.name
        self._duration = max(self._media.duration, self._sound.duration)
        self._is_image = self._media.is_image and audio is None

    @cached_property
    def info(self) -> MediaInfo:
        info = self._media.info()
        if self._sound is self._media:
            return info
        codec = self._sound.info().audio_codec
        return replace(
            info, duration=self._duration, is_image=self._is_image, has_audio=True, audio_codec=codec
        )

    @cached_property
    def digest(self) -> str:
        if self._sound is self._media:
            return self._media.digest()
        return _joined(self._media.digest(), self._sound.digest())

    def clip(
        self,
        start: float | None = None,
        end: float | None = None,
        size: int | None = None,
        choose: Choose | None = None,
        want_video: bool = True,
        want_audio: bool = True,
    ) -> Clip:
        media = self._media
        if want_video:
            media.require_picture()
        first, last = (0.0, 0.0) if self._is_image else _span(self.name, self._duration, start, end)
        most = self._limits.max_seconds
        if most is not None and last - first > most:
            allowed = f"more than the limit of {most:g} s"
            raise MediaError(f"{self.name}: {last - first:.1f} s is {allowed}: cut it, or give start and end")
        frames, times, picture_end = None, np.zeros(0), None
        wanted = self._wanted(first, last, choose) if want_video else np.zeros(0, np.int64)
        if len(wanted):
            info = media.info()
            height, width = size or info.height, size or info.width
            check_frame_bytes(self.name, len(wanted), width, height, self._limits.max_frame_bytes)
            frames, real = media.read_frames(wanted, size)
            times = np.maximum(media.times[real] - first, 0.0)
            picture_end = max(0.0, self._picture_until() - first)
        waveform = self._sound.read_sound(first, last, SAMPLE_RATE) if want_audio else None
        warn_of_jumps(self.name, media.clock_jumps)
        return Clip(
            frames, times, waveform, last - first, self.name, self._is_image, picture_end, media.clock_jumps
        )

    def close(self) -> None:
        self._media.close()

    def _picture_until(self) -> float:
        """When the picture ends, s; a single frame lasts as long as the sound."""
        return self._duration if len(self._media.times) == 1 else self._media.picture_end

    def _wanted(self, first: float, last: float, choose: Choose | None) -> np.ndarray:
        """int64, positions of the frames needed between `first` and `last` (s)."""
        times = self._media.times
        if not len(times) or first > self._picture_until() + HOLD:
            return np.zeros(0, np.int64)
        if choose is not None and not self._is_image:
            return on_screen(times, np.asarray(choose(last - first), np.float64).ravel() + first)
        begin = int(on_screen(times, np.array([first]))[0])
        return np.arange(begin, max(begin + 1, np.searchsorted(times, last)))


class _InMemory(Recording):
    """A Clip; its separate sound, if any, is read at once."""

    def __init__(self, clip: Clip, limits: MediaLimits, audio: MediaSource | None, isolated: bool):
        self.name, self._clip = clip.source, clip
        self._limits, self._audio, self._isolated = limits, audio, isolated

    @cached_property
    def _whole(self) -> Clip:
        """The clip, with the separate sound in place of its own."""
        clip = self._clip
        if self._audio is None:
            return clip
        with open_recording(self._audio, self._limits, isolated=self._isolated) as recording:
            sound = recording.clip(want_video=False)
        if sound.waveform is None:
            raise MediaError(f"{sound.source}: {NO_SOUND}")
        return replace(
            clip,
            waveform=sound.waveform,
            duration=max(clip.duration, sound.duration),
            is_image=False,
            picture_end=None if clip.frames is None else clip.picture_until(),
        )

    @cached_property
    def info(self) -> MediaInfo:
        clip = self._whole
        height, width = (0, 0) if clip.frames is None else clip.frames.shape[1:3]
        moves = clip.frames is not None and not clip.is_image
        return MediaInfo(
            clip.duration,
            clip.frames is not None,
            clip.waveform is not None,
            clip.is_image,
            width,
            height,
            fps=rate_of(clip.frame_times, clip.picture_until()) if moves else None,
            clock_jumps=clip.clock_jumps,
        )

    @cached_property
    def digest(self) -> str:
        return self._whole.digest()

    def clip(
        self,
        start: float | None = None,
        end: float | None = None,
        size: int | None = None,
        choose: Choose | None = None,
        want_video: bool = True,
        want_audio: bool = True,
    ) -> Clip:
        """The Clip itself, or a cut of it without what is not wanted; frames keep their size."""
        clip = self._whole
        if start is None and end is None and want_video and want_audio:
            return clip
        first, last = (0.0, clip.duration) if clip.is_image else _span(self.name, clip.duration, start, end)
        frames, times, until = None, np.zeros(0), clip.picture_until()
        if want_video and clip.frames is not None and first <= until + HOLD:
            begin = int(clip.on_screen(np.array([first]))[0])
            kept = slice(begin, max(begin + 1, int(np.searchsorted(clip.frame_times, last))))
            frames, times = clip.frames[kept], np.maximum(clip.frame_times[kept] - first, 0.0)
        waveform = clip.waveform if want_audio else None
        if waveform is not None:
            waveform = waveform[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
        return replace(
            clip,
            frames=frames,
            frame_times=times,
            waveform=waveform if waveform is not None and len(waveform) else None,
            duration=last - first,
            picture_end=max(0.0, until - first) if frames is not None else None,
        )


def _joined(*digests: str) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _span(name: str, duration: float, start: float | None, end: float | None) -> tuple[float, float]:
    """Start and end, s, clipped to the recording."""
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
