"""Whatever cannot be read ends in one clear line; what can be saved is."""

from __future__ import annotations

import base64
import os
import random
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from mllm.errors import MediaError, MllmError
from mllm.media import decode, scan
from mllm.media.recording import load_clip, probe
from mllm.media.sources import MediaLimits
from tests.media_files import (
    ENGINES,
    at,
    click_time,
    make,
    numbers,
    tone,
    use_engine,
    write_film,
)

film = pytest.fixture(scope="session")(write_film)
engine = pytest.fixture(params=ENGINES)(use_engine)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (bytes(5000), "nothing but zeros: copy or download it again"),
        (random.Random(1).randbytes(10), "not a recording that can be read"),
        (random.Random(1).randbytes(20_000), "not a recording that can be read"),
        (b"%PDF-1.4\n" + bytes(range(256)) * 20, "not a recording that can be read"),
        ("Grüße an alle. ".encode() * 500, "it is text, not a recording"),
        (PLAYLIST, "it is text, not a recording"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page, not a recording"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "it is a Git LFS pointer"),
        (png_header(60_000, 60_000), "far too many pixels for one picture"),
        (png_header(9000, 9000), "9000×9000 pixels is more than the limit of 64 million"),
        (png_header(50, 50), "cannot be read (image file is truncated"),
    ],
)
def test_unreadable(tmp_path, data, message):
    path = tmp_path / "upload.mp4"
    path.write_bytes(data)
    for source, name in ((data, f"<bytes, {len(data)} bytes>"), (path, str(path))):
        for read in (load_clip, probe):
            with pytest.raises(MediaError) as caught:
                read(source)
            line = str(caught.value)
            assert line.startswith(f"{name}: ")
            assert message in line
            assert "\n" not in line
            assert len(line) < len(name) + 250


def test_random_damage_ends_in_a_clip_or_a_clear_line(film):
    """Bytes changed at random anywhere: no crash, no other error."""
    whole = film.read_bytes()
    for seed in range(12):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.choice([1, 20, 400])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            clip = load_clip(data, size=16, choose=lambda seconds: np.linspace(0, min(seconds, 9), 5))
        except MediaError:
            continue
        assert clip.frames is not None or clip.waveform is not None


@pytest.mark.parametrize("way", ["path", "bytes"])
def test_an_index_that_points_beyond_the_file(film, tmp_path, way):
    """Over bytes, decord reads there (`AVIOBytesContext`) and ends the process: so it is given a file."""
    data = bytearray(film.read_bytes())
    table = data.index(b"stco")
    count = int.from_bytes(data[table + 8 : table + 12], "big")
    data[table + 8 + 4 * count] = 0x7F  # the highest byte of the last chunk's offset
    (tmp_path / "film.mp4").write_bytes(data)
    clip = load_clip(tmp_path / "film.mp4" if way == "path" else bytes(data), size=32)
    assert clip.duration == pytest.approx(4.0, abs=1.0)
    assert clip.waveform is not None


def test_missing_and_odd_paths(tmp_path):
    cases = {
        str(tmp_path / "no.mp4"): "no.mp4: no such file: check the path",
        "http://example.org/a.mp4": "a.mp4: no such file: download it first",
        "a\nb\0c": "a?b?c: no such file",
        "x" * 5000: "cannot be read (File name too long)",
        "/dev/null": "/dev/null: not an ordinary file",
    }
    for source, message in cases.items():
        with pytest.raises(MediaError) as caught:
            load_clip(source)
        assert message in str(caught.value)
        assert len(str(caught.value)) < 450
    with pytest.raises(MediaError, match="cannot read media from int: give a path"):
        load_clip(5)  # type: ignore[arg-type]
    assert issubclass(MediaError, MllmError)
    assert issubclass(MllmError, ValueError)


def test_no_permission(film, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MediaError, match=r"film.mp4: no permission to read it: change its mode or owner"):
        load_clip(film)


