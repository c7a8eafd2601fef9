"""Alignment: offsets and drifts of made-up recordings, by every method and level, and when it is unsure."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mllm.errors import ConfigError, MediaError
from mllm.media.clip import Clip
from mllm.media.recording import open_recording
from mllm.search.alignment import features, paths
from mllm.search.alignment.align import Settings, align
from mllm.search.alignment.engine import Calibration, Search, align_sequences, overlap
from mllm.search.alignment.events import Events, paired
from mllm.search.alignment.features import frame_changes, log_mel, mel, motion
from mllm.search.alignment.fit import robust_line
from mllm.search.alignment.lags import correlation, parabola
from mllm.search.alignment.paths import METHODS
from mllm.search.alignment.picture import draw
from mllm.search.alignment.sequence import Sequence, high_passed
from tests.sounding import bursts, flashes, later, sounding
from tests.tiny import still

SOUND = bursts(24)


def aligned(first: np.ndarray, second: np.ndarray, **settings):
    return align(sounding(first, "a"), sounding(second, "b"), Settings(**settings))


@pytest.mark.parametrize("offset", [-7.123, 0.0, 0.24, 3.3])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_offset_of_a_late_copy_is_found_to_milliseconds(offset: float, noise: float) -> None:
    found = aligned(SOUND, later(SOUND, offset, noise=noise))
    assert found.offset == pytest.approx(offset, abs=0.004)
    assert found.drift == 0
    assert not found.unsure
    made = (found.between, found.level, found.features, found.method)
    assert made == ("sound-sound", "frame", "mel", "dtw")


def test_the_other_way_round_it_is_early() -> None:
    late = later(SOUND, 1.5)
    assert aligned(late, SOUND).offset == pytest.approx(-1.5, abs=0.004)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_drift_and_a_path_that_follows_it(method: str) -> None:
    sound = bursts(60, seed=1)
    found = aligned(sound, later(sound, 2.0, drift=800), method=method)
    assert found.drift == pytest.approx(800, abs=40)
    assert found.offset == pytest.approx(2.0, abs=0.004)
    first, second = found.path.T
    assert np.all(np.diff(found.path, axis=0) >= 0)
    off = np.abs(second - (2.0 + first * 1.0008))
    assert np.quantile(off, 0.95) < 0.045  # a step of the path


@pytest.mark.parametrize("method", METHODS)
def test_a_pause_in_the_middle_bends_the_path_within_the_band(method: str) -> None:
    sound = bursts(40, seed=2)
    cut = 20 * 16_000
    paused = np.concatenate([sound[:cut], np.zeros(6400, np.float32), sound[cut:]])  # 0.4 s
    path = aligned(sound, paused, method=method).path
    lags = path[:, 1] - path[:, 0]
    assert np.median(lags[path[:, 0] < 17]) == pytest.approx(0.0, abs=0.05)
    assert np.median(lags[path[:, 0] > 23]) == pytest.approx(0.4, abs=0.05)
    narrow = aligned(sound, paused, method="dtw", band=0.08).path
    assert np.ptp(narrow[:, 1] - narrow[:, 0]) < 0.2


def test_unrelated_sounds_are_unsure() -> None:
    for seed in range(3, 7):
        found = aligned(SOUND, bursts(20, seed))
        assert found.unsure, (seed, found.curve.lead, found.support)


def test_a_second_of_each_is_unsure_where_they_share_nothing() -> None:
    """As with `trim=1` in the tests of the BBC's audio-offset-finder: the copy is 12 s late."""
    late = later(SOUND, 12.26)
    assert aligned(SOUND[:16_000], late[:16_000]).unsure
    assert not aligned(SOUND, late).unsure


def test_silence_is_unsure_and_too_little_is_an_error() -> None:
    silent = np.zeros(5 * 16_000, np.float32)
    assert aligned(silent, silent).unsure
    assert aligned(SOUND, silent).unsure
    with pytest.raises(MediaError, match="b: 0.10 s is too short to align: give at least 0.5 s"):
        aligned(SOUND, SOUND[:1600])


def test_a_limit_keeps_the_offset_near() -> None:
    late = later(SOUND, 5.0)
    found = aligned(SOUND, late, limit=2.0)
    assert found.unsure
    assert np.abs(found.curve.offsets).max() <= 2.0


