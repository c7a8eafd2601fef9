"""The engines under `recording`: frames by decord or PyAV, sound by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mllm.errors import MediaError
from mllm.media.clocks import Shifts
from mllm.media.scan import (
    LARGE_PICTURE,
    Picture,
    Scan,
    configure,
    decode,
    open_container,
    packets,
)
from mllm.media.sources import Source, clear_errors

try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
except (ImportError, OSError):  # no wheel for this platform: PyAV decodes everything
    decord = None

DECORD_CONTAINERS = {"mov", "matroska"}  # decord loses the timestamps of the rest
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}  # supported, with the same result as PyAV; not AV1
SAME_TIME = 2e-3  # s: decord's timestamps are float32
SOUND_SEEKABLE = {"mov", "matroska", "wav", "flac"}  # elsewhere the time after a seek is a guess
PREROLL = 1.0  # s decoded before a cut and dropped: codecs overlap their blocks
AT_ONCE = 8192  # samples per call of the resampler: a call per codec frame costs more than the resampling
BREAK = 0.05  # s: if timestamps jump by more, the sound is placed by its timestamp again
PACKED = "flt"  # interleaved channels: of planar sound, PyAV 18.1 reads past the eighth plane

# --- frames ---


class FrameReader:
    """Frames of one recording.

    Args:
        source, found: the recording and its scan, which has a picture.
        max_pixels: largest picture accepted.
    """

    def __init__(self, source: Source, found: Scan, max_pixels: int | None = None):
        assert found.picture is not None
        self.source, self.picture, self.max_pixels = source, found.picture, max_pixels
        self.by_decord = suits_decord(found)
        # decord's reader and its frame size; kept, since opening one reads every packet.
        self._reader: tuple[int | None, Any] | None = None

    def read(self, wanted: np.ndarray, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decodes frames at given positions, upright.

        Args:
            wanted: int64 [frames], positions in the picture's `times`, in any order.
            size: pixels, height = width; None keeps the recording's own.

        Returns:
            uint8 [frames, height, width, 3], and their actual positions, int64 [frames]: a damaged frame is
            replaced by the one before it.

        Raises:
            MediaError: if no frame can be decoded.
        """
        positions, back = np.unique(wanted, return_inverse=True)
        frames = self._decord_frames(positions, size) if self.by_decord else None
        if frames is None:
            self.by_decord, self._reader = False, None
            frames, positions = _pyav_frames(self.source, self.picture, positions, size, self.max_pixels)
        if np.array_equal(back, np.arange(len(frames))):
            return frames, positions
        return frames[back], positions[back]

    def close(self) -> None:
        self._reader = None

    def _decord_frames(self, positions: np.ndarray, size: int | None) -> np.ndarray | None:
        """uint8 [positions, height, width, 3]; None if decord fails or finds other frames."""
        picture = self.picture
        try:
            if self._reader is None or self._reader[0] != size:
                self._reader = size, _decord_reader(self.source, picture, size)
            batch = self._reader[1].get_batch(positions.tolist())
        except Exception:  # decord's errors share no base class; PyAV tries again
            return None
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # a bridge may be set
        height, width = (picture.height, picture.width) if size is None else (size, size)
        return frames if frames.shape == (len(positions), height, width, 3) else None


def suits_decord(found: Scan) -> bool:
    """Whether decord, which is faster but more fragile, reads this recording as PyAV does."""
    picture = found.picture
    return (
        decord is not None
        and picture is not None
        and found.container in DECORD_CONTAINERS
        and picture.codec in DECORD_CODECS
        and picture.depth == 8  # it converts deeper ones to other colours
        and picture.plain
        and picture.clock == "pts"
        and not picture.mirrored
    )


def _decord_reader(source: Source, picture: Picture, size: int | None) -> Any:
    """decord's reader. Raises ValueError if its frames do not match the packets."""
    shape = {} if size is None else {"width": size, "height": size}
    threads = 0 if picture.width * picture.height >= LARGE_PICTURE else 1
    reader = decord.VideoReader(source.handle(), num_threads=threads, **shape)
    if len(reader) != len(picture.times):
        raise ValueError
    stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if np.abs(stamps - stamps[0] - picture.times + picture.times[0]).max() > SAME_TIME:
        raise ValueError
    return reader


def _pyav_frames(
    source: Source, picture: Picture, positions: np.ndarray, size: int | None, max_pixels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    width, height = (picture.width, picture.height) if size is None else (size, size)
    frames = np.empty((len(positions), height, width, 3), np.uint8)
    real = np.empty(len(positions), np.int64)
    if picture.turns % 2:
        width, height = height, width
    reformatter = VideoReformatter()
    with clear_errors(source.name), open_container(source) as container:
        video = container.streams[picture.index]
        configure(video, max_pixels)
        walk = FrameWalk(source.name, container, video, picture)
        for place, position in enumerate(positions.tolist()):
            real[place], frame = walk.at(position)
            # decord uses bilinear, too: both give the same picture, within a level or so.
            frame = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR)
            upright = np.rot90(frame.to_ndarray(), -picture.turns)
            frames[place] = upright[:, ::-1] if picture.mirrored else upright
    return frames, real


