"""Streams whose clock jumps, as after a splice, and recordings that are encrypted."""

from __future__ import annotations

import itertools
import logging
import time
from fractions import Fraction

import numpy as np
import pytest

from mllm.errors import MediaError
from mllm.media.clocks import Stamp, moved, shifts
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from tests.media_files import clicks, encoded, make, numbers

PIECE = {"fps": 25, "rate": 48_000, "seconds": 2, "sounds": [clicks(2, 48_000)]}


def spliced(begins, container="mpegts", **options) -> bytes:
    """Pieces of 2 s with a click after 1 s, whose clocks begin at these times (s), one behind the other."""
    options = PIECE | {"container": container} | options
    return b"".join(
        encoded(**options, container_options={"output_ts_offset": str(begin), "mpegts_copyts": "1"})
        for begin in begins
    )


ONLY_PICTURE: dict = {"sounds": []}


def joined(*pieces) -> bytes:
    """Pieces of 2 s, each as (when its clock begins, what it lacks)."""
    return b"".join(spliced([begin], **options) for begin, options in pieces)


def click_times(waveform) -> list[float]:
    loud = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() / 2) / SAMPLE_RATE
    return [float(loud[0]), *(float(b) for a, b in itertools.pairwise(loud) if b - a > 0.5)]


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    "begins",
    [
        [0, 7200],  # a splice far ahead
        [0, 12],  # and a near one
        [7200, 0],  # back
        [5, 5],  # again from the same time
        [0, 9000, 40, 80_000],
    ],
)
def test_a_jump_of_the_clock_is_closed(begins, isolated):
    data = spliced(begins)
    clip = load_clip(data, isolated=isolated)
    assert clip.duration == pytest.approx(2 * len(begins), abs=0.3)
    assert clip.clock_jumps == probe(data).clock_jumps == len(begins) - 1
    assert (np.diff(clip.frame_times) > 0).all()
    assert np.diff(clip.frame_times).max() < 0.3
    assert numbers(clip) == list(range(50)) * len(begins)
    expected = [1.0 + 2 * place for place in range(len(begins))]
    assert click_times(clip.waveform) == pytest.approx(expected, abs=0.3)


def test_sound_and_picture_stay_together():
    """The frame that is on screen when the click sounds is the 26th, before and after the jump."""
    clip = load_clip(spliced([0, 7200]))
    seen = [numbers(clip)[frame] for frame in clip.on_screen(np.array(click_times(clip.waveform)) + 0.01)]
    assert seen == pytest.approx([25, 25], abs=1)


@pytest.mark.parametrize("options", [{"sounds": []}, {"codec": None}])
def test_sound_or_picture_alone(options):
    assert load_clip(spliced([0, 500], **options)).duration == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize(
    ("pieces", "clicked"),
    [
        ([(0, {}), (7200, ONLY_PICTURE)], [1.0]),
        ([(0, ONLY_PICTURE), (7200, {})], [3.0]),
        ([(7200, ONLY_PICTURE), (0, {})], [3.0]),
        ([(0, {}), (7200, ONLY_PICTURE), (0, {})], [1.0, 5.0]),
        ([(0, {}), (7200, ONLY_PICTURE), (40, {})], [1.0, 5.0]),
        ([(0, ONLY_PICTURE), (9000, ONLY_PICTURE), (40, {})], [5.0]),
    ],
)
def test_pieces_without_sound_follow_the_others(pieces, clicked):
    """As a silent trailer does; the sound that comes after it is still heard with its own picture."""
    clip = load_clip(joined(*pieces))
    assert clip.duration == pytest.approx(2 * len(pieces), abs=0.2)
    assert numbers(clip) == list(range(50)) * len(pieces)
    assert click_times(clip.waveform) == pytest.approx(clicked, abs=0.2)
    assert clip.clock_jumps == len(pieces) - 1
    seen = [numbers(clip)[frame] for frame in clip.on_screen(np.array(click_times(clip.waveform)) + 0.01)]
    assert seen == pytest.approx([25] * len(clicked), abs=2)


