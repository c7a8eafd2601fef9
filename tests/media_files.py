"""Makes the recordings that the tests read. Every frame carries its number as bars, every sound may click."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mllm.media import decode
from mllm.media.clip import Clip

BITS = 10  # bars per frame: numbers up to 1023
TICKS = 1000  # per second, the video time base: a frame time of 0.123 s is exact


def numbered(number: int, width: int = 80, height: int = 48) -> np.ndarray:
    """uint8 [height, width, 3]: the number as dark and bright upright bars, lowest bit at the left."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)])
    row = np.repeat(bits, -(-width // BITS))[:width]
    return np.broadcast_to((row * 200 + 20)[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """What `numbered` wrote, whatever size the frame has now."""
    width = frame.shape[1]
    places = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bright = frame[frame.shape[0] // 2, places].mean(axis=-1) > 120
    return int((bright * (1 << np.arange(BITS))).sum())


def numbers(clip: Clip) -> list[int]:
    """Which frames a clip holds."""
    assert clip.frames is not None
    return [number_of(frame) for frame in clip.frames]


def at(*times: float):
    """A `choose` for these times."""
    return lambda _: np.array(times)


def clicks(seconds: float, rate: int, at: Sequence[float] = (1.0,)) -> np.ndarray:
    """float32 [samples]: silence with a click of 2 ms at each of these times."""
    samples = np.zeros(round(seconds * rate), np.float32)
    for time in at:
        samples[round(time * rate) : round((time + 0.002) * rate)] = 0.9
    return samples


def tone(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    """float32 [samples]: a sine of half amplitude."""
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def click_time(waveform: np.ndarray, rate: int = 16_000) -> float:
    """When the first click begins, s."""
    loud = np.abs(waveform) > np.abs(waveform).max() / 2
    return float(np.argmax(loud)) / rate


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Undoes what SVT-AV1 does as root: it makes the thread that encodes real-time, before all others.

    What that thread starts later inherits it: a test process and its servers then starve everything else on
    the machine, the process that waits for their results included.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make(
    path: str | Path | io.BytesIO,
    *,
    times: Sequence[float] | None = None,
    seconds: float = 1.0,
    fps: float = 10.0,
    width: int = 80,
    height: int = 48,
    codec: str | None = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    videos: int = 1,
    sounds: Sequence[np.ndarray] = (),
    sound_codec: str = "aac",
    rate: int = 44_100,
    layout: str = "mono",
    sound_format: str | None = None,
    sound_start: float = 0.0,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
):
    """Write a recording and return its path.

    Args:
        times: s, when each frame appears (a variable rate); otherwise `seconds` of `fps`.
        codec: of the video; None for sound alone.
        rotation: degrees counter-clockwise, written as display matrix.
        videos: how many video streams; the second counts from 500.
        sounds: one stream each, float32 [samples] or [channels, samples] at `rate`.
        sound_start: s, where the sound begins on the container's clock.
    """
    moments = np.arange(round(seconds * fps)) / fps if times is None else times
    with (
        scheduling_kept(),
        av.open(path, "w", format=container, container_options=container_options or {}) as out,
    ):
        tracks = []
        for _ in range(videos if codec else 0):
            stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            if codec.startswith("libvpx"):
                stream.codec_context.thread_count = 1  # its threads spin while they wait for each other
            stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS)
            if rotation:
                stream.set_display_rotation(rotation)
            tracks.append(stream)
        voices = []
        for _ in sounds:
            stream = out.add_stream(sound_codec, rate=rate)
            stream.layout = layout
            if sound_format:
                stream.format = sound_format
            voices.append(stream)
        for which, stream in enumerate(tracks):
            for number, time in enumerate(moments):
                frame = av.VideoFrame.from_ndarray(numbered(number + 500 * which, width, height))
                frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        for samples, stream in zip(sounds, voices, strict=True):
            channels = len(av.AudioLayout(layout).channels)
            planes = np.broadcast_to(np.atleast_2d(samples), (channels, samples.shape[-1]))
            for first in range(0, planes.shape[1], rate):
                piece = np.ascontiguousarray(planes[:, first : first + rate])
                form = "fltp"
                if channels >= 8:  # PyAV 18.1 counts the planes of such frames wrongly
                    form, piece = "flt", np.ascontiguousarray(piece.T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(piece, format=form, layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(sound_start * rate) + first
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return path


def encoded(**options) -> bytes:
    """As `make`, in memory; give `container`."""
    buffer = io.BytesIO()
    make(buffer, **options)
    return buffer.getvalue()


def can_encode(codec: str) -> bool:
    """Whether this build of PyAV has the encoder."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def with_album_art(mp3: bytes) -> bytes:
    """An mp3 with a front cover (ID3v2.3, APIC)."""
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(cover, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + cover.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame + mp3


def with_tag(wav: bytes, title: bytes) -> bytes:
    """A wav file with a title in it (LIST INFO INAM), in whatever character set."""
    title += b"\0" * (len(title) % 2)
    body = b"INFOINAM" + len(title).to_bytes(4, "little") + title
    whole = wav[8:] + b"LIST" + len(body).to_bytes(4, "little") + body
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole


def overwritten(mp4: bytes, noise: bool = False) -> bytes:
    """An mp4 with the middle half of its data lost; the index, which tells of all of it, at the front."""
    begin = mp4.index(b"mdat") + 4
    quarter = (len(mp4) - begin) // 4
    lost = np.random.default_rng(0).bytes(2 * quarter) if noise else bytes(2 * quarter)
    return mp4[: begin + quarter] + lost + mp4[begin + 3 * quarter :]


def frame_folder(folder: Path, count: int = 6, suffix: str = ".png", digits: int = 0) -> Path:
    """A folder of numbered pictures: frame0, frame1, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered(number)).save(folder / f"frame{number:0{digits or 1}d}{suffix}")
    return folder


def write_film(tmp_path_factory) -> Path:
    """4 s, 25 frames/s, a keyframe every 10 frames, sound with a click at 1 s; the index at the front.

    A session fixture in the files that use it, as `use_engine` is a fixture with the parameters ENGINES.
    """
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    options = {"g": "10", "crf": "10", "preset": "ultrafast"}
    front = {"movflags": "faststart"}
    hiss = np.random.default_rng(0).uniform(-0.02, 0.02, 4 * 44_100).astype(np.float32)
    sounds = [clicks(4, 44_100) + hiss]
    return make(path, seconds=4, fps=25, options=options, sounds=sounds, container_options=front)


ENGINES = ["decord", "pyav"]


def use_engine(request, monkeypatch) -> str:
    """Both engines in turn."""
    if request.param == "pyav":
        monkeypatch.setattr(decode, "decord", None)
    elif decode.decord is None:
        pytest.skip("decord is not installed")
    return request.param