class FrameWalk:
    """Frames of a track in ascending order, seeking to a keyframe if that saves decoding."""

    def __init__(self, name: str, container: Any, video: Any, picture: Picture):
        self.name, self.container, self.video, self.picture = name, container, video, picture
        self.may_jump = picture.clock is not None and not picture.shifts
        self.held: tuple[int, Any] | None = None  # the newest frame that is not after the wanted one
        self.ahead: tuple[int, Any] | None = None  # the first one after it, if already decoded
        self.decoded = self._decoded()

    def at(self, position: int) -> tuple[int, Any]:
        """(position, frame) at this position, or the nearest before it that is not damaged."""
        keys = self.picture.keys[self.picture.keys <= position]
        key = int(keys[-1]) if len(keys) else 0
        reached = max((item[0] for item in (self.held, self.ahead) if item), default=0)
        jumped = self.may_jump and key > reached
        if jumped:
            self._jump(key)
        while self.held is None or self.held[0] != position:
            self.ahead = self.ahead or next(self.decoded, None)
            if self.ahead is None or self.ahead[0] > position:
                break
            self.held, self.ahead = self.ahead, None
        if jumped and (self.held is None or self.held[0] < key):
            # The seek went too far, or the keyframe is damaged: decode from the start.
            self.may_jump, self.held = False, None
            self._jump(0)
            return self.at(position)
        frame = self.held or self.ahead
        if frame is None:
            raise MediaError(f"{self.name}: none of its frames can be decoded: copy it again, or convert it")
        return frame

    def _jump(self, key: int) -> None:
        self.container.seek(int(self.picture.pts[key]), stream=self.video)
        self.ahead, self.decoded = None, self._decoded()

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Yields (position, frame) from the container's current position."""
        count = -1
        for packet in chain(packets(self.container, [self.video], self.picture.shifts), [None]):
            for frame in decode(packet, self.video):
                stamp = getattr(frame, self.picture.clock) if self.picture.clock else None
                if stamp is not None:
                    count = int(np.searchsorted(self.picture.pts, stamp, "right")) - 1
                else:
                    count += 1
                yield max(count, 0), frame


# --- sound ---


def read_sound(source: Source, found: Scan, start: float, end: float, rate: int) -> np.ndarray | None:
    """Decodes the sound between start and end (s).

    Channels are averaged. Silence fills the time before the sound begins, and gaps between timestamps.

    Returns:
        float32 [samples] at `rate` Hz, up to the end of the sound; None if there is none in the cut.

    Raises:
        MediaError: if the sound cannot be decoded.
    """
    sound = found.sound
    if sound is None or min(end, sound.end) <= max(start, sound.start):
        return None
    samples = np.zeros(max(1, round((min(end, sound.end) - start) * rate)), np.float32)
    filled = 0
    with clear_errors(source.name), open_container(source) as container:
        audio = container.streams[sound.index]
        if start > 2 * PREROLL and found.container in SOUND_SEEKABLE:
            container.seek(int((found.origin + start - PREROLL) / audio.time_base), stream=audio)
        for time, piece in _pieces(container, audio, rate, sound.shifts):
            first = round((time - found.origin - start) * rate)
            if first >= len(samples):
                break
            last = min(first + len(piece), len(samples))
            if last > max(first, 0):
                samples[max(first, 0) : last] = piece[max(-first, 0) : last - first]
                filled = max(filled, last)
    if not filled:
        raise MediaError(
            f"{source.name}: its sound ({sound.codec}) cannot be decoded: convert it, or leave it out"
        )
    samples = samples[:filled]
    samples[np.isnan(samples)] = 0.0  # a damaged file of floating-point samples may hold anything
    return np.clip(samples, -1.0, 1.0, out=samples)


def interleaved(frame: Any) -> np.ndarray:
    """A frame's samples, float32 [samples, channels], at its own rate."""
    if frame.format.name == PACKED:
        return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    packed = av.AudioResampler(PACKED, frame.layout, frame.sample_rate).resample(frame)
    return np.concatenate([interleaved(part) for part in packed])


def _pieces(container: Any, audio: Any, rate: int, moves: Shifts) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in s, mono samples at `rate`) in order."""
    resampler: Any = None
    form, begun, given, expected = None, 0.0, 0, 0.0

    def mono(frame: Any) -> Iterator[tuple[float, np.ndarray]]:
        nonlocal given
        for resampled in resampler.resample(frame):
            channels = interleaved(resampled)
            piece = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
            yield begun + given / rate, piece
            given += len(piece)

    for packet in chain(packets(container, [audio], moves), [None]):
        for frame in decode(packet, audio):
            time = expected if frame.time is None else frame.time
            if (
                form != (frame.format.name, frame.layout.name, frame.sample_rate)
                or abs(time - expected) > BREAK
            ):
                if resampler is not None:
                    yield from mono(None)
                # Keeps the layout: FFmpeg's own downmix to floats would be louder than the average.
                resampler = av.AudioResampler(PACKED, frame.layout, rate, AT_ONCE)
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                begun, given, expected = time, 0, time
            expected += frame.samples / frame.sample_rate
            yield from mono(frame)
    if resampler is not None:
        yield from mono(None)
