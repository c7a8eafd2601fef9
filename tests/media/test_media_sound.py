"""The sound of recordings: at the right time, at the right loudness."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from mllm.errors import MediaError
from mllm.media import decode, scan
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from mllm.media.sources import Source
from tests.media_files import (
    at,
    click_time,
    clicks,
    make,
    numbered,
    numbers,
    tone,
    write_film,
)

film = pytest.fixture(scope="session")(write_film)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"codec": None}),
        ("a.mkv", {}),
        ("a.mkv", {"sound_start": 0.5}),
        ("a.mp4", {"sound_start": 0.5}),
        ("a.webm", {"codec": None, "sound_codec": "libopus", "rate": 48_000}),
        ("a.ogg", {"codec": None, "sound_codec": "libopus", "rate": 48_000}),
        ("a.mp3", {"codec": None, "sound_codec": "libmp3lame"}),
        ("a.flac", {"codec": None, "sound_codec": "flac", "sound_format": "s32"}),
        ("a.wav", {"codec": None, "sound_codec": "pcm_s24le"}),
        ("a.wav", {"codec": None, "sound_codec": "pcm_u8", "rate": 8000}),
        ("a.wav", {"codec": None, "sound_codec": "pcm_f32le", "layout": "stereo", "rate": 16_000}),
        ("a.mp4", {"layout": "5.1", "rate": 48_000}),
        ("a.mov", {"sound_codec": "pcm_s16le", "rate": 22_050}),
    ],
)
def test_a_click_is_heard_when_it_sounds(tmp_path, name, options):
    rate = options.get("rate", 44_100)
    path = make(tmp_path / name, seconds=2, sounds=[clicks(2, rate)], **options)
    clip, info = load_clip(path), probe(path)
    begin = options.get("sound_start", 0.0)
    assert clip.waveform.dtype == np.float32
    assert click_time(clip.waveform) == pytest.approx(begin + 1.0, abs=0.005)
    assert len(clip.waveform) / SAMPLE_RATE == pytest.approx(begin + 2.0, abs=0.03)
    assert info.duration == clip.duration == pytest.approx(begin + 2.0, abs=0.03)
    assert info.has_audio
    assert info.has_video == (options.get("codec", "") is not None)
    if begin:
        assert not np.abs(clip.waveform[: int(0.45 * SAMPLE_RATE)]).any()


@pytest.mark.parametrize("name", ["a.ts", "a.avi", "a.aac"])
def test_containers_that_do_not_tell_the_priming(tmp_path, name):
    options = {"codec": None, "container": "adts"} if name == "a.aac" else {}
    codec = "libmp3lame" if name == "a.avi" else "aac"
    path = make(tmp_path / name, seconds=2, sounds=[clicks(2, 44_100)], sound_codec=codec, **options)
    assert click_time(load_clip(path).waveform) == pytest.approx(1.0, abs=0.03)


def test_channels_are_averaged_not_added(tmp_path):
    both = np.stack([tone(1, 16_000), tone(1, 16_000)])
    left = np.stack([tone(1, 16_000), np.zeros(16_000, np.float32)])
    for planes, loudness in ((both, 0.5), (left, 0.25)):
        options = {"codec": None, "sound_codec": "pcm_f32le", "layout": "stereo", "rate": 16_000}
        clip = load_clip(make(tmp_path / "a.wav", sounds=[planes], **options))
        assert np.abs(clip.waveform).max() == pytest.approx(loudness, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"sound_codec": "aac"}),
        ("a.mka", {"codec": None, "sound_codec": "aac"}),
        ("a.flac", {"codec": None, "sound_codec": "flac", "sound_format": "s32"}),
        ("a.mkv", {"sound_codec": "libopus"}),
        ("a.wav", {"codec": None, "sound_codec": "pcm_s16le"}),
        ("a.wav", {"codec": None, "sound_codec": "pcm_f32le"}),
        ("a.mkv", {"sound_codec": "pcm_f64le"}),
        ("a.wv", {"codec": None, "sound_codec": "wavpack"}),
    ],
)
def test_seven_point_one_is_heard(tmp_path, name, options):
    """PyAV 18.1 takes a planar frame of eight channels for one of nine, and reads where nothing is."""
    path = make(tmp_path / name, layout="7.1", rate=48_000, sounds=[tone(1, 48_000, 600.0)], **options)
    data = path.read_bytes()
    for source in (path, data):
        waveform = load_clip(source).waveform
        assert len(waveform) == pytest.approx(SAMPLE_RATE, abs=800)
        # The low-frequency channel of AAC holds no 600 Hz; the other seven hold half of full scale.
        assert np.abs(waveform[2000:14_000]).max() == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("channels", [3, 8, 9, 12, 16, 24, 57])
def test_any_number_of_channels_is_averaged(channels):
    """Multitrack recorders write wav files of so many; no layout names them."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((channels, 2, SAMPLE_RATE, 0, "NONE", ""))
        loud = np.zeros((SAMPLE_RATE, channels), np.int16)
        loud[:, 0] = 16_384
        file.writeframes(loud.tobytes())
    waveform = load_clip(sound.getvalue()).waveform
    assert waveform.shape == (SAMPLE_RATE,)
    np.testing.assert_allclose(waveform, 0.5 / channels, atol=1e-4)