def test_truncated_but_salvageable(film, tmp_path):
    data = film.read_bytes()
    half = load_clip(data[: len(data) // 2])
    assert 20 < len(half.frames) < 80
    assert 0.8 < half.duration < 3.2  # what there is, not what the header promises
    assert numbers(half)[:20] == list(range(20))
    assert half.waveform is not None
    mkv = Path(make(tmp_path / "a.mkv", seconds=4, sounds=[tone(4, 44_100)])).read_bytes()
    half = load_clip(mkv[: len(mkv) // 2])
    assert numbers(half)[:10] == list(range(10))


def test_truncated_beyond_salvage(film, tmp_path):
    data = film.read_bytes()
    with pytest.raises(
        MediaError, match=r"its streams \(audio and video\) hold nothing to see or hear: copy"
    ):
        load_clip(data[: data.index(b"mdat") + 4])
    back = Path(make(tmp_path / "b.mp4", seconds=1)).read_bytes()
    with pytest.raises(
        MediaError, match=r"its index \(moov\) is missing or damaged, so the file is incomplete"
    ):
        load_clip(back[: len(back) // 2])


def test_damage_in_the_middle_is_bridged(engine, film):
    data = bytearray(film.read_bytes())
    places = sorted(packet for packet in _video_packets(film) if packet[0] > 1.1)
    for time, position, size in places:
        if time < 2.0:
            data[position : position + size] = bytes(size)
    clip = load_clip(bytes(data))
    assert len(clip.frames) == 100
    assert numbers(clip)[:25] == list(range(25))
    assert numbers(clip)[55:] == list(range(55, 100))
    shown = load_clip(bytes(data), choose=at(0.4, 1.6, 3.0))
    assert numbers(shown)[::2] == [10, 75]


def _video_packets(path: Path) -> list[tuple[float, int, int]]:
    with av.open(path) as container:
        packets = container.demux(container.streams.video[0])
        return [(float(p.pts * p.time_base), p.pos, p.size) for p in packets if p.size]


def test_a_picture_or_sound_that_cannot_be_decoded(film, tmp_path):
    data = bytearray(film.read_bytes())
    for _, position, size in _video_packets(film):
        data[position : position + size] = bytes(size)
    with pytest.raises(
        MediaError, match=r"its picture \(h264\) cannot be decoded: copy it again if it is damaged"
    ):
        load_clip(bytes(data))
    heard = load_clip(bytes(data), want_video=False)
    assert heard.frames is None
    assert click_time(heard.waveform) == pytest.approx(1.0, abs=0.005)


def test_sound_that_cannot_be_decoded(film, monkeypatch):
    monkeypatch.setattr(decode, "_pieces", lambda *_: iter(()))
    with pytest.raises(MediaError, match=r"its sound \(aac\) cannot be decoded: convert it, or leave it out"):
        load_clip(film)
    assert load_clip(film, want_audio=False).waveform is None


def test_frames_that_cannot_be_decoded(film, monkeypatch):
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "decode", lambda *_: [])
    with pytest.raises(MediaError, match="none of its frames can be decoded"):
        load_clip(film)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 1000}, "MB is more than the limit of 0.001 MB: shorten it"),
        ({"max_seconds": 2}, "4.0 s is more than the limit of 2 s: cut it, or give start and end"),
        ({"max_pixels": 1000}, "80×48 pixels is more than the limit of 0.001 million: scale it down"),
        ({"max_frame_bytes": 1000}, "100 frames of 80×48 take 0.0 GB, more than the limit of 1e-06 GB: ask"),
    ],
)
def test_limits(film, limits, message):
    for source in (film, film.read_bytes()):
        with pytest.raises(MediaError) as caught:
            load_clip(source, limits=MediaLimits(**limits))
        assert message in str(caught.value)
    uri = "data:;base64," + base64.b64encode(film.read_bytes()).decode()
    with pytest.raises(MediaError, match=r"^data: URI: .*MB is more"):
        load_clip(uri, limits=MediaLimits(max_bytes=1000))


def test_limits_can_be_lifted_and_met(film):
    none = MediaLimits(None, None, None, None)
    assert len(load_clip(film, limits=none).frames) == 100
    assert load_clip(film, limits=MediaLimits(max_seconds=2), start=1.0, end=2.5).duration == 1.5


def test_memory_errors_are_clear(film, monkeypatch):
    def burst(*_, **__):
        raise MemoryError

    monkeypatch.setattr(scan, "_read", burst)
    with pytest.raises(MediaError, match="it does not fit into memory: ask for a smaller size"):
        load_clip(film)


def test_nothing_is_printed(film, capfd):
    data = film.read_bytes()
    load_clip(data[: len(data) // 2])
    for junk in (bytes(500), b"junk" * 500):
        with pytest.raises(MediaError):
            load_clip(junk)
    assert capfd.readouterr() == ("", "")