@pytest.mark.parametrize("late", [-0.4, 0.0, 0.24])
@pytest.mark.parametrize("level", ["frame", "event"])
def test_sound_that_is_late_against_its_picture(late: float, level: str) -> None:
    found = align(flashes(40, late), settings=Settings(level=level))
    assert found.offset == pytest.approx(late, abs=0.05)  # a frame takes 0.04 s
    assert not found.unsure
    assert found.between == "picture-sound"


def test_the_picture_of_one_recording_and_the_sound_of_another() -> None:
    picture = replace(flashes(30, late=0.2), waveform=None)
    found = align(picture, sounding(flashes(30, late=0.2).waveform))
    assert found.offset == pytest.approx(0.2, abs=0.05)
    named = align(flashes(30), flashes(30, late=0.3), Settings(between="picture-sound"))
    assert named.offset == pytest.approx(0.3, abs=0.05)


def test_events_of_two_sounds_are_paired() -> None:
    found = align(sounding(SOUND, "a"), sounding(later(SOUND, 1.25), "b"), Settings(level="event"))
    assert found.offset == pytest.approx(1.25, abs=0.02)
    assert found.matched > 0.6 * min(found.events)
    assert np.all(np.diff(found.path, axis=0) > 0)


def test_events_that_differ_or_lie_apart_are_no_pair() -> None:
    kinds = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    first = Events("a", np.array([1.0, 2.0, 3.0, 4.0]), kinds, 5.0)
    second = Events("b", np.array([1.05, 2.0, 3.6, 4.0]), kinds[[0, 0, 0, 1]], 5.0)
    line = np.array([[0.0, 0.0], [5.0, 5.0]])
    assert paired(first, second, line).tolist() == [[0, 0], [3, 3]]
    with pytest.raises(MediaError, match="a: 2 events are too few to align"):
        Events("a", first.times[:2], kinds[:2], 5.0)


def test_the_shared_space_aligns_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm.search.embedder import Embedder
    from tests.tiny import tiny

    monkeypatch.setattr(Settings, "embedder", Embedder(*tiny()))
    sound = bursts(120, seed=5)
    late = later(sound, 4.0)
    found = align(sounding(sound, "a"), sounding(late, "b"), Settings(level="semantic"))
    assert found.offset == pytest.approx(4.0, abs=0.3)
    assert found.features == "space"
    assert align(flashes(12), settings=Settings(level="semantic")).unsure  # random weights know nothing


def test_json_and_picture(tmp_path) -> None:
    found = aligned(SOUND, later(SOUND, 0.5))
    told = json.loads(json.dumps(found.as_dict()))
    assert told["offset"] == pytest.approx(0.5, abs=0.004)
    assert (told["unsure"], told["first"], told["level"]) == (False, "a", "frame")
    assert told["path"][0][1] - told["path"][0][0] == pytest.approx(0.5, abs=0.05)
    draw(found, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_aligned_is_said() -> None:
    sound = sounding(SOUND, "a")
    with pytest.raises(MediaError, match="a: no moving picture to align"):
        align(sound)
    with pytest.raises(MediaError, match="image 0: no moving picture to align"):
        align(still(), sound)
    with pytest.raises(MediaError, match="flashes: no sound to align"):
        align(sound, replace(flashes(3), waveform=None))
    with pytest.raises(ConfigError, match="no method 'dwt': choose from dtw, attention, hybrid"):
        align(sound, sound, Settings(method="dwt"))
    with pytest.raises(ConfigError, match="no level 'frames': choose from frame, event, semantic"):
        align(sound, sound, Settings(level="frames"))
    with pytest.raises(
        ConfigError, match="--features space: between sound-sound at level frame there are: mel, onset"
    ):
        align(sound, sound, Settings(features="space"))
    with pytest.raises(ConfigError, match="only sound-sound or picture-sound can be aligned"):
        align(sound, sound, Settings(between="sound-transcript"))
    with pytest.raises(ConfigError, match="band is -1 s: give a number above 0"):
        Search(band=-1)
    with pytest.raises(ConfigError, match="limit is nan s"):
        Search(limit=float("nan"))
    with pytest.raises(MediaError, match="fewer than three offsets to choose from"):
        align(sound, sound, Settings(limit=0.001))
    assert Calibration(2.0, 1.0).confidence(2.0) == 0.5


# --- parts --------------------------------------------------------------------------------------------------


def test_mel_steps_stand_at_their_times() -> None:
    click = np.zeros(16_000, np.float32)
    click[63 * 128] = 1.0
    assert log_mel(click).mean(1).argmax() == 63
    assert mel(click, "click").rate == 125


def test_frames_change_when_they_appear_whichever_pieces_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = flashes(4, fps=12.5)
    with open_recording(clip) as recording:
        times, changes = frame_changes(recording)
        monkeypatch.setattr(features, "PIECE", 1.03)
        again = frame_changes(recording)
    assert times.tolist() == pytest.approx(clip.frame_times.tolist())
    greys = clip.frames[:, 0, 0, 0].astype(float)
    assert changes.tolist() == pytest.approx([0, *np.abs(np.diff(greys))])
    assert again[0].tolist() == pytest.approx(times.tolist())
    assert again[1].tolist() == pytest.approx(changes.tolist())


@pytest.mark.parametrize("fps", [12.5, 60.0])
def test_a_cut_is_not_missed_at_any_frame_rate(fps: float) -> None:
    frames = np.zeros((round(6 * fps), 8, 8, 3), np.uint8)
    cut = round(2.2 * fps)
    frames[cut:] = 200
    clip = Clip(frames, np.arange(len(frames)) / fps, None, 6.0, "cut")
    with open_recording(clip) as recording:
        moved = motion(recording)
    assert moved.vectors[:, 1].argmax() / 25 == pytest.approx(cut / fps, abs=0.01 + 1 / fps)


def test_correlation_is_the_sum_of_products_at_each_lag() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 2)), rng.normal(size=(7, 2))
    sums, lags = correlation(first, second)
    for total, lag in zip(sums, lags, strict=True):
        plain = sum(first[i] @ second[i + lag] for i in range(5) if 0 <= i + lag < 7)
        assert total == pytest.approx(plain)


