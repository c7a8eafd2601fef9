"""Real recordings, from ordinary to odd: each gives a clip or one clear line. Needs MLLM_REAL_DATA."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mllm.errors import MediaError
from mllm.media import decode
from mllm.media.recording import SAMPLE_RATE, load_clip, probe
from mllm.media.scan import scan
from mllm.media.sources import Source
from mllm.media.windows import WindowSpec, load_windows

MEDIA = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".wav", ".mp3", ".flac", ".jpg", ".png"}
OTHERS = {".json", ".jsonl"}
SPEC = WindowSpec(window_seconds=2.0, frames_per_window=2, max_windows=3, image_size=64)


def _files(suffixes: set[str]) -> list[str]:
    root = Path(os.environ.get("MLLM_REAL_DATA", "nowhere"))
    folders = [
        folder for kind in ("video_*", "odd_*", "jfk", "llamafactory_demo") for folder in root.glob(kind)
    ]
    paths = [path for folder in sorted(folders) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path.relative_to(root)) for path in paths if path.suffix in suffixes]


@pytest.mark.parametrize("name", _files(MEDIA))
def test_every_recording_can_be_read(real_data, name):
    info = probe(real_data / name)
    windows, seen = load_windows(real_data / name, SPEC, end=3.0)
    assert seen.has_video == info.has_video
    assert seen.has_audio == info.has_audio
    assert info.has_video or info.has_audio
    assert 1 <= seen.windows <= 2
    assert seen.duration == pytest.approx(min(info.duration, 3.0), abs=1e-3)
    assert info.is_image == (Path(name).suffix in {".jpg", ".png"})
    for window in windows:
        assert window.frames is None or window.frames.shape == (2, 64, 64, 3)
        if window.waveform is not None:
            assert np.isfinite(window.waveform).all()
            assert 0 < np.abs(window.waveform).max() <= 1 or "silence" in name
    if info.has_video and not info.is_image:
        assert info.fps == pytest.approx(30, abs=25)


@pytest.mark.parametrize("name", _files(OTHERS))
def test_every_other_file_is_refused_in_a_line(real_data, name):
    with pytest.raises(MediaError) as caught:
        load_clip(real_data / name)
    assert (
        str(caught.value)
        == f"{real_data / name}: it is text, not a recording: give a video, sound or image file"
    )


@pytest.mark.parametrize("name", _files({".mp4", ".mov", ".mkv", ".avi"}))
def test_engines_and_ways_agree(real_data, name):
    """decord or not, jumping or not: the same frames."""
    source = Source(name, real_data / name)
    found = scan(source)
    picture = found.picture
    wanted = np.unique(np.linspace(1, min(len(picture.times) - 1, 70), 3).astype(int))
    jumped, real = decode._pyav_frames(source, picture, wanted, 64, None)
    assert np.array_equal(real, wanted)
    if picture.width < 700:
        walked = decode._pyav_frames(source, picture, np.arange(wanted[-1] + 1), 64, None)[0][wanted]
        assert np.array_equal(jumped, walked)
    if decode.suits_decord(found):
        frames = decode.FrameReader(source, found)._decord_frames(wanted, 64)
        difference = np.abs(frames.astype(int) - jumped).mean(axis=(1, 2, 3))
        assert difference.max() < 1, difference


def test_which_engine_reads_what(real_data):
    pytest.importorskip("decord")
    by_pyav = {
        "odd_torchcodec/av1_video.mkv",  # decord has no AV1
        "odd_torchcodec/nasa_13013.mp4",  # two video streams
        "odd_torchcodec/h264_10bits.mp4",
        "odd_torchcodec/h265_10bits.mp4",
        "odd_torchcodec/h265_video.mp4",  # open GOPs: decord jumps to the wrong frames
        "video_mmaction2/tests/data/test.avi",
    }
    by_decord = {"odd_decord/unordered.mov", "odd_decord/video_90.mov", "video_mmaction2/demo/demo.mp4"}
    for names, expected in ((by_pyav, False), (by_decord, True)):
        for name in names:
            assert decode.suits_decord(scan(Source(name, real_data / name))) == expected, name


def test_decord_alone_would_miss_frames_of_open_groups(real_data):
    """Why such recordings go to PyAV; if this fails, decord has learnt it."""
    pytest.importorskip("decord")
    source = Source("h265", real_data / "odd_torchcodec/h265_video.mp4")
    found = scan(source)
    wanted = np.array([0, 1, 3, 5, 7, 9])
    right = decode._pyav_frames(source, found.picture, wanted, 64, None)[0]
    frames = decode.FrameReader(source, found)._decord_frames(wanted, 64)
    assert np.abs(frames.astype(int) - right).mean() > 0.8


def _known(real_data: Path, name: str) -> tuple[np.ndarray, float]:
    rows = json.loads((real_data / "odd_torchcodec" / f"{name}.all_frames_info.json").read_text())
    times = np.array([float(row["pts_time"]) for row in rows])
    return times, times[-1] + float(rows[-1]["duration_time"])


def test_nasa_has_many_streams_and_known_times(real_data):
    path = real_data / "odd_torchcodec/nasa_13013.mp4"
    info = probe(path)
    assert (info.width, info.height, info.video_codec, info.audio_codec) == (480, 270, "h264", "aac")
    clip = load_clip(path, size=32)
    times, _ = _known(real_data, "nasa_13013.mp4.stream3")  # the larger picture
    _, end = _known(real_data, "nasa_13013.mp4.stream4")
    assert clip.frame_times == pytest.approx(times, abs=1e-5)
    assert clip.duration == pytest.approx(end, abs=1e-3)
    assert len(clip.waveform) / SAMPLE_RATE == pytest.approx(end, abs=1e-3)


def test_mp3_and_wav_have_known_lengths(real_data):
    for name in ("nasa_13013.mp4.audio.mp3", "nasa_13013.mp4.audio_44100.mp3"):
        times, end = _known(real_data, f"{name}.stream0")
        clip = load_clip(real_data / "odd_torchcodec" / name)
        assert len(clip.waveform) / SAMPLE_RATE == pytest.approx(end - times[0], abs=0.002)
    waves = [load_clip(real_data / "odd_torchcodec" / f"sine_mono_{kind}.wav").waveform for kind in
             ("s16", "s32", "s32_44100", "s32_8000")]  # fmt: skip
    assert [len(wave) for wave in waves] == [4 * SAMPLE_RATE] * 4
    for wave in waves[1:]:
        assert np.corrcoef(waves[0], wave)[0, 1] > 0.999


def test_rotated_pictures_stand_upright(real_data):
    straight, turned = (load_clip(real_data / "odd_decord" / f"video_{angle}.mov") for angle in (0, 90))
    assert probe(real_data / "odd_decord/video_90.mov").rotation == 90
    assert (straight.frames.shape, turned.frames.shape) == ((3, 320, 568, 3), (3, 568, 320, 3))
    # Two shots of one keyboard: once upright, the light of both comes from above.
    for clip in (straight, turned):
        rows = clip.frames[0].mean(axis=(1, 2))
        assert rows[: len(rows) // 3].mean() > 1.15 * rows[-len(rows) // 3 :].mean()


def test_unordered_packets_and_six_channels(real_data):
    clip = load_clip(real_data / "odd_decord/unordered.mov")
    assert clip.frame_times == pytest.approx([0, 1 / 32, 2 / 32, 3 / 32])
    bunny = load_clip(real_data / "video_scikit/bigbuckbunny.mp4", size=32, want_video=False)
    assert (len(bunny.waveform), bunny.duration) == (84_992, pytest.approx(5.312))


@pytest.mark.parametrize("name", ["video_scikit/bikes.mp4", "video_languagebind/assets/video/0.mp4"])
def test_a_truncated_recording_shows_what_there_is(real_data, name):
    data = (real_data / name).read_bytes()
    half = data[: len(data) // 2]
    if data.index(b"moov") > len(half):
        with pytest.raises(MediaError, match=r"index \(moov\) is missing"):
            load_clip(half)
        return
    clip = load_clip(half, size=32)
    assert 1 < clip.duration < 9
    assert len(clip.frames) > 20


def test_threads_read_the_same(real_data):
    """vLLM reads media in several threads."""
    paths = [
        real_data / "video_videollama/examples/boat.mp4",
        real_data / "odd_torchcodec/nasa_13013.mp4",
    ] * 4
    with ThreadPoolExecutor(4) as pool:
        prints = list(pool.map(lambda path: load_clip(path, size=32, end=1.0).digest(), paths))
    assert len(set(prints)) == 2
