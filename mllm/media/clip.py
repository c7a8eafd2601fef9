"""What every reader of recordings gives: `Recording`, its `MediaInfo`, and the `Clip` that is in memory."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np

from mllm.errors import MediaError

_log = logging.getLogger(__name__)

ON_TIME = 1e-6  # s: a frame that appears this much later counts as on screen


@dataclass(frozen=True)
class MediaInfo:
    """A description of a source.

    Attributes:
        duration: s; 0 for an image.
        has_video: whether there is a picture, moving or still; album art does not count.
        has_audio: whether there is sound.
        is_image: a single still picture.
        width, height: pixels, upright; 0 without a picture.
        rotation: degrees clockwise (0, 90, 180, 270) by which the stored picture is turned.
        video_codec, audio_codec: names used by FFmpeg (or Pillow); None if missing.
        fps: frames per second on average; None for an image or without a picture.
        clock_jumps: how often the container's clock jumps by seconds or more; such gaps are closed.
    """

    duration: float
    has_video: bool
    has_audio: bool
    is_image: bool = False
    width: int = 0
    height: int = 0
    rotation: int = 0
    video_codec: str | None = None
    audio_codec: str | None = None
    fps: float | None = None
    clock_jumps: int = 0


@dataclass
class Clip:
    """A recording in memory.

    Attributes:
        frames: uint8 [frames, height, width, 3], upright RGB; None without a picture.
        frame_times: float64 [frames] s, ascending, when each frame appears.
        waveform: float32 [samples], 16 kHz mono, from time 0; None without sound.
        duration: s.
        source: its name in messages.
        is_image: a single still picture.
        picture_end: s, when the last frame leaves the screen; None if it lasts as long as frames on average.
        clock_jumps: see `MediaInfo`.

    Raises:
        MediaError: if the arrays have other shapes or types.
    """

    frames: np.ndarray | None
    frame_times: np.ndarray
    waveform: np.ndarray | None
    duration: float
    source: str
    is_image: bool = False
    picture_end: float | None = field(default=None, repr=False)
    clock_jumps: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.frame_times = np.asarray(self.frame_times, np.float64)
        if self.frames is not None:
            shape = np.shape(self.frames)
            if len(shape) != 4 or shape[3] != 3 or self.frames.dtype != np.uint8:
                raise MediaError(
                    f"{self.source}: frames must be uint8 [frames, height, width, 3], not {shape}"
                )
            if not shape[0] or self.frame_times.shape != shape[:1]:
                times = self.frame_times.shape
                raise MediaError(f"{self.source}: {shape[0]} frames need as many frame_times, not {times}")
        if self.waveform is not None:
            form = f"{self.waveform.dtype} {self.waveform.shape}"
            if self.waveform.ndim != 1 or self.waveform.dtype.kind != "f":
                raise MediaError(f"{self.source}: the waveform must be mono float32 [samples], not {form}")
            self.waveform = self.waveform.astype(np.float32, copy=False)

    def on_screen(self, times: np.ndarray) -> np.ndarray:
        """int64, the frame on screen at each time (s): the last that has appeared, or else the first."""
        return on_screen(self.frame_times, times)

    def picture_until(self) -> float:
        """When the last frame leaves the screen, s."""
        if self.picture_end is not None or self.frames is None:
            return self.picture_end or 0.0
        count = len(self.frame_times)
        if count == 1:  # a still shown as long as the sound lasts
            return max(self.duration, float(self.frame_times[0]))
        return float(self.frame_times[-1] + (self.frame_times[-1] - self.frame_times[0]) / (count - 1))

    def digest(self) -> str:
        """sha256, hex, of everything that a model may see or hear."""
        shape = None if self.frames is None else self.frames.shape
        digest = hashlib.sha256(f"{shape} {self.duration!r} {self.is_image} {self.picture_end!r}".encode())
        for part in (self.frames, self.frame_times, self.waveform):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).data)
        return digest.hexdigest()


def on_screen(appear: np.ndarray, times: np.ndarray) -> np.ndarray:
    """int64, the frame on screen at each time (s), given when frames appear (s, ascending)."""
    return np.maximum(np.searchsorted(appear, times + ON_TIME, "right") - 1, 0)


Choose: TypeAlias = Callable[[float], np.ndarray]


class Recording(ABC):
    """An open recording: scanned once, read as often as needed, by one thread at a time.

    Attributes:
        name: its name in messages.
    """

    name: str

    @cached_property
    @abstractmethod
    def info(self) -> MediaInfo:
        """Duration, tracks and size."""

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """sha256, hex, of its bytes (or a `Clip`'s arrays) and those of its separate sound."""

    @abstractmethod
    def clip(
        self,
        start: float | None = None,
        end: float | None = None,
        size: int | None = None,
        choose: Choose | None = None,
        want_video: bool = True,
        want_audio: bool = True,
    ) -> Clip:
        """Decodes the whole recording or a part of it.

        Args:
            start, end: s; times in the result, and the duration given to `choose`, count from start.
            size: pixels; frames are squashed to size×size. None keeps their size, as a Clip always does.
            choose: maps the duration (s) to ascending times (s); the frame on screen at each is returned.
                None returns every frame once. Only what is needed is decoded.
            want_video, want_audio: set one to False to skip it.

        Raises:
            MediaError: with source, cause and remedy, if it cannot be read, exceeds a limit, ends before
                start or has changed since it was opened.
        """

    def begin(self) -> None:  # noqa: B027 (most are open once constructed)
        """Opens it now, if it would otherwise be opened on first use."""

    def close(self) -> None:  # noqa: B027 (most have nothing to release)
        """Releases its decoders."""


@lru_cache(maxsize=1000)  # warns once, however many pieces are read
def warn_of_jumps(name: str, jumps: int) -> None:
    if jumps:
        times = "once" if jumps == 1 else f"{jumps} times"
        _log.warning(
            "%s: its clock jumps %s: such gaps are closed, a player may show other times", name, times
        )
