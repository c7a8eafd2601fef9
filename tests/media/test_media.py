"""Which frames of a recording are read, when, and by which engine."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mllm.errors import MediaError
from mllm.media import decode, scan, stills
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from mllm.media.sources import Source
from tests.media_files import (
    ENGINES,
    at,
    can_encode,
    click_time,
    clicks,
    encoded,
    make,
    numbered,
    numbers,
    tone,
    use_engine,
    with_album_art,
    write_film,
)

film = pytest.fixture(scope="session")(write_film)
engine = pytest.fixture(params=ENGINES)(use_engine)


# --- pictures ---


def test_all_frames_with_their_times(engine, film):
    clip = load_clip(film)
    assert numbers(clip) == list(range(100))
    assert clip.frames.shape == (100, 48, 80, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frame_times == pytest.approx(np.arange(100) / 25)
    assert clip.duration == pytest.approx(4.0, abs=1e-6)
    assert clip.source == str(film)
    assert not clip.is_image


def test_frames_on_screen_at_chosen_times(engine, film):
    wanted = [0.0, 0.039, 0.04, 1.999, 2.0, 3.99, 3.99, 99.0]
    clip = load_clip(film, size=40, choose=at(*wanted))
    assert numbers(clip) == [0, 0, 1, 49, 50, 99, 99, 99]
    assert clip.frames.shape == (8, 40, 40, 3)
    assert clip.frame_times == pytest.approx([0, 0, 0.04, 1.96, 2.0, 3.96, 3.96, 3.96])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_is_exact(engine, tmp_path, suffix):
    times = [0.0, 0.05, 0.4, 0.45, 1.2, 1.25, 1.9]
    clip = load_clip(
        make(tmp_path / f"v.{suffix}", times=times), choose=at(0.04, 0.39, 0.41, 1.19, 1.21, 2.0)
    )
    assert numbers(clip) == [0, 1, 2, 3, 4, 6]
    assert clip.frame_times == pytest.approx([0.0, 0.05, 0.4, 0.45, 1.2, 1.9])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(engine, tmp_path, degrees):
    path = make(tmp_path / "turned.mp4", rotation=degrees, times=[0, 0.1, 0.2], options={"crf": "1"})
    clip, info = load_clip(path), probe(path)
    upright = np.rot90(numbered(2), degrees // 90)  # the display matrix turns counter-clockwise
    assert clip.frames[2].shape == upright.shape == (info.height, info.width, 3)
    assert np.abs(clip.frames[2].astype(int) - upright).mean() < 8
    assert info.rotation == 360 - degrees
    square = load_clip(path, size=40).frames[2]
    assert np.abs(square.astype(int) - stills.resize(upright[None], 40)[0]).mean() < 8


def test_orientation_knows_mirrored_pictures():
    class Frame:
        def __init__(self, a, b, c, d):
            kind = type("Type", (), {"name": "DISPLAYMATRIX"})
            data = type("Data", (bytes,), {"type": kind})
            self.side_data = [data(struct.pack("<9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))]

    one = 1 << 16
    assert scan._orientation(Frame(one, 0, 0, one)) == (0, False)
    assert scan._orientation(Frame(0, one, -one, 0)) == (1, False)
    assert scan._orientation(Frame(-one, 0, 0, one)) == (0, True)
    assert scan._orientation(Frame(one, 0, 0, -one)) == (2, True)


def test_engines_agree(film, monkeypatch):
    pytest.importorskip("decord")
    for size in (None, 40, 112):
        with monkeypatch.context() as patch:
            ours = load_clip(film, size=size, choose=at(0.5, 2.3)).frames.astype(int)
            patch.setattr(decode, "decord", None)
            theirs = load_clip(film, size=size, choose=at(0.5, 2.3)).frames.astype(int)
        assert np.abs(ours - theirs).mean() < 2


def test_reading_twice_gives_the_same(film):
    first, second = load_clip(film, size=40), load_clip(film.read_bytes(), size=40)
    assert first.digest() == second.digest()
    assert first.digest() != load_clip(film, size=40, want_audio=False).digest()
    assert first.digest() != load_clip(film, size=41).digest()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "libsvtav1", "width": 128, "height": 96}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=5:open-gop=1"}}),
        ("deep.mp4", {"pixels": "yuv420p10le"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("b.avi", {"options": {"bf": "2"}}),
        ("a.ts", {}),
        ("a.mov", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("a.h264", {"container": "h264", "fps": 25.0}),
    ],
)
def test_codecs_and_containers(tmp_path, name, options):
    codec = options.get("codec", "libx264")
    if not can_encode(codec):
        pytest.skip(f"this PyAV cannot write {codec}")
    path = make(tmp_path / name, **{"times": np.arange(20) / options.get("fps", 10.0), **options})
    clip = load_clip(path, choose=lambda seconds: (np.array([1, 3, 12, 13, 19]) + 0.5) * seconds / 20)
    assert numbers(clip) == [1, 3, 12, 13, 19]
    assert clip.waveform is None
    assert probe(path).fps == pytest.approx(options.get("fps", 10.0), rel=0.06)


def test_avi_without_reordering_may_jump(tmp_path):
    path = make(tmp_path / "a.avi", seconds=4, options={"bf": "0", "g": "5"})
    assert numbers(load_clip(path, choose=at(3.05, 3.75))) == [30, 37]


def test_long_recordings_are_not_decoded_whole(tmp_path, monkeypatch):
    options = {"g": "10", "preset": "ultrafast"}
    hum = tone(600, 8000)
    path = make(
        tmp_path / "long.mov",
        seconds=600,
        fps=1,
        options=options,
        sounds=[hum],
        sound_codec="pcm_s16le",
        rate=8000,
    )
    assert decode.suits_decord(scan.scan(Source("long", path)))
    assert numbers(load_clip(path, choose=lambda s: np.linspace(0, s, 7), want_audio=False))[3] == 300
    monkeypatch.setattr(decode, "decord", None)
    decoded = []
    plain = decode.decode
    monkeypatch.setattr(
        decode, "decode", lambda packet, track: decoded.append(packet) or plain(packet, track)
    )
    clip = load_clip(path, size=32, choose=lambda seconds: np.linspace(0, seconds, 7), want_audio=False)
    assert numbers(clip) == [0, 100, 200, 300, 400, 500, 599]
    assert len(decoded) < 60
    decoded.clear()
    part = load_clip(path, start=500.0, end=510.0)
    assert len(part.waveform) == 10 * SAMPLE_RATE
    assert numbers(part) == list(range(500, 510))
    assert len(decoded) < 200
    assert load_clip(path, want_video=False).duration == pytest.approx(600)


def test_a_jump_that_goes_wrong_ends_in_a_walk(film, monkeypatch):
    source = Source("film", film)
    found = scan.scan(source)
    picture = found.picture
    with scan.open_container(source) as container:
        video = container.streams.video[0]
        walk = decode.FrameWalk("film", container, video, picture)
        jump, jumps = walk._jump, []
        monkeypatch.setattr(walk, "_jump", lambda to: (jumps.append(to), jump(90 if len(jumps) == 1 else to)))
        assert [walk.at(position)[0] for position in (35, 36, 80)] == [35, 36, 80]
        assert jumps == [30, 0]
    assert not walk.may_jump


def test_without_a_decord_wheel_nothing_is_missing(film, monkeypatch):
    monkeypatch.setattr(decode, "decord", None)
    assert not decode.suits_decord(scan.scan(Source("film", film)))
    assert len(load_clip(film).frames) == 100


def test_decord_that_fails_or_counts_otherwise_is_replaced(film, monkeypatch):
    pytest.importorskip("decord")

    class Reader:
        count, step = 99, 0.04

        def __init__(self, *_, **__):
            pass

        def __len__(self):
            return self.count

        def get_frame_timestamp(self, _):
            return np.arange(self.count)[:, None] * [self.step, self.step]

        def get_batch(self, positions):
            return np.zeros((len(positions), 3, 3, 3), np.uint8)

    for attributes in ({}, {"count": 100, "step": 0.05}, {"count": 100}):
        reader = type("Reader", (Reader,), attributes)
        monkeypatch.setattr(decode.decord, "VideoReader", reader)
        assert numbers(load_clip(film, choose=at(1.0))) == [25]

    def broken(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(decode.decord, "VideoReader", broken)
    assert numbers(load_clip(film, choose=at(1.0))) == [25]


def test_the_last_frame_stays_for_its_duration(tmp_path):
    clip = load_clip(make(tmp_path / "slow.mp4", times=[0, 2.0], fps=0.5))
    assert clip.picture_until() == pytest.approx(4.0, abs=0.1)


# --- cuts ---


def test_a_cut_counts_from_its_start(engine, film):
    clip = load_clip(film, start=0.9, end=2.1)
    assert numbers(clip) == list(range(22, 53))
    assert clip.frame_times[:3] == pytest.approx([0.0, 0.02, 0.06])
    assert clip.duration == pytest.approx(1.2)
    assert click_time(clip.waveform) == pytest.approx(0.1, abs=0.005)
    assert len(clip.waveform) == round(1.2 * SAMPLE_RATE)
    chosen = load_clip(film, start=1.0, choose=lambda seconds: np.array([0.0, seconds / 2, seconds]))
    assert numbers(chosen) == [25, 62, 99]
    assert load_clip(film, end=99).duration == pytest.approx(4.0)


def test_a_late_cut_of_the_sound_equals_the_whole(tmp_path):
    sound = tone(6, 44_100, 300) * np.linspace(0, 1, 6 * 44_100, dtype=np.float32)
    for name, codec in (("a.mp4", "aac"), ("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame")):
        path = make(tmp_path / name, codec=None, sounds=[sound], sound_codec=codec)
        whole = load_clip(path).waveform
        part = load_clip(path, start=4.0, end=5.0).waveform
        assert np.abs(part - whole[4 * SAMPLE_RATE : 5 * SAMPLE_RATE]).max() < 0.02


@pytest.mark.parametrize(("start", "end"), [(3, 1), (-1, None), (float("nan"), None), (2, 2), (None, 0)])
def test_impossible_cuts(film, start, end):
    with pytest.raises(MediaError, match="start must be 0 or more, and before end"):
        load_clip(film, start=start, end=end)


def test_a_cut_behind_the_end(film):
    with pytest.raises(MediaError, match=r"film.mp4: start 9 s lies behind its end \(4.00 s\): choose"):
        load_clip(film, start=9)


def test_a_picture_that_ends_before_the_sound(tmp_path):
    path = make(tmp_path / "short.mp4", seconds=1, sounds=[tone(4, 44_100)])
    clip = load_clip(path)
    assert (clip.duration, clip.picture_until()) == pytest.approx((4.0, 1.0), abs=0.01)
    assert load_clip(path, start=1.2).frames is not None
    assert load_clip(path, start=2.0).frames is None
    path = make(tmp_path / "long.mp4", seconds=4, sounds=[tone(1, 44_100)])
    assert load_clip(path, start=2.0).waveform is None


def test_leaving_picture_or_sound_out(film):
    deaf, blind = load_clip(film, want_audio=False), load_clip(film, want_video=False)
    assert deaf.waveform is None
    assert blind.frames is None
    assert blind.frame_times.shape == (0,)
    assert deaf.duration == blind.duration


# --- the smallest, and album art ---


def test_one_frame_and_a_tenth_of_a_second(engine, tmp_path):
    one = load_clip(make(tmp_path / "one.mp4", times=[0.0]), choose=at(0, 0.05))
    assert numbers(one) == [0, 0]
    tenth = load_clip(make(tmp_path / "tenth.mp4", seconds=0.1, fps=30, sounds=[tone(0.1, 44_100)]))
    assert numbers(tenth) == [0, 1, 2]
    assert len(tenth.waveform) == pytest.approx(1600, abs=30)
    with_sound = load_clip(make(tmp_path / "pose.mp4", times=[0.0], sounds=[tone(3, 44_100)]))
    assert with_sound.picture_until() == with_sound.duration == pytest.approx(3.0, abs=0.01)


def test_album_art_is_no_video(tmp_path):
    mp3 = encoded(container="mp3", codec=None, sounds=[clicks(2, 44_100)], sound_codec="libmp3lame")
    info = probe(with_album_art(mp3))
    assert (info.has_video, info.has_audio, info.audio_codec) == (False, True, "mp3")
    assert load_clip(with_album_art(mp3)).frames is None


def test_names_are_free(tmp_path):
    for name in ("sähne mit 'ﬁlm' 映画 🎬.mp4", "a:b.mp4", "100%25.mp4", "no-suffix"):
        path = make(tmp_path / name, times=[0.0, 0.1], container="mp4")
        assert numbers(load_clip(path)) == [0, 1]
        assert numbers(load_clip(str(path))) == [0, 1]


# --- Clips ---


def memory(**changes) -> Clip:
    """A Clip of 4 frames and 2 s of noise."""
    wave = np.random.default_rng(0).uniform(-1, 1, 2 * SAMPLE_RATE).astype(np.float32)
    frames = np.stack([numbered(number) for number in range(4)])
    return Clip(**{"frames": frames, "frame_times": np.arange(4) / 2, "waveform": wave, "duration": 2.0}
                | {"source": "memory"} | changes)  # fmt: skip


def test_a_clip_passes_through(film, tmp_path):
    clip = memory()
    assert load_clip(clip, size=16, choose=at(0)) is clip
    part = load_clip(clip, start=0.7, end=1.6)
    assert numbers(part) == [1, 2, 3]
    assert part.frame_times == pytest.approx([0.0, 0.3, 0.8])
    assert np.array_equal(part.waveform, clip.waveform[11_200:25_600])
    assert load_clip(clip, want_video=False).frames is None
    assert load_clip(clip, want_audio=False).waveform is None
    replaced = load_clip(clip, audio=film)
    assert (replaced.duration, click_time(replaced.waveform)) == pytest.approx((4.0, 1.0), abs=0.01)
    with pytest.raises(MediaError, match="memory: start 5 s lies behind its end"):
        load_clip(clip, start=5)


def test_probe_of_a_clip():
    info = probe(memory())
    assert (info.duration, info.has_video, info.has_audio, info.width, info.height) == (
        2.0,
        True,
        True,
        80,
        48,
    )
    assert info.fps == pytest.approx(2.0)
    assert not probe(memory(frames=None, frame_times=[], waveform=None)).has_video


def test_on_screen_and_picture_end():
    clip = memory(frame_times=[0.5, 1.0, 1.5, 2.0], duration=9.0)
    assert clip.on_screen(np.array([0.0, 0.5, 0.99, 1.0, 8.0])).tolist() == [0, 0, 0, 1, 3]
    assert clip.picture_until() == pytest.approx(2.5)
    assert memory(picture_end=7.0).picture_until() == 7.0
    assert memory(frames=clip.frames[:1], frame_times=[0.0]).picture_until() == 2.0
    assert memory(frames=None, frame_times=[]).picture_until() == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": np.zeros((4, 8, 8), np.uint8)},
        {"frames": np.zeros((4, 8, 8, 3), np.float32)},
        {"frames": np.zeros((0, 8, 8, 3), np.uint8), "frame_times": []},
        {"frame_times": [0.0]},
        {"waveform": np.zeros((2, 9), np.float32)},
        {"waveform": np.zeros(9, np.int16)},
    ],
)
def test_malformed_clips_are_refused(changes):
    with pytest.raises(MediaError, match="^memory: "):
        memory(**changes)
