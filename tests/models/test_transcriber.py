"""Speech as text: a model with random weights for the mechanics, Whisper base for what it hears."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.world.voice import say
from mllm.errors import ConfigError, MediaError
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE
from mllm.media.speech import into_speech
from mllm.models.transcriber import PIECE, Transcriber, _Heard, language_code, pieces_of
from mllm.records.transcript import Transcript
from tests.bases import real_base
from tests.media_files import make, tone


@pytest.fixture(scope="module")
def tiny(tiny_whisper: Path) -> Transcriber:
    return Transcriber.from_pretrained(tiny_whisper)


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """Three words in 2.5 s."""
    words = [say("train", word, "en-us", "calm", 0) for word in ("yes", "seven", "no")]
    return np.concatenate([part for word in words for part in (word, np.zeros(3000, np.float32))])


def test_silence_noise_and_tones_have_no_words(tiny: Transcriber) -> None:
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(time)) * 0.1
    for sound in (np.zeros_like(time), noise, 0.3 * np.sin(2 * np.pi * 440 * time), time[:100]):
        assert tiny.hear(sound.astype(np.float32)) == Transcript()


def test_a_recording_without_sound_has_no_words_and_an_unreadable_one_is_an_error(
    tiny: Transcriber, tmp_path: Path
) -> None:
    assert tiny.transcribe(make(tmp_path / "mute.mp4", seconds=1)) == Transcript()
    assert tiny.transcribe(make(tmp_path / "ünï 声.mp4", seconds=1, sounds=[tone(1, 44_100)])) == Transcript()
    with pytest.raises(MediaError, match="no such file"):
        tiny.transcribe(tmp_path / "missing.mp4")


def test_words_are_in_order_within_the_recording(tiny: Transcriber, voice: np.ndarray, heard_once) -> None:
    said = tiny.hear(voice)
    assert said.language in ("en", "de")
    times = [time for segment in said.segments for word in segment.words for time in word[:2]]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= len(voice) / SAMPLE_RATE
    assert tiny.hear(voice.copy()) is said, "a recording is heard once"


def test_times_count_from_where_the_recording_is_shown(
    tiny: Transcriber, voice: np.ndarray, heard_once
) -> None:
    sound = np.concatenate([np.zeros(5 * SAMPLE_RATE, np.float32), voice])
    clip = Clip(None, np.zeros(0), sound, len(sound) / SAMPLE_RATE, "in memory")
    whole, cut = tiny.transcribe(clip), tiny.transcribe(clip, start=4.0)
    assert whole.segments[0].start - cut.segments[0].start == pytest.approx(4.0, abs=0.3)


def test_speech_becomes_pieces_that_whisper_hears_at_once() -> None:
    speech = [(1.0, 9.0), (10.0, 20.0), (21.0, 34.0), (60.0, 61.0)]
    first, second, third = pieces_of(speech, 62 * SAMPLE_RATE)
    assert (first.speech, second.speech, third.speech) == (speech[:2], speech[2:3], speech[3:])
    assert max(piece.seconds for piece in (first, second, third)) <= PIECE
    assert first.start == round(0.8 * SAMPLE_RATE)
    assert pieces_of([], 100) == []


@pytest.mark.parametrize(
    ("word", "moved"),
    [
        ((0.5, 1.5), (1.0, 1.5)),  # begins in silence
        ((1.5, 3.0), (1.5, 2.0)),  # ends in silence
        ((1.5, 4.5), (1.5, 4.5)),  # silence within
        ((0.2, 0.4), (1.0, 1.0)),
        ((2.1, 2.4), (2.0, 2.0)),
        ((3.9, 4.0), (4.0, 4.0)),
    ],
)
def test_words_do_not_reach_into_silence(word: tuple, moved: tuple) -> None:
    assert into_speech(*word, speech=[(1.0, 2.0), (4.0, 5.0)]) == moved


def test_a_text_that_repeats_itself_comes_last() -> None:
    repeated, unsure, fair = (
        _Heard([1], likelihood, compression, np.zeros(2))
        for likelihood, compression in ((-0.1, 9.0), (-2.0, 1.0), (-0.5, 1.2))
    )
    assert max(repeated, unsure, fair, key=_Heard.rank) is fair
    assert max(repeated, unsure, key=_Heard.rank) is unsure
    assert [heard.bad for heard in (repeated, unsure, fair)] == [True, True, False]


def test_languages_are_codes_or_names(tiny_whisper: Path) -> None:
    assert (language_code("en"), language_code("German")) == ("en", "de")
    with pytest.raises(ConfigError, match="klingon: Whisper knows no such language"):
        language_code("klingon")
    with pytest.raises(ConfigError, match="knows no language 'fr': give one of de en"):
        Transcriber.from_pretrained(tiny_whisper, "french")


def test_what_is_no_whisper_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="no Whisper model can be loaded .*: give whisper-base"):
        Transcriber.from_pretrained(tmp_path)


# --- what Whisper base hears ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base() -> Transcriber:
    return Transcriber.from_pretrained(real_base("whisper-base"))


@pytest.mark.slow
def test_words_and_times_of_real_speech(base: Transcriber, real_data: Path) -> None:
    said = base.transcribe(real_data / "jfk" / "jfk.flac")
    assert said.language == "en"
    assert said.text.lower().replace(",", "") == (
        "and so my fellow americans ask not what your country can do for you "
        "ask what you can do for your country."
    )
    times = {word.text.strip(" ,.").lower(): word.start for part in said.segments for word in part.words}
    assert times["americans"] == pytest.approx(1.5, abs=0.3)
    assert times["country"] == pytest.approx(9.9, abs=0.3)


@pytest.mark.slow
def test_most_words_lie_where_they_are_said(base: Transcriber, real_data: Path) -> None:
    english = Transcriber(base.model, base.tokenizer, base.extractor, language="en")
    rows = map(json.loads, (real_data / "real_grid" / "test.jsonl").read_text().splitlines())
    rows = [row for row in rows if row["task"] == "transcript"][:12]
    late = []
    for row in rows:
        said = english.transcribe(real_data / "real_grid" / row["messages"][0]["content"][0]["video"])
        found = {word.text.strip(" ,.").lower(): word for part in said.segments for word in part.words}
        late += [found[text].start - start for start, _, text in row["words"] if text in found]
    assert len(late) >= 2 * len(rows)
    assert np.mean(np.abs(late) < 0.3) > 0.8


@pytest.mark.slow
def test_german_is_known_and_written_down(base: Transcriber, real_data: Path) -> None:
    said = base.transcribe(real_data / "real_kerstin_de" / "audio" / "de_rhasspy-0064.opus")
    assert said.language == "de"
    assert "der Kampf relativ ausgeglichen" in said.text
