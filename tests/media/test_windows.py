"""Windows: where they lie, what they show, what they hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.errors import MediaError
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE, load_clip
from mllm.media.windows import Seen, WindowSpec, cut, load_windows, time_mark
from tests.media_files import clicks, make, number_of, numbered, tone

SPEC = WindowSpec(window_seconds=2.0, frames_per_window=4, max_windows=3, image_size=40)


def memory(
    seconds: float = 6.0, fps: float = 10.0, sound: float | None = None, size: int = 40, **options
) -> Clip:
    """A Clip whose frames carry their numbers and whose samples are their own times."""
    count = round(seconds * fps)
    frames = np.stack([numbered(number, size, size) for number in range(count)])
    length = round((seconds if sound is None else sound) * SAMPLE_RATE)
    waveform = (np.arange(length) / SAMPLE_RATE / 100).astype(np.float32)
    duration = max(seconds, length / SAMPLE_RATE)
    return Clip(frames, np.arange(count) / fps, waveform if length else None, duration, "memory", **options)


def numbers(window) -> list[int]:
    return [number_of(frame) for frame in window.frames]


@pytest.mark.parametrize(
    ("duration", "starts"),
    [
        (0.0, [0]),
        (0.1, [0]),
        (2.0, [0]),
        (2.09, [0]),  # 5 % of a window more is no new window
        (2.2, [0, 2]),
        (6.0, [0, 2, 4]),
        (6.11, [0, 4, 6]),
        (10.0, [0, 4, 8]),
        (600.0, [0, 300, 598]),
    ],
)
def test_starts(duration, starts):
    assert SPEC.starts(duration) == pytest.approx(starts)


def test_starts_with_one_window_or_no_bound():
    assert WindowSpec(2.0, 4, 1, 40).starts(100) == [0]
    assert len(WindowSpec(2.0, 4, 10**12, 40).starts(100)) == 50


@given(st.floats(0, 1e5), st.floats(0.1, 60), st.integers(1, 16), st.integers(1, 64))
def test_windows_lie_on_the_grid_and_cover_evenly(duration, seconds, frames, most):
    spec = WindowSpec(seconds, frames, most, 40)
    starts = spec.starts(duration)
    places = np.array(starts) / seconds
    assert places == pytest.approx(np.round(places))
    assert 1 <= len(starts) <= most
    assert starts[0] == 0
    gaps = np.diff(np.round(places))
    assert (gaps >= 1).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    if most > 1:
        assert starts[-1] + 1.06 * seconds >= duration
    times = spec.frame_times(duration)
    assert times.shape == (len(starts), frames)
    assert (np.diff(times.ravel()) >= 0).all()
    assert (times >= np.array(starts)[:, None]).all()
    assert (times <= max(duration, 0)).all()


def test_frame_times_are_spread_over_what_a_window_holds():
    assert SPEC.frame_times(3.0).tolist() == [[0.25, 0.75, 1.25, 1.75], [2.125, 2.375, 2.625, 2.875]]
    assert SPEC.frame_times(0.0).tolist() == [[0, 0, 0, 0]]


def test_cut_picks_frames_by_time_and_slices_sound():
    first, second, third = cut(memory(5.0), SPEC)
    assert (first.start, first.end, third.start, third.end) == (0.0, 2.0, 4.0, 5.0)
    assert numbers(first) == [2, 7, 12, 17]
    assert numbers(third) == [41, 43, 46, 48]
    assert len(second.waveform) == 2 * SAMPLE_RATE
    assert second.waveform[0] == pytest.approx(0.02)
    assert len(third.waveform) == SAMPLE_RATE


def test_frames_chosen_for_windows_are_those_that_cut_picks(tmp_path):
    path = make(tmp_path / "v.mp4", times=np.cumsum([0, 0.1, 0.4, 0.9, 0.05, 1.3, 0.2, 0.6, 1.1]), fps=20)
    windows, _ = load_windows(path, SPEC)
    whole = cut(load_clip(path, size=40), SPEC)
    assert [numbers(window) for window in windows] == [numbers(window) for window in whole]
    assert len(windows) == 3


def test_a_window_without_enough_sound_has_none():
    assert [window.waveform is None for window in cut(memory(6.0, sound=2.09), SPEC)] == [False, True, True]
    assert len(cut(memory(6.0, sound=2.2), SPEC)[1].waveform) == 3200
    assert all(window.waveform is None for window in cut(memory(6.0, sound=0), SPEC))
    short = cut(memory(0.05, fps=40), SPEC)[0]
    assert len(short.waveform) == 800  # shorter than the least, but all there is


def test_a_window_after_the_picture_has_none():
    has = [window.frames is not None for window in cut(memory(1.6, sound=6.0), SPEC)]
    assert has == [True, True, False]  # the last frame is held for half a second
    assert [window.frames is not None for window in cut(memory(1.4, sound=6.0), SPEC)] == [True, False, False]
    still = memory(0.1, sound=6.0)
    assert [numbers(window) for window in cut(still, SPEC)] == [[0] * 4] * 3


def test_a_long_recording_is_covered_evenly():
    windows = cut(memory(20.0), SPEC)
    assert [window.start for window in windows] == [0, 10, 18]
    assert numbers(windows[1])[0] == 102


def test_an_image_is_one_window():
    clip = Clip(numbered(7)[None], np.zeros(1), None, 0.0, "still", is_image=True)
    (window,) = cut(clip, SPEC)
    assert window.frames.shape == (4, 40, 40, 3)
    assert numbers(window) == [7] * 4
    assert (window.start, window.end, window.waveform) == (0.0, 0.0, None)
    assert load_windows(clip, SPEC)[1].line() == "1 window, 4 frames, 0.0 of 0.0 s, picture, no sound"
    (window,) = cut(Clip(None, np.zeros(0), None, 0.0, "still", is_image=True), SPEC)
    assert window.frames is None


def test_frames_of_another_size_are_resized():
    windows = cut(memory(2.0, size=90), SPEC)
    assert windows[0].frames.shape == (4, 40, 40, 3)
    assert numbers(windows[0]) == [2, 7, 12, 17]


def test_load_windows_reports_what_it_saw(tmp_path):
    path = make(tmp_path / "a.mp4", seconds=6, sounds=[clicks(6, 44_100, [2.5])])
    windows, seen = load_windows(path, SPEC)
    assert seen.line() == "3 windows, 12 frames, 6.0 of 6.0 s, picture and sound"
    assert json.loads(json.dumps(seen.as_dict())) == {
        "windows": 3,
        "frames": 12,
        "seconds": 6.0,
        "duration": 6.0,
        "has_video": True,
        "has_audio": True,
    }
    assert np.argmax(np.abs(windows[1].waveform) > 0.4) == pytest.approx(0.5 * SAMPLE_RATE, abs=80)
    assert windows[0].frames.shape == (4, 40, 40, 3)
    assert (
        load_windows(path, SPEC, start=1.0, end=2.0)[1].line().startswith("1 window, 4 frames, 1.0 of 1.0 s")
    )
    assert load_windows(path, SPEC, want_audio=False)[1].line().endswith("s, picture, no sound")
    assert (
        load_windows(path, SPEC, want_video=False)[1]
        .line()
        .endswith("0 frames, 6.0 of 6.0 s, sound, no picture")
    )


def test_pieces_of_a_recording_equal_its_windows(tmp_path):
    """The index reads long recordings piece by piece."""
    path = make(tmp_path / "a.mkv", seconds=8, options={"g": "15"}, sounds=[tone(8, 44_100)])
    spec = WindowSpec(2.0, 4, 100, 40)
    whole, _ = load_windows(path, spec)
    pieces = [load_windows(path, spec, start=s, end=s + 4.0)[0] for s in (0.0, 4.0)]
    assert [numbers(window) for piece in pieces for window in piece] == [numbers(window) for window in whole]


def test_a_clip_with_neither_picture_nor_sound():
    seen = Seen(1, 0, 2.0, 2.0, False, False)
    assert seen.line() == "1 window, 0 frames, 2.0 of 2.0 s, neither picture nor sound"
    (window,) = cut(Clip(None, np.zeros(0), None, 2.0, "nothing"), SPEC)
    assert (window.frames, window.waveform) == (None, None)


def test_load_windows_raises_clearly(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        load_windows(tmp_path / "no.mp4", SPEC)


@pytest.mark.parametrize(
    ("seconds", "mark"),
    [
        (0, "[00:00]"),
        (1.999, "[00:01]"),
        (2.0, "[00:02]"),
        (61.2, "[01:01]"),
        (6000, "[100:00]"),
        (-1, "[00:00]"),
    ],
)
def test_time_mark(seconds, mark):
    assert time_mark(seconds) == mark


def test_time_mark_in_seconds():
    assert [time_mark(seconds, "seconds") for seconds in (-1, 1.999, 64.2)] == ["0s", "1s", "64s"]


def test_time_mark_forgives_rounding():
    assert time_mark(0.1 * 3 * 10) == "[00:03]"
    assert time_mark(2.9999999) == "[00:03]"