def test_sound_that_begins_late_is_no_jump():
    clip = load_clip(spliced([0], seconds=20, fps=5, sound_start=15.0))
    assert clip.clock_jumps == 0
    assert clip.duration == pytest.approx(20, abs=0.3)
    assert click_times(clip.waveform) == pytest.approx([16.0], abs=0.2)


@pytest.mark.parametrize("container", ["mpegts", "flv"])
def test_slides_are_no_jumps(container):
    """A picture that changes every ten seconds, without sound."""
    times = [0.0, 10.0, 20.0, 30.0, 40.0]
    clip = load_clip(encoded(times=times, container=container))
    assert clip.clock_jumps == 0
    assert clip.frame_times.tolist() == pytest.approx(times, abs=0.1)


def test_many_jumps_take_no_time():
    """Every packet's clock jumps: the work for each must not grow with their number."""
    clocks = [number % 2 * 900_000_000 + number * 3600 for number in range(20_000)]
    stamps = [Stamp(clock, True, 3600, number, clock, number) for number, clock in enumerate(clocks)]
    begin = time.monotonic()
    (moves,) = shifts([(stamps, Fraction(1, 90_000))])
    ticks = [stamp.time for stamp in moved(stamps, moves)]
    assert time.monotonic() - begin < 5
    assert ticks == sorted(ticks)
    assert ticks[-1] == pytest.approx(20_000 * 3600, rel=0.01)


def test_a_cut_counts_on_the_mended_clock():
    clip = load_clip(spliced([0, 7200]), start=2.5, end=3.5)
    assert clip.duration == 1.0
    assert numbers(clip)[0] == pytest.approx(12, abs=2)
    assert click_times(clip.waveform) == pytest.approx([0.5], abs=0.1)


def test_a_still_picture_with_sound_is_no_jump():
    """The picture pauses for 8 s, the sound goes on: nothing is closed."""
    times = [0.0, 0.5, 1.0, 9.0, 9.5]
    data = encoded(times=times, container="mpegts", sounds=[clicks(10, 48_000, (9.2,))], rate=48_000)
    clip = load_clip(data)
    assert clip.clock_jumps == 0
    assert clip.duration == pytest.approx(10, abs=0.3)
    assert clip.frame_times.tolist() == pytest.approx(times, abs=0.1)


def test_a_pause_in_an_mp4_is_meant(tmp_path):
    clip = load_clip(make(tmp_path / "a.mp4", times=[0.0, 0.5, 60.0, 60.5]))
    assert clip.clock_jumps == 0
    assert clip.duration > 60


def test_it_is_said(tmp_path, caplog):
    path = tmp_path / "spliced.ts"
    path.write_bytes(spliced([0, 7200]))
    with caplog.at_level(logging.WARNING):
        load_clip(path)
    assert "spliced.ts: its clock jumps once" in caplog.text


KEY = {"encryption_key": "00112233445566778899aabbccddeeff", "encryption_kid": "0" * 32}


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("streams", [{}, {"sounds": []}, {"codec": None}])
@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
def test_an_encrypted_mp4_is_called_that(tmp_path, streams, movflags, isolated):
    if not streams.get("sounds", True) and movflags.startswith("frag"):
        movflags = "faststart"
    options = {"encryption_scheme": "cenc-aes-ctr", "movflags": movflags} | KEY
    path = make(tmp_path / "a.mp4", **(PIECE | {"rate": 44_100} | streams), container_options=options)
    with pytest.raises(MediaError, match="a.mp4: it is encrypted"):
        load_clip(path, isolated=isolated)


def test_a_scrambled_broadcast_is_called_that():
    data = bytearray(spliced([0]))
    for place in range(0, len(data), 188):
        if data[place + 1] & 0x1F or data[place + 2] > 0x20:  # not the tables
            data[place + 3] |= 0x80
    with pytest.raises(MediaError, match="it is encrypted"):
        load_clip(bytes(data))


