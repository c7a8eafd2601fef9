"""Mixtures: what is made is what the answers say."""

from __future__ import annotations

import random

import numpy as np
import pytest
import soundfile

from data_prep.small import made, sounds
from mllm.errors import MllmError
from mllm.media.recording import SAMPLE_RATE


@pytest.fixture
def bark(tmp_path) -> str:
    """A sound of 0.3 s in a recording of 3 s."""
    wave = np.zeros(3 * SAMPLE_RATE, np.float32)
    times = np.arange(round(0.3 * SAMPLE_RATE))
    wave[SAMPLE_RATE : SAMPLE_RATE + len(times)] = 0.6 * np.sin(times * 0.3) * np.hanning(len(times))
    soundfile.write(tmp_path / "bark.wav", wave, SAMPLE_RATE)
    return str(tmp_path / "bark.wav")


def onsets(wave: np.ndarray) -> list[float]:
    """Times (s) at which it gets loud after 0.2 s of quiet."""
    loud = (
        np.flatnonzero(sounds.loudness(wave) > 0.1 * sounds.loudness(wave).max()) * sounds.FRAME / SAMPLE_RATE
    )
    return [float(time) for time, before in zip(loud, [-1.0, *loud[:-1]], strict=True) if time - before > 0.2]


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_sound_is_repeated_as_often_as_it_says(bark, times):
    wave = made.repeated(random.Random(times), bark, [0.4] * times)
    assert len(onsets(wave)) == times


def test_sounds_begin_at_their_times(bark):
    wave = made.sequence(random.Random(1), [(1, bark, 1.7), (4, bark, 1.7)], 6.0)
    assert len(wave) == 6 * SAMPLE_RATE
    assert onsets(wave) == pytest.approx([1, 4], abs=0.1)


def test_a_copy_differs_and_is_the_same_each_time(bark):
    first, again, other = (made.copy(random.Random(seed), bark, 0.06) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[: len(other)], other[: len(first)])
    assert np.abs(first).max() <= 1


def test_noise_is_quiet_where_silence_is_meant():
    assert not made.noise(random.Random(0), 1.0, 0.0, -0.5).any()
    assert np.abs(made.noise(random.Random(0), 1.0, 0.3, -0.5)).max() == pytest.approx(0.3, abs=1e-3)


def test_espeak_says_words_of_each_language():
    for text, voice in (("window", "en-us+m1"), ("Brücke", "de+f2"), ("نافذة", "ar+m4")):
        wave = made.say(random.Random(3), text, voice)
        assert 0.2 < len(wave) / SAMPLE_RATE < 2
        assert np.array_equal(wave, made.say(random.Random(3), text, voice))


def test_a_recording_without_sound_is_named(tmp_path):
    from data_prep.world.write import write_mp4

    write_mp4(tmp_path / "mute.mp4", np.zeros((8, 32, 32, 3), np.uint8), None)
    with pytest.raises(MllmError, match=r"mute.mp4: has no sound"):
        sounds.read(str(tmp_path / "mute.mp4"))
