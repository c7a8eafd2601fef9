"""One pass over a recording's packets: its tracks and their timestamps. The lower half of `recording`.

Times are seconds from the start of the recording, the earlier of its first frame and its first sound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from mllm.errors import MediaError
from mllm.media.clocks import JUMPING, Shifts, Stamp, moved, moved_by, shifts
from mllm.media.encryption import is_encrypted
from mllm.media.sources import Source, check_pixels, clear_errors

# The formats that FFmpeg may open. The others are no recordings: playlists that refer to further files or
# hosts, screen capture, text that would be rendered as video.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,av1,ivf,ogg,nut,mxf,"
    "dv,rm,mjpeg,yuv4mpegpipe,wav,w64,aiff,au,caf,mp3,aac,ac3,eac3,dts,flac,amr,amrnb,amrwb,tta,wv,ape,voc"
)
PADDING = 0.1  # s: more than any encoder needs to fill its last block
LARGE_PICTURE = 1_000_000  # pixels, from which threads gain more than they cost


@dataclass(frozen=True)
class Picture:
    """A video track.

    Attributes:
        index: stream index in the container.
        pts: int64 [frames], presentation timestamps in the stream's time base, ascending.
        times: float64 [frames] s, when each frame appears.
        keys: int64, positions in `pts` at which decoding can begin.
        end: s, when the last frame leaves the screen.
        clock: the attribute of a decoded frame that matches `pts`, "pts" or "dts"; None if frames can only
            be counted.
        plain: free of everything that decord and PyAV treat differently: damage, an edit list, frames that
            refer across a keyframe, a second video stream.
        turns, mirrored: quarter turns clockwise, then a left-right flip, that put the picture upright.
        width, height: pixels, upright.
        codec: FFmpeg's name of the format.
        depth: bits per colour.
        shifts: see `clocks`; empty if the clock never jumps.
    """

    index: int
    pts: np.ndarray
    times: np.ndarray
    keys: np.ndarray
    end: float
    clock: str | None
    plain: bool
    turns: int
    mirrored: bool
    width: int
    height: int
    codec: str
    depth: int
    shifts: Shifts = ()


@dataclass(frozen=True)
class Sound:
    """A sound track: stream index, start and end (s), codec, and the jumps of its clock (see `clocks`)."""

    index: int
    start: float
    end: float
    codec: str
    shifts: Shifts = ()


@dataclass(frozen=True)
class Scan:
    """The result of `scan`.

    Attributes:
        container: FFmpeg's name of the format.
        origin: start of the recording on the container's clock, s.
        duration: s.
        undecodable: codec of a video track that cannot be decoded, in which case `picture` is None.
    """

    container: str
    origin: float
    duration: float
    picture: Picture | None
    sound: Sound | None
    undecodable: str | None = None


@contextmanager
def open_container(source: Source) -> Iterator[Any]:
    """Opens a PyAV container, of recordings only."""
    try:
        container = av.open(
            source.handle(), options={"format_whitelist": CONTAINERS}, metadata_errors="replace"
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{source.name}: {_why_unreadable(source.head(), error)}") from None
    with container:
        yield container


def _why_unreadable(head: bytes, error: Exception) -> str:
    if not head.strip(b"\0"):
        return "it begins with nothing but zeros: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`"
    if head[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a recording: download the file that the page shows"
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing or damaged, so the file is incomplete: copy or download it again"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF of a kind that is not read (colours that are fractions, perhaps): convert it to png"
    if b"\0" not in head:
        try:
            head.decode()
            return "it is text, not a recording: give a video, sound or image file"
        except UnicodeDecodeError as problem:
            if problem.start > len(head) - 4 and len(head) > 4:  # a character cut in two
                return "it is text, not a recording: give a video, sound or image file"
    cause = getattr(error, "strerror", None) or str(error)
    return f"not a recording that can be read ({cause}): give a video, sound or image file such as mp4 or png"


def scan(source: Source, max_pixels: int | None = None) -> Scan:
    """Reads the timestamps of all packets, and decodes one frame to make sure that it is possible.

    Headers give a wrong duration (truncated files) or none (streamed WebM); packets do not.

    Args:
        source: a file or bytes.
        max_pixels: largest picture accepted.

    Raises:
        MediaError: if there is nothing to see or hear, or a picture is larger than max_pixels.
    """
    with clear_errors(source.name), open_container(source) as container:
        video, audio = _streams(container)
        if video is not None:
            check_pixels(source.name, video.codec_context.width, video.codec_context.height, max_pixels)
            configure(video, max_pixels)
        form = container.format.name.split(",")[0]
        if is_encrypted(source, form):
            raise MediaError(f"{source.name}: it is encrypted (DRM): give a copy without copy protection")
        shown, heard, first, faults = _read(container, video, audio)
        shown_moves: Shifts = ()
        heard_moves: Shifts = ()
        if form in JUMPING:
            both = [
                (stamps, stream.time_base) for stamps, stream in ((shown, video), (heard, audio)) if stamps
            ]
            found = shifts(both)
            shown_moves, heard_moves = found.pop(0) if shown else (), found.pop() if heard else ()
            shown, heard = moved(shown, shown_moves), moved(heard, heard_moves)
        undecodable = None
        if shown and first is None:
            undecodable = video.codec_context.codec.canonical_name
            if not heard:
                raise MediaError(cannot_decode(source.name, undecodable))
            shown = []
        # Unlike the packets, start_time excludes the encoder's priming samples.
        primed = heard and audio.start_time is not None
        begins = [float((audio.start_time if primed else heard[0].time) * audio.time_base)] if heard else []
        if shown:
            check_pixels(source.name, first.width, first.height, max_pixels)
            begins.append(float(min(stamp.time for stamp in shown) * video.time_base))
        if not begins:
            kinds = " and ".join(sorted({stream.type for stream in container.streams}))
            cause = f"its streams ({kinds}) hold nothing to see or hear" if kinds else "it has no streams"
            raise MediaError(f"{source.name}: {cause}: copy or download it again")
        origin = min(begins)
        picture = _picture(video, form, shown, origin, first, faults, shown_moves) if shown else None
        sound = _sound(audio, heard, begins[0], origin, heard_moves) if heard else None
        duration = max(picture.end if picture else 0.0, sound.end if sound else 0.0)
        return Scan(form, origin, duration, picture, sound, undecodable)


def cannot_decode(name: str, codec: str) -> str:
    cause = f"{name}: its picture ({codec}) cannot be decoded"
    return f"{cause}: copy it again if it is damaged, or convert it to mp4"


def _read(container: Any, video: Any, audio: Any) -> tuple[list[Stamp], list[Stamp], Any, set[str]]:
    """Stamps of video and audio packets in file order, the first frame, and what is unusual."""
    shown: list[Stamp] = []
    heard: list[Stamp] = []
    first, faults, numbered = None, set(), container.format.name == "avi"
    counts: Counter[int] = Counter()
    streams = [stream for stream in (video, audio) if stream is not None]
    for place, packet in enumerate(packets(container, streams)):
        time = packet.pts if packet.pts is not None else packet.dts
        decoded = packet.dts if packet.dts is not None else time
        number = counts[packet.stream_index]
        counts[packet.stream_index] += 1
        if video is None or packet.stream_index != video.index:
            if time is not None and not packet.is_discard:
                heard.append(Stamp(time, True, packet.duration or 0, number, decoded, place))
            continue
        first = first or _first_frame(packet, video)
        faults |= {name for name in ("is_corrupt", "is_discard") if getattr(packet, name)}
        faults |= {"unstamped"} if packet.pts is None else set()
        if not packet.is_discard:
            # AVI numbers its frames; FFmpeg derives a pts that is wrong where frames are reordered.
            time = packet.dts if numbered else time
            shown.append(Stamp(time, packet.is_keyframe, packet.duration or 0, number, decoded, place))
    if shown:
        first = first or _first_frame(None, video)
    if any(stamp.time is None for stamp in shown):
        # A raw stream with few timestamps or none: its frames follow each other at the nominal rate.
        step = _step(video)
        known = ((stamp.time, place) for place, stamp in enumerate(shown) if stamp.time is not None)
        time, place = next(known, (0, 0))
        begin = time - place * step
        shown = [
            stamp._replace(time=begin + place * step, duration=step, decoded=begin + place * step)
            for place, stamp in enumerate(shown)
        ]
    return shown, heard, first, faults


def _streams(container: Any) -> tuple[Any, Any]:
    """The video and audio streams to use; album art does not count, nor does a codec without a decoder."""
    usable = [stream for stream in container.streams if stream.codec_context is not None]
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    chosen = {}
    for kind in ("video", "audio"):
        candidates = [stream for stream in usable if stream.type == kind and not stream.disposition & stills]
        best = container.streams.best(kind)
        chosen[kind] = next((stream for stream in candidates if best and stream.index == best.index), None)
        if candidates and chosen[kind] is None:
            chosen[kind] = candidates[0]
    return chosen["video"], chosen["audio"]


def configure(video: Any, max_pixels: int | None) -> None:
    large = video.codec_context.width * video.codec_context.height >= LARGE_PICTURE
    video.thread_type = "AUTO" if large else "NONE"
    video.codec_context.thread_count = 0 if large else 1
    if max_pixels is not None:  # pictures may turn out larger than the header says
        video.codec_context.options = {"max_pixels": str(max_pixels)}


def packets(container: Any, streams: list[Any], moves: Shifts = ()) -> Iterator[Any]:
    """Packets up to the end, or to damage that cannot be skipped.

    Args:
        moves: shifts of the stream, if a single one is read from its start.
    """
    try:
        if streams:
            whole = (packet for packet in container.demux(streams) if packet.size)
            for number, packet in enumerate(whole):
                if moves and (ticks := moved_by(moves, number)):
                    packet.pts = None if packet.pts is None else packet.pts + ticks
                    packet.dts = None if packet.dts is None else packet.dts + ticks
                yield packet
    except av.error.FFmpegError:
        return


def decode(packet: Any, stream: Any) -> list[Any]:
    """The frames that a packet completes (None flushes the decoder); none if it is damaged."""
    try:
        return list(packet.decode() if packet is not None else stream.codec_context.decode(None))
    except (av.error.FFmpegError, ValueError):
        return []


def _first_frame(packet: Any, video: Any) -> Any:
    return next(iter(decode(packet, video)), None)


def _step(video: Any) -> int:
    """Nominal time between frames, in the stream's time base."""
    rate = video.average_rate or video.guessed_rate or Fraction(25)
    step: int = round(1 / rate / video.time_base)
    return max(1, step)


