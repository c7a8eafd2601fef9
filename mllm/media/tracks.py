"""The two kinds of source: a file with tracks, or still pictures. Private to `recording`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mllm.errors import MediaError
from mllm.files import open_ordinary
from mllm.media import decode
from mllm.media.clip import MediaInfo
from mllm.media.scan import cannot_decode, scan
from mllm.media.sources import MediaLimits, Source, check_bytes, clear_errors, locate
from mllm.media.stills import Stills, open_image, read_folder, read_stills

NO_SOUND = "no sound in it: give a sound file such as wav or flac as `audio`"


class FileTracks:
    """A file or bytes with video, sound or both."""

    is_image = False

    def __init__(self, source: Source, limits: MediaLimits):
        self.source, self.name = source, source.name
        self._state = _state(source)
        self.found = scan(source, limits.max_pixels)
        self.duration = self.found.duration
        picture = self.found.picture
        self.times = picture.times if picture else np.zeros(0)
        self.picture_end = picture.end if picture else 0.0
        self._frames = decode.FrameReader(source, self.found, limits.max_pixels) if picture else None
        tracks = [track for track in (picture, self.found.sound) if track is not None]
        self.clock_jumps = max((len(track.shifts) for track in tracks), default=0)

    def require_picture(self) -> None:
        """Raises MediaError if its picture cannot be decoded."""
        if self.found.undecodable:
            raise MediaError(cannot_decode(self.name, self.found.undecodable))

    def read_frames(self, wanted: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
        assert self._frames is not None
        with self._unchanged():
            return self._frames.read(wanted, size)

    def read_sound(self, start: float, end: float, rate: int) -> np.ndarray | None:
        with self._unchanged():
            return decode.read_sound(self.source, self.found, start, end, rate)

    def info(self) -> MediaInfo:
        self.require_picture()
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
            fps=rate_of(picture.times, picture.end) if picture else None,
            clock_jumps=self.clock_jumps,
        )

    def digest(self) -> str:
        with self._unchanged():
            return _digest(self.source)

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Raises MediaError if the file has changed since it was scanned."""
        try:
            yield
        except MediaError:
            self._require_unchanged()
            raise
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        if _state(self.source) != self._state:
            raise MediaError(f"{self.name}: it changed while it was read: read it again once it is whole")


class StillTracks:
    """An image, an animation, or a folder of frames with its sound; frames are checked when they are read."""

    clock_jumps = 0

    def __init__(self, source: Source, stills: Stills, sound: FileTracks | None = None):
        self.source, self.name, self.stills, self.sound = source, source.name, stills, sound
        self.is_image = stills.end == 0.0
        self.times, self.picture_end = stills.times, stills.end
        self.duration = max(stills.end, sound.duration if sound else 0.0)

    def require_picture(self) -> None: ...

    def close(self) -> None: ...

    def read_frames(self, wanted: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
        positions, back = np.unique(wanted, return_inverse=True)
        return self.stills.read(positions, size)[back], wanted

    def read_sound(self, start: float, end: float, rate: int) -> np.ndarray | None:
        return self.sound.read_sound(start, end, rate) if self.sound else None

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
            fps=None if self.is_image else rate_of(self.times, self.picture_end),
        )

    def digest(self) -> str:
        if not self.source.path.is_dir():
            return _digest(self.source)
        files = [*self.stills.files, *([self.sound.source] if self.sound else [])]
        listed = [f"{file.path.name} {_digest(file)}" for file in files]
        return hashlib.sha256(
            "\n".join([*listed, repr(self.picture_end)]).encode(errors="replace")
        ).hexdigest()


Tracks: TypeAlias = FileTracks | StillTracks


def open_tracks(source: object, limits: MediaLimits) -> Tracks:
    """Scans a source: a path, bytes, a `data:` URI or a folder of frames.

    Raises:
        MediaError: if it cannot be read, or exceeds a limit.
    """
    place = locate(source, limits)
    if place.path.is_dir():
        stills, path = read_folder(place.path, place.name, limits.max_pixels)
        check_bytes(place.name, sum(file.size() for file in stills.files), limits)
        return StillTracks(place, stills, open_sound(path, limits) if path else None)
    image = open_image(place, limits.max_pixels)
    if image is not None:
        return StillTracks(place, read_stills(place, image, limits.max_pixels, limits.max_frame_bytes))
    return FileTracks(place, limits)


def open_sound(source: str | Path | object, limits: MediaLimits) -> FileTracks:
    """Scans a recording of which only the sound is used.

    Raises:
        MediaError: as `open_tracks` does, or if there is no sound.
    """
    found = open_tracks(source, limits)
    if not isinstance(found, FileTracks) or found.found.sound is None:
        raise MediaError(f"{found.name}: {NO_SOUND}")
    return found


def rate_of(times: np.ndarray, end: float) -> float | None:
    """Frames per second on average, from the first frame to the end of the last."""
    return len(times) / (end - float(times[0])) if len(times) and end > times[0] else None


def _state(source: Source) -> tuple[int, ...] | None:
    """A state that changes when a file is written or replaced."""
    try:
        found = source.path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(source: Source) -> str:
    """sha256, hex, of a file's bytes."""
    with clear_errors(source.name), open_ordinary(source.handle(), source.name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
