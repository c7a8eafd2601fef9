"""Cuts a `Clip` into time windows: frames, a stretch of sound, and a time mark each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from mllm.experiment import TimeMarks
from mllm.media.clip import Clip
from mllm.media.recording import HOLD, SAMPLE_RATE, load_clip
from mllm.media.stills import resize

LEAST_SOUND = 0.1  # s of sound, below which a window has none
TAIL = 0.05  # of a window: a shorter remainder of the recording starts no new window


@dataclass(frozen=True)
class WindowSpec:
    """How recordings are cut.

    Attributes:
        window_seconds: length of a window, s.
        frames_per_window: pictures in each window.
        max_windows: longer recordings are covered by this many windows, spread evenly.
        image_size: pixels, height = width.
    """

    window_seconds: float
    frames_per_window: int
    max_windows: int
    image_size: int

    def starts(self, duration: float) -> list[float]:
        """Starts of the windows, s: the whole grid, or `max_windows` of it including first and last."""
        count = max(1, math.ceil(duration / self.window_seconds - TAIL))
        if count <= self.max_windows:
            picked: Sequence[int] = range(count)
        elif self.max_windows == 1:
            picked = [0]
        else:
            # In integers, so that no rounding picks a window twice.
            gaps = self.max_windows - 1
            picked = [(index * (count - 1) + gaps // 2) // gaps for index in range(self.max_windows)]
        return [index * self.window_seconds for index in picked]

    def frame_times(self, duration: float) -> np.ndarray:
        """Times of the pictures, s: float64 [windows, frames_per_window], spread evenly over each window."""
        starts = np.asarray(self.starts(duration), np.float64)[:, None]
        ends = np.minimum(starts + self.window_seconds, max(duration, 0.0))
        steps = (np.arange(self.frames_per_window) + 0.5) / self.frames_per_window
        times: np.ndarray = starts + steps * np.maximum(ends - starts, 0.0)
        return times


@dataclass
class Window:
    """One stretch of a recording.

    Attributes:
        start, end: s from the beginning of the recording (of the cut, where start/end were given).
        frames: uint8 [frames_per_window, height, width, 3], or None without a picture.
        waveform: float32 [samples] at 16 kHz mono, at most window_seconds long, or None without sound.
    """

    start: float
    end: float
    frames: np.ndarray | None
    waveform: np.ndarray | None


class WindowLayout(NamedTuple):
    """A window's part of a prompt: its start (s), for the time mark, and which sides have tokens."""

    start: float
    video: bool
    audio: bool


@dataclass(frozen=True)
class Seen:
    """What the model sees of a recording.

    Attributes:
        windows, frames: number of each.
        seconds: how much of the recording the windows cover.
        duration: length of the recording, s.
        has_video, has_audio: whether any window has a picture, or sound.
    """

    windows: int
    frames: int
    seconds: float
    duration: float
    has_video: bool
    has_audio: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For people: '3 windows, 12 frames, 6.0 of 6.0 s, picture and sound'."""
        kinds = {
            (True, True): "picture and sound",
            (True, False): "picture, no sound",
            (False, True): "sound, no picture",
            (False, False): "neither picture nor sound",
        }
        windows = f"{self.windows} window{'' if self.windows == 1 else 's'}"
        frames = f"{self.frames} frame{'' if self.frames == 1 else 's'}"
        span = f"{self.seconds:.1f} of {self.duration:.1f} s"
        return f"{windows}, {frames}, {span}, {kinds[self.has_video, self.has_audio]}"


def cut(clip: Clip, spec: WindowSpec) -> list[Window]:
    """Cuts a clip into windows with pictures and sound.

    A picture is the frame on screen at its time. A window has no picture (None) if the clip has none or its
    picture ended more than HOLD before the window; no sound if the waveform covers less than LEAST_SOUND of
    it. An image becomes one window of equal frames.
    """
    if clip.is_image and clip.frames is not None:
        frames = resize(clip.frames[:1], spec.image_size)
        return [Window(0.0, 0.0, np.repeat(frames, spec.frames_per_window, axis=0), None)]
    windows = []
    for start, times in zip(spec.starts(clip.duration), spec.frame_times(clip.duration), strict=True):
        end = max(start, min(start + spec.window_seconds, clip.duration))
        windows.append(Window(start, end, _pictures(clip, start, times, spec), _sound(clip, start, end)))
    return windows


def load_windows(source: Any, spec: WindowSpec, **options: Any) -> tuple[list[Window], Seen]:
    """Reads a recording and cuts it into windows; decodes only the frames that they need, at their size.

    Args:
        source, options: see `media.load_clip` (start, end, audio, limits, want_video, want_audio).

    Raises:
        MediaError: if the source cannot be read.
    """
    clip = load_clip(
        source, size=spec.image_size, choose=lambda duration: spec.frame_times(duration).ravel(), **options
    )
    windows = cut(clip, spec)
    return windows, Seen(
        windows=len(windows),
        frames=sum(len(window.frames) for window in windows if window.frames is not None),
        seconds=round(sum(window.end - window.start for window in windows), 3),
        duration=round(clip.duration, 3),
        has_video=any(window.frames is not None for window in windows),
        has_audio=any(window.waveform is not None for window in windows),
    )


def time_mark(seconds: float, form: TimeMarks = "clock") -> str:
    """'[mm:ss]', whose minutes go past 99, or in the form `seconds` '64s'; rounded down."""
    whole = int(max(seconds, 0.0) + 1e-6)
    if form == "seconds":
        return f"{whole}s"
    return f"[{whole // 60:02d}:{whole % 60:02d}]"


def _pictures(clip: Clip, start: float, times: np.ndarray, spec: WindowSpec) -> np.ndarray | None:
    if clip.frames is None or start > clip.picture_until() + HOLD:
        return None
    return resize(clip.frames[clip.on_screen(times)], spec.image_size)


def _sound(clip: Clip, start: float, end: float) -> np.ndarray | None:
    if clip.waveform is None:
        return None
    first, last = round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)
    piece = clip.waveform[first:last]
    # A clip shorter than LEAST_SOUND in all is heard whole.
    needed = min(LEAST_SOUND, clip.duration) * SAMPLE_RATE
    return piece if len(piece) and len(piece) >= int(needed) else None