def _picture(
    video: Any, form: str, shown: list[Stamp], origin: float, first: Any, faults: set[str], moves: Shifts
) -> Picture:
    coded = np.array([stamp.time for stamp in shown], np.int64)  # in file order
    is_key = np.array([stamp.key for stamp in shown])
    order = np.argsort(coded, kind="stable")
    pts = coded[order]
    times = pts * float(video.time_base) - origin
    unique = bool((np.diff(pts) > 0).all())
    clock: str | None = "pts"
    if form == "avi":
        clock = None if video.codec_context.has_b_frames else "dts"
    if not unique or "unstamped" in faults:
        clock = None
    newest_key = np.maximum.accumulate(np.where(is_key, coded, coded.min()))
    crossing = bool((coded < newest_key).any())  # decord misses frames after seeking in such a stream
    missing = video.frames not in (0, len(pts))  # the header of a truncated file promises more
    alone = len(video.container.streams.video) == 1
    gap = float(np.median(np.diff(times))) if len(times) > 1 else float(_step(video) * video.time_base)
    lasts = float(shown[order[-1]].duration * video.time_base)
    turns, mirrored = _orientation(first)
    return Picture(
        index=video.index,
        pts=pts,
        times=times,
        keys=np.flatnonzero(is_key[order]),
        end=float(times[-1]) + (lasts if lasts > 0 else gap),
        clock=clock,
        plain=unique and alone and not (faults or crossing or missing),
        turns=turns,
        mirrored=mirrored,
        width=first.height if turns % 2 else first.width,
        height=first.width if turns % 2 else first.height,
        codec=video.codec_context.codec.canonical_name,
        depth=max((part.bits for part in first.format.components), default=8),
        shifts=moves,
    )


def _orientation(frame: Any) -> tuple[int, bool]:
    """Quarter turns clockwise, and whether to mirror left-right afterwards, from the display matrix."""
    matrices = [np.frombuffer(data, "<i4") for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not matrices:
        return 0, False
    a, b, c, d = (int(matrices[0][place]) for place in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    # The matrix takes (1, 0) to (a, b), and y points down: a positive angle turns clockwise.
    return round(np.degrees(np.arctan2(b, -a if mirrored else a)) / 90.0) % 4, mirrored


def _sound(audio: Any, heard: list[Stamp], begin: float, origin: float, moves: Shifts) -> Sound:
    end = float(max(stamp.time + stamp.duration for stamp in heard) * audio.time_base)
    if audio.duration is not None:
        # Excludes the encoder's padding. If it is far off, it is an estimate, or the file is truncated.
        promised = begin + float(audio.duration * audio.time_base)
        end = promised if 0 < end - promised < PADDING else end
    return Sound(audio.index, begin - origin, end - origin, audio.codec_context.codec.canonical_name, moves)
