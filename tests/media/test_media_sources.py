"""Everything a clip can be read from, and how fast."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image

from mllm.command import bench_media
from mllm.errors import MediaError, MllmError
from mllm.files import open_ordinary
from mllm.media.recording import load_clip, probe
from mllm.media.sources import MEDIA_SUFFIXES, SUFFIXES, MediaLimits
from tests.media_files import (
    at,
    can_encode,
    click_time,
    clicks,
    frame_folder,
    make,
    numbered,
    numbers,
    tone,
    write_film,
)

film = pytest.fixture(scope="session")(write_film)


# --- bytes and data: URIs ---


def test_bytes_and_data_uris(film):
    data = film.read_bytes()
    expected = load_clip(film, size=32).digest()
    code = base64.b64encode(data).decode()
    folded = "\n".join(code[i : i + 76] for i in range(0, len(code), 76))
    sources = [
        data,
        bytearray(data),
        memoryview(data),
        f"data:video/mp4;base64,{code}",
        f"DATA:;BASE64,{code.rstrip('=')}",
        f"data:video/mp4;base64,{folded}",
        "data:video/mp4;base64," + base64.urlsafe_b64encode(data).decode().replace("=", "%3D"),
        "data:video/mp4," + quote_from_bytes(data),
        f" \n data:video/mp4;base64,{code}",
    ]
    clips = [load_clip(source, size=32) for source in sources]
    assert {clip.digest() for clip in clips} == {expected}
    assert clips[0].source == f"<bytes, {len(data)} bytes>"
    assert clips[3].source == "data: URI"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:video/mp4;base64", "data: URI: no comma in it: write"),
        ("data:video/mp4;base64,", "data: URI: it is empty"),
        ("data:video/mp4;base64,@@@@", "data: URI: not valid base64 (only base64 data is allowed): encode"),
        ("data:video/mp4;base64,abcde", "data: URI: not valid base64"),
        ("data:text/plain,secret words", "data: URI: it is text, not a recording"),
        (" data:video/mp4;base64,secret@", "data: URI: not valid base64"),
        ("data:text/plain,secret \ud800", "data: URI: it is no text in UTF-8"),
        ("data:video/mp4;base64,secret\ud800", "data: URI: not valid base64"),
    ],
)
def test_bad_data_uris(uri, message):
    with pytest.raises(MediaError) as caught:
        load_clip(uri)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


# --- what is no ordinary file ---


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    return path


@pytest.mark.timeout(10)
def test_a_fifo_that_nobody_writes_to_is_refused_at_once(fifo, tmp_path):
    link = tmp_path / "link.mp4"
    link.symlink_to(fifo)
    for path in (fifo, link, "/dev/zero", "/dev/tty"):
        with pytest.raises(MediaError, match="not an ordinary file but a"):
            load_clip(path)
        with pytest.raises(MediaError, match="not an ordinary file"):
            open_ordinary(path, "it")


@pytest.mark.timeout(10)
def test_a_fifo_put_in_a_files_place_is_refused_too(fifo, film, monkeypatch):
    found = os.stat(film)
    monkeypatch.setattr(os, "stat", lambda path, **options: found)
    with pytest.raises(MediaError, match="not an ordinary file"):
        open_ordinary(fifo, "it")


def test_links_are_followed_unless_told_otherwise(film, tmp_path):
    link = tmp_path / "link.mp4"
    link.symlink_to(film)
    with open_ordinary(link, "it") as file:
        assert file.read() == film.read_bytes()
    with pytest.raises(MediaError, match="it: not an ordinary file"):
        open_ordinary(link, "it", follow_links=False)
    with pytest.raises(MediaError, match="gone.mp4: no such file"):
        open_ordinary(tmp_path / "gone.mp4", "gone.mp4")


# --- images ---


def test_images(tmp_path):
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        path = tmp_path / f"still.{suffix}"
        Image.fromarray(numbered(77)).save(path)
        clip, info = load_clip(path), probe(path)
        assert (numbers(clip), clip.is_image, clip.duration) == ([77], True, 0.0)
        assert (info.is_image, info.width, info.height, info.fps) == (True, 80, 48, None)
        assert clip.waveform is None
        assert load_clip(path, size=64, choose=at(0, 0, 0)).frames.shape == (1, 64, 64, 3)
        assert numbers(load_clip(path, start=3, end=5)) == [77]
    assert load_clip(path, want_video=False).frames is None


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.full((20, 30, 3), 200, np.uint8), 200),
        (np.full((20, 30), 40_000, np.uint16), 156),
        (np.full((20, 30), 0.5, np.float32), 127),
        (np.full((20, 30), 40_000, np.int32), 155),
    ],
)
@pytest.mark.parametrize("name", ["a.tif", "a.tiff"])
def test_tiff_of_many_depths(tmp_path, name, values, seen):
    Image.fromarray(values).save(tmp_path / name)
    clip = load_clip(tmp_path / name)
    assert clip.is_image
    assert clip.frames[0, 0, 0].tolist() == [seen] * 3


@pytest.mark.parametrize("suffix", ["tif", "jpg", "png"])
def test_pictures_are_turned_as_they_say(tmp_path, suffix):
    """Of a TIFF, Pillow gives the size upright, and of the others as it is stored."""
    stored = Image.new("RGB", (64, 48), "blue")
    stored.paste("red", (0, 24, 32, 48))  # at the lower left, which comes to the upper left
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    clip, info = load_clip(tmp_path / f"a.{suffix}"), probe(tmp_path / f"a.{suffix}")
    assert clip.frames.shape == (1, 64, 48, 3)
    assert (info.width, info.height) == (48, 64)
    assert clip.frames[0, 5, 5].argmax() == 0
    assert clip.frames[0, -5, 5].argmax() == 2


def test_the_first_page_of_a_tiff_is_the_picture(tmp_path):
    pages = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    clip = load_clip(tmp_path / "a.tif")
    assert clip.is_image
    assert clip.frames[0, 0, 0].tolist() == [255, 0, 0]


ENCODERS = {
    ".ogv": ("libvpx", "flac"),
    ".webm": ("libvpx", "libopus"),
    ".wmv": ("wmv2", "libmp3lame"),
    ".flv": ("flv1", "aac"),
    ".mpg": ("mpeg4", "mp2"),
    ".mpeg": ("libx264", "mp2"),
    ".avi": ("mpeg4", "mp2"),
    ".wav": (None, "pcm_s16le"),
    ".flac": (None, "flac"),
    ".mp3": (None, "libmp3lame"),
    ".m4a": (None, "aac"),
    ".aac": (None, "aac"),
    ".ogg": (None, "libopus"),
    ".oga": (None, "flac"),
    ".opus": (None, "libopus"),
    ".wma": (None, "libmp3lame"),
    ".aiff": (None, "pcm_s16be"),
}
CONTAINERS = {".3gp": "mp4", ".mts": "mpegts", ".m2ts": "mpegts", ".wma": "asf"}  # where PyAV knows no suffix


@pytest.mark.parametrize("suffix", sorted(MEDIA_SUFFIXES))
def test_what_is_listed_as_a_recording_is_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix in SUFFIXES["image"] | {".gif"}:
        Image.fromarray(numbered(3)).save(path)
        assert load_clip(path).frames is not None
        return
    codec, sound_codec = ENCODERS.get(suffix, ("libx264", "aac"))
    rate = 48_000 if sound_codec == "libopus" else 44_100
    make(
        path,
        fps=25,
        codec=codec,
        sound_codec=sound_codec,
        sounds=[tone(1, rate)],
        rate=rate,
        container=CONTAINERS.get(suffix),
    )
    clip = load_clip(path)
    assert np.abs(clip.waveform).max() > 0.3
    assert (clip.frames is not None) == (codec is not None)


def test_exif_rotation(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(numbered(9)).save(path, exif=exif, quality=95)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (48, 80, 90)
    frame = load_clip(path).frames[0]
    assert np.abs(frame.astype(int) - np.rot90(numbered(9), -1)).mean() < 5


def test_odd_pixel_formats():
    def read(image: Image.Image, **options) -> np.ndarray:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return load_clip(buffer.getvalue()).frames[0]

    deep = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    assert read(deep).tolist() == np.full((4, 4, 3), 0x80).tolist()
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (read(clear) == 255).all()
    assert (read(Image.new("L", (4, 4), 90)) == 90).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert read(palette)[0, 0].tolist() == [10, 20, 30]
    assert (read(palette, transparency=0) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_play_at_their_own_pace(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    images = [Image.fromarray(numbered(number)) for number in range(4)]
    delays = [100, 400, 200, 300]
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, lossless=True)
    clip, info = load_clip(path), probe(path)
    assert numbers(clip) == [0, 1, 2, 3]
    assert clip.frame_times == pytest.approx([0.0, 0.1, 0.5, 0.7])
    assert (info.is_image, info.duration, info.fps) == (False, pytest.approx(1.0), pytest.approx(4.0))
    assert numbers(load_clip(path, choose=at(0.69, 0.05))) == [2, 0]
    with pytest.raises(MediaError, match="4 frames of 80×48 take"):
        load_clip(path, limits=MediaLimits(max_frame_bytes=1000))


# --- folders of frames ---


def test_folder_of_frames(tmp_path):
    folder = frame_folder(tmp_path / "frames", count=12)
    (folder / ".hidden.png").write_text("no image")
    (folder / "notes.md").write_text("ignored")
    clip, info = load_clip(folder), probe(str(folder))
    assert numbers(clip) == list(range(12))  # frame10 after frame9
    assert clip.frame_times == pytest.approx(np.arange(12) / 3)
    assert (clip.duration, clip.waveform, info.fps) == (4.0, None, pytest.approx(3.0))
    assert numbers(load_clip(folder, size=32, choose=at(0.34, 3.9, 0.0))) == [1, 11, 0]
    assert numbers(load_clip(folder, start=1.0, end=2.0)) == [3, 4, 5]


def test_folder_with_rate_and_sound(tmp_path):
    folder = frame_folder(tmp_path / "frames", count=5, suffix=".jpg", digits=3)
    (folder / "fps.txt").write_text("2.5\n")
    options = {"codec": None, "sound_codec": "flac", "sound_format": "s16", "rate": 16_000}
    make(folder / "sound.flac", sounds=[clicks(2, 16_000)], **options)
    clip, info = load_clip(folder), probe(folder)
    assert clip.frame_times == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert click_time(clip.waveform) == pytest.approx(1.0, abs=0.002)
    assert (info.audio_codec, info.video_codec, info.has_audio) == ("flac", "jpeg", True)
    assert load_clip(folder, want_audio=False).waveform is None


def test_a_folder_of_one_frame_is_a_still_with_time(tmp_path):
    clip = load_clip(frame_folder(tmp_path / "one", count=1))
    assert (clip.is_image, clip.duration, numbers(clip)) == (False, pytest.approx(1 / 3), [0])


def test_bad_folders(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(MediaError, match="no frames in this folder: put png or jpg files there"):
        load_clip(folder)
    frame_folder(folder)
    for text in ("fast", "0", "-3", "nan", ""):
        (folder / "fps.txt").write_text(text)
        with pytest.raises(MediaError, match=r"fps.txt: '.*' is no frame rate: write a number"):
            load_clip(folder)
    (folder / "fps.txt").unlink()
    with pytest.raises(MediaError, match="more than the limit of 0.0001 MB"):
        load_clip(folder, limits=MediaLimits(max_bytes=100))
    Image.fromarray(numbered(9)[:20]).save(folder / "frame9.png")
    with pytest.raises(MediaError, match=r"frame9.png: 80×20 pixels, the first 80×48: give all frames"):
        load_clip(folder)
    assert load_clip(folder, size=16).frames.shape == (7, 16, 16, 3)
    (folder / "frame3.png").write_text("no image")
    with pytest.raises(MediaError, match=r"frame3.png: not an image that can be read: replace"):
        load_clip(folder)
    for name in ("a.wav", "b.flac"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(MediaError, match=r"several sound files \(a.wav and b.flac\): keep one"):
        load_clip(folder)


# --- the measurement ---


def test_bench_media(film, tmp_path, capsys, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setattr(bench_media, "PIECE", 1)
    numbers = bench_media.bench_media(
        [film], size=32, frames=4, repeats=1, long=3, json_file=tmp_path / "media.json"
    )
    (row,) = numbers["files"]
    assert json.loads((tmp_path / "media.json").read_text()) == numbers
    assert row["ratio"] == pytest.approx(row["ours"] / row["decord"])
    assert numbers["ratio"] == pytest.approx(row["ratio"])
    assert min(row["ours"], row["with_sound"]) > 0
    pieces = numbers["long"]
    assert (pieces["pieces"], round(pieces["seconds"])) == (3, 3)
    assert min(pieces["open"], pieces["isolated"], pieces["apart"]) > 0
    said = capsys.readouterr().out
    assert "film.mp4" in said
    assert "3 s in 3 pieces" in said
    bench_media.made_up(tmp_path / "m.mp4", seconds=1, width=64, height=48)
    assert probe(tmp_path / "m.mp4").duration == pytest.approx(1.0)


def test_bench_media_where_decord_cannot(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    if not can_encode("libsvtav1"):
        pytest.skip("this PyAV cannot write AV1")
    path = make(tmp_path / "a.mkv", codec="libsvtav1", width=128, height=96)
    numbers = bench_media.bench_media([path], size=32, frames=2, repeats=1)
    assert (numbers["ratio"], numbers["files"][0]["decord"]) == (None, None)
    picture = tmp_path / "a.png"
    Image.fromarray(numbered(1)).save(picture)
    with pytest.raises(MllmError, match="a.png: not a video: name files with a moving picture"):
        bench_media.bench_media([picture])
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MllmError, match="decord is not installed"):
        bench_media.bench_media([path])