def test_a_parabola_finds_the_peak_between_steps() -> None:
    steps = np.arange(7)
    assert parabola(-((steps - 3.3) ** 2), 3) == pytest.approx(0.3)
    assert parabola(np.zeros(7), 3) == 0
    assert parabola(-(steps**2), 0) == 0


def test_a_line_outlives_outliers_and_has_no_drift_without_evidence() -> None:
    rng = np.random.default_rng(0)
    times = np.linspace(0, 100, 50)
    offsets = 0.3 + 2e-4 * times + rng.normal(0, 1e-3, 50)
    offsets[::7] += 0.5
    line = robust_line(times, offsets, np.ones(50), 1e-3)
    assert line.drift == pytest.approx(200, abs=20)
    assert line.offset == pytest.approx(0.3, abs=2e-3)
    assert line.at(np.array([100.0]))[0] == pytest.approx(0.32, abs=2e-3)
    flat = robust_line(times, 0.3 + rng.normal(0, 1e-3, 50), np.ones(50), 1e-3)
    assert flat.drift == 0
    assert flat.error > 0
    assert robust_line(times[:3], offsets[:3], np.ones(3), 1e-3).error == np.inf


def test_attention_is_certain_where_a_window_fits_one_offset() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    first = Sequence("a", vectors, 25.0)
    second = replace(first, vectors=np.roll(vectors, 7, axis=0))
    soft, certain = paths.soft_lags(paths.attention_weights(first, second, 20)[1])
    assert np.allclose(soft[1:-1] - 20, 7, atol=0.1)
    assert certain[1:-1].min() > 0.9
    noise = replace(first, vectors=rng.normal(size=(400, 8)).astype(np.float32))
    assert np.median(paths.soft_lags(paths.attention_weights(first, noise, 20)[1])[1]) < 0.9


def test_sequences_are_cut_to_what_they_share() -> None:
    first = Sequence("a", np.ones((100, 1), np.float32), 10.0)
    second = Sequence("b", np.ones((80, 1), np.float32), 10.0, start=0.05)
    one, other = overlap(first, second, offset=3.05)
    assert (len(one), one.start, other.start) == (50, 0.0, 3.05)
    pooled = other.pooled(5)
    assert (len(pooled), pooled.rate, pooled.start) == (10, 2.0, pytest.approx(3.25))
    found = align_sequences(first, second)
    assert found.unsure  # nothing differs from anything


def test_high_passed_leaves_change_alone() -> None:
    values = np.arange(100.0)[:, None] * 2 + 5
    inner = high_passed(values, 11)[10:-10]
    assert np.allclose(inner, 0)