def test_samples_that_are_no_numbers_become_silence(tmp_path):
    wave = np.array([0.5, np.nan, np.inf, -np.inf, 7.0, -0.5] * 100, np.float32)
    options = {"codec": None, "sound_codec": "pcm_f32le", "rate": 16_000}
    clip = load_clip(make(tmp_path / "a.wav", sounds=[wave], **options))
    assert np.array_equal(clip.waveform[:6], np.array([0.5, 0, 1, -1, 1, -0.5], np.float32))


def test_a_gap_in_the_sound_is_silence(tmp_path):
    """Two pieces of a tone, 1 s apart on the container's clock."""
    rate, path = 16_000, tmp_path / "gap.mkv"
    with av.open(path, "w") as out:
        stream = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        for begin in (0, 2 * rate):
            frame = av.AudioFrame.from_ndarray(tone(1, rate)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, begin
            for packet in stream.encode(frame):
                packet.pts = packet.dts = begin
                out.mux(packet)
    clip = load_clip(path)
    loud = [np.abs(clip.waveform[i * rate + 100 : (i + 1) * rate - 100]).max() > 0.1 for i in range(3)]
    assert loud == [True, False, True]


def test_several_streams(tmp_path):
    path = make(
        tmp_path / "m.mkv", videos=2, sounds=[tone(1, 44_100, 300), clicks(1, 44_100, [0.5])], seconds=1
    )
    found = scan.scan(Source("m", path))
    assert not decode.suits_decord(found)  # it might choose the other one
    clip = load_clip(path)
    assert numbers(clip) == list(range(10))
    assert np.abs(clip.waveform).mean() > 0.1  # the tone, which comes first


def test_separate_sound_replaces_the_own(film, tmp_path):
    options = {"codec": None, "sound_codec": "pcm_s16le", "rate": 16_000}
    other = make(tmp_path / "o.wav", sounds=[clicks(6, 16_000, [2.5])], **options)
    clip = load_clip(film, audio=other)
    assert click_time(clip.waveform) == pytest.approx(2.5, abs=0.002)
    assert clip.duration == 6.0
    still = tmp_path / "still.png"
    Image.fromarray(numbered(5)).save(still)
    shown = load_clip(still, audio=other, choose=at(0.0, 5.9))
    assert not shown.is_image
    assert (numbers(shown), shown.duration, shown.picture_until()) == ([5, 5], 6.0, 6.0)
    with pytest.raises(MediaError, match=r"still.png: no sound in it: give a sound file"):
        load_clip(film, audio=still)
    with pytest.raises(MediaError, match="a Clip cannot be the sound of another"):
        load_clip(film, audio=shown)
