"""Small whole recordings, one for each container, codec and kind of picture: what the fuzzer damages."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.media_files import can_encode, make, numbered, tone

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would tell of itself

RATE = 48_000
SHORT: dict[str, Any] = {"seconds": 0.6, "fps": 25, "width": 64, "height": 48, "rate": RATE}
SOUND = [tone(0.6, RATE)]
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FRONT = {"movflags": "faststart"}

# name -> what `make` is told
RECORDINGS: dict[str, dict[str, Any]] = {
    "h264-aac.mp4": {"container": "mp4", "options": {"g": "5"}},
    "h264-front.mp4": {"container": "mp4", "options": {"g": "5"}, "container_options": FRONT},
    "fragments.mp4": {"container": "mp4", "options": {"g": "5"}, "container_options": FRAGMENTS},
    "baseline.mp4": {"container": "mp4", "options": {"profile": "baseline", "g": "5"}, "sounds": []},
    "hevc.mp4": {"container": "mp4", "codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "av1.mp4": {"container": "mp4", "codec": "libsvtav1", "options": {"preset": "12"}},
    "mpeg4.mp4": {"container": "mp4", "codec": "mpeg4"},
    "surround.mp4": {"container": "mp4", "layout": "7.1"},
    "turned.mov": {"container": "mov", "sound_codec": "pcm_s16le", "rotation": 90},
    "prores.mov": {"container": "mov", "codec": "prores_ks", "pixels": "yuv422p10le", "sounds": []},
    "h264-opus.mkv": {"container": "matroska", "sound_codec": "libopus"},
    "two-videos.mkv": {"container": "matroska", "videos": 2, "sound_codec": "flac"},
    "vp8.webm": {"container": "webm", "codec": "libvpx", "sound_codec": "libopus"},
    "vp9.webm": {"container": "webm", "codec": "libvpx-vp9", "sound_codec": "libopus"},
    "mpeg4.avi": {"container": "avi", "codec": "mpeg4", "sound_codec": "mp2"},
    "mjpeg.avi": {"container": "avi", "codec": "mjpeg", "pixels": "yuvj420p", "sound_codec": "pcm_s16le"},
    "h264.ts": {"container": "mpegts"},
    "mpeg4.mpg": {"container": "mpeg", "codec": "mpeg4", "sound_codec": "mp2"},
    "h264.flv": {"container": "flv", "rate": 44_100, "sounds": [tone(0.6, 44_100)]},
    "wmv2.wmv": {"container": "asf", "codec": "wmv2", "sound_codec": "libmp3lame"},
    "vp8.ogv": {"container": "ogg", "codec": "libvpx", "sound_codec": "flac"},
    "a.wav": {"container": "wav", "codec": None, "sound_codec": "pcm_s16le"},
    "float.wav": {"container": "wav", "codec": None, "sound_codec": "pcm_f32le", "layout": "stereo"},
    "seven.wav": {"container": "wav", "codec": None, "sound_codec": "pcm_s16le", "layout": "7.1"},
    "a.flac": {"container": "flac", "codec": None, "sound_codec": "flac"},
    "seven.flac": {"container": "flac", "codec": None, "sound_codec": "flac", "layout": "7.1"},
    "a.mp3": {"container": "mp3", "codec": None, "sound_codec": "libmp3lame"},
    "a.m4a": {"container": "ipod", "codec": None},
    "a.aac": {"container": "adts", "codec": None},
    "a.opus": {"container": "ogg", "codec": None, "sound_codec": "libopus", "layout": "stereo"},
    "a.aiff": {"container": "aiff", "codec": None, "sound_codec": "pcm_s16be"},
    "a.ac3": {"container": "ac3", "codec": None, "sound_codec": "ac3"},
    "a.wv": {"container": "wv", "codec": None, "sound_codec": "wavpack"},
}
PICTURES: dict[str, dict[str, Any]] = {
    "a.png": {"format": "PNG"},
    "a.jpg": {"format": "JPEG"},
    "a.webp": {"format": "WEBP"},
    "a.bmp": {"format": "BMP"},
    "a.avif": {"format": "AVIF"},
    "a.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "plain.tif": {"format": "TIFF"},
    "moving.gif": {"format": "GIF", "save_all": True},
    "moving.webp": {"format": "WEBP", "save_all": True},
    "moving.png": {"format": "PNG", "save_all": True},
}


def corpus() -> dict[str, bytes]:
    """Every recording and picture that can be written here, by name."""
    made: dict[str, Callable[[], bytes]] = {}
    for name, settings in RECORDINGS.items():
        options = SHORT | {"sounds": SOUND} | settings
        needed = (options.get("codec", "libx264"), options.get("sound_codec", "aac"))
        if all(codec is None or can_encode(codec) for codec in needed):
            made[name] = lambda options=options: _recording(options)
    for name, settings in PICTURES.items():
        made[name] = lambda settings=settings: _picture(**settings)
    return {name: make() for name, make in made.items()}


def _recording(options: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:  # an index in front is written by going back in a file
        return make(Path(folder) / "recording", **options).read_bytes()


def _picture(**settings: Any) -> bytes:
    frames = [Image.fromarray(np.roll(numbered(number, 64, 48), number, axis=0)) for number in range(4)]
    if settings.get("save_all"):
        settings = settings | {"append_images": frames[1:], "duration": 100}
    buffer = io.BytesIO()
    frames[0].save(buffer, **settings)
    return buffer.getvalue()