@pytest.mark.parametrize("kind", [b"drms", b"enca", b"aavd"])
def test_sound_that_was_sold_encrypted_is_called_that(tmp_path, kind):
    """As iTunes (m4p) and Audible (aax) sold it: the kind of the track's sample entry tells."""
    data = make(tmp_path / "a.m4a", codec=None, container="ipod", sounds=[clicks(2, 44_100)]).read_bytes()
    head, entries, rest = data.partition(b"stsd")
    with pytest.raises(MediaError, match="it is encrypted"):
        probe(head + entries + rest.replace(b"mp4a", kind, 1))


def element(name: str, *inside: bytes) -> bytes:
    """One of Matroska's, whose name is given in hex."""
    body = b"".join(inside)
    return bytes.fromhex(name) + (0x10000000 | len(body)).to_bytes(4, "big") + body


ENCRYPTED = element("6d80", element("6240", element("5033", b"\1"), element("5035", element("47e1", b"\5"))))
COMPRESSED = element("6d80", element("6240", element("5034", element("4254", b"\3"))))


def webm(*tracks: bytes, before: bytes = b"") -> bytes:
    """A WebM file with these elements in its tracks, and something before them."""
    data = encoded(
        container="webm", codec="libvpx", sound_codec="libopus", rate=48_000, sounds=[clicks(1, 48_000)]
    )
    begin = data.rindex(bytes.fromhex("1654ae6b"))
    length = 9 - data[begin + 4].bit_length()
    size = int.from_bytes(data[begin + 4 : begin + 4 + length], "big") & (1 << 7 * length) - 1
    body = data[begin + 4 + length : begin + 4 + length + size]
    entries = []
    for extra in tracks:
        place = body.index(b"\xae")
        length = 9 - body[place + 1].bit_length()
        size = int.from_bytes(body[place + 1 : place + 1 + length], "big") & (1 << 7 * length) - 1
        entries.append(element("ae", body[place + 1 + length : place + 1 + length + size], extra))
        body = body[place + 1 + length + size :]
    rest = data[data.index(bytes.fromhex("1f43b675"), begin) :]
    front, segment, head = data[:begin].partition(bytes.fromhex("18538067"))
    endless = b"\1" + b"\xff" * 7  # its size, which is another one now
    return front + segment + endless + head[8:] + before + element("1654ae6b", *entries) + rest


@pytest.mark.parametrize("tracks", [(ENCRYPTED, b""), (b"", ENCRYPTED), (COMPRESSED, ENCRYPTED)])
@pytest.mark.parametrize("before", [b"", element("ec", bytes(1 << 20))])
def test_an_encrypted_webm_is_called_that(tracks, before):
    with pytest.raises(MediaError, match="it is encrypted"):
        probe(webm(*tracks, before=before))


def test_what_only_looks_like_encryption_is_read():
    """A compressed track, and the bytes of the elements within something else."""
    chance = element("ec", bytes.fromhex("6d80624050336240") + b"1234" + bytes.fromhex("5035") + b"5678")
    assert probe(webm(COMPRESSED, b"", before=chance)).has_audio
    assert probe(webm(b"", b"", before=chance)).has_audio


@pytest.mark.parametrize(("front", "stuffed"), [(0, 2), (4, 0), (4, 2)])
def test_a_scrambled_broadcast_with_stuffing_or_times_is_called_that(front, stuffed):
    """Null packets fill the rate of a channel; m2ts puts four bytes before each packet."""
    data, null = spliced([0]), b"\x47\x1f\xff\x10" + b"\xff" * 184
    packets, plain = [], []
    for place in range(0, len(data), 188):
        packet = bytearray(data[place : place + 188])
        plain += [bytes(front) + packet] + [bytes(front) + null] * stuffed
        if packet[1] & 0x1F or packet[2] > 0x20:  # not the tables
            packet[3] |= 0x80
        packets += [bytes(front) + packet] + [bytes(front) + null] * stuffed
    assert probe(b"".join(plain)).has_audio
    with pytest.raises(MediaError, match="it is encrypted"):
        probe(b"".join(packets))
