"""Alignment of speech and transcripts: files, lines and speech, words, texts without times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.world.voice import say
from mllm.errors import ConfigError, MediaError, RecordError
from mllm.media.clip import Clip
from mllm.records.transcript import Transcript, Word, segments_of
from mllm.search.alignment.align import Settings, align
from mllm.search.alignment.words import read_along, read_script, word_events, word_vectors, words_in
from tests.sounding import bursts, sounding

TEXT = (
    "we were five men on the boat that morning",
    "nobody had slept and the coffee was cold",
    "then the engine stopped without a sound",
    "my brother looked at the sky for a long time",
    "and said that we should turn back now",
)
STARTS = (0.8, 7.3, 12.1, 20.6, 24.9)  # s
SLOW = 0.35  # s a word


def spoken(late: float = 0.0) -> list[Word]:
    """The words of TEXT as a transcriber hears them."""
    words = []
    for start, line in zip(STARTS, TEXT, strict=True):
        for number, word in enumerate(line.split()):
            at = start + late + SLOW * number
            words.append(Word(round(at, 2), round(at + 0.3, 2), f" {word}"))
    return words


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Word]:
    """What the transcriber says, whatever it hears; tests change it."""
    words = spoken()

    class Heard:
        def transcribe(self, source) -> Transcript:
            return Transcript("en", segments_of(words))

    monkeypatch.setattr(Settings, "transcriber", Heard())
    return words


def subtitles(path: Path, late: float = 0.0, texts: tuple[str, ...] = TEXT) -> Path:
    cues = []
    for start, text in zip(STARTS, texts, strict=False):
        end = start + SLOW * len(text.split())
        times = " --> ".join(f"00:00:{one + late:06.3f}".replace(".", ",") for one in (start, end))
        cues.append(f"{len(cues) + 1}\n{times}\n{text}\n")
    path.write_text("\n".join(cues), "utf-8")
    return path


def silence() -> Clip:
    return sounding(bursts(30), "talk")


def test_lines_are_aligned_with_speech(tmp_path: Path) -> None:
    """Each line as a real voice that says "seven" for as long as it lasts."""
    word = say("train", "seven", "en-us", "calm", 0)
    sound = np.random.default_rng(0).normal(0, 1e-3, 70 * 16_000).astype(np.float32)
    cues = []
    for number, start in enumerate([2.0, 9.5, 13.2, 25.0, 28.4, 39.9, 47.0, 50.1, 61.3]):
        said = np.tile(word, 1 + number % 3)
        sound[round(start * 16_000) :][: len(said)] += said
        begin, end = start + 1.4, start + 1.4 + len(said) / 16_000 + 0.3  # they stay for longer than is said
        cues.append(f"{number}\n00:00:{begin:06.3f} --> 00:00:{end:06.3f}\nseven\n")
    file = tmp_path / "late.vtt"
    file.write_text("WEBVTT\n\n" + "\n".join(cues))
    found = align(sounding(sound, "talk"), file)
    assert found.offset == pytest.approx(1.4, abs=0.2)
    assert not found.unsure
    assert found.features == "speech"
    with pytest.raises(MediaError, match="hiss: nobody speaks in it"):
        align(sounding(sound[: 16_000 * 2], "hiss"), file)


@pytest.mark.parametrize("method", ["dtw", "attention", "hybrid"])
def test_words_are_aligned_with_words(heard: list[Word], tmp_path: Path, method: str) -> None:
    file = subtitles(tmp_path / "a.srt", late=0.9)
    found = align(silence(), file, Settings(level="event", method=method))
    assert found.offset == pytest.approx(0.9, abs=0.1)
    assert found.matched > 0.8 * len(heard)
    assert not found.unsure


def test_words_of_another_text_are_unsure(heard: list[Word], tmp_path: Path) -> None:
    file = subtitles(tmp_path / "a.srt", texts=("please fasten your seat belts", "thank you", "keep left"))
    assert align(silence(), file, Settings(level="event")).unsure
    heard.clear()
    with pytest.raises(MediaError, match="talk: 0 events are too few to align"):
        align(silence(), file, Settings(level="event"))


def test_a_text_without_times_gets_them(heard: list[Word], tmp_path: Path) -> None:
    file = tmp_path / "script.txt"
    file.write_text("\n".join(["The Boat (a story)", *TEXT]))
    found = align(silence(), file)
    lines = found.lines
    assert lines[0] == {"text": "The Boat (a story)", "start": None, "end": None}
    assert [line["start"] for line in lines[1:]] == list(STARTS)
    assert lines[1]["end"] == pytest.approx(STARTS[0] + SLOW * 8 + 0.3)
    assert (found.line, found.offset, found.drift) == (None, None, None)
    assert not found.unsure
    told = json.loads(json.dumps(found.as_dict()))
    assert told["matched"] == len(heard)
    assert told["path"][0] == [STARTS[0], 4]  # behind the four words of the title
    assert "offset" not in told


def test_words_that_are_misheard_or_missing_still_fit(heard: list[Word], tmp_path: Path) -> None:
    file = tmp_path / "script.txt"
    file.write_text("\n".join(TEXT))
    script = read_script(file)
    words = [{"start": one.start, "end": one.end, "text": one.text} for one in spoken()]
    words[6]["text"] = " boats"
    del words[12:20]
    reading = read_along(script, words)
    assert reading.lines[0]["start"] == STARTS[0]
    assert reading.share > 0.7
    assert read_along(script, []).share == 0
    other = [
        word | {"text": text}
        for word, text in zip(words, ["lorem", "ipsum", "dolor", "sit", "amet"] * 8, strict=False)
    ]
    assert read_along(script, other).share < 0.2
    heard[:] = heard[:3]
    assert align(silence(), file).unsure


def test_lines_of_the_shared_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm.search.embedder import Embedder
    from tests.tiny import tiny

    monkeypatch.setattr(Settings, "embedder", Embedder(*tiny()))
    found = align(silence(), subtitles(tmp_path / "a.srt"), Settings(level="semantic"))
    assert found.features == "space"
    assert found.unsure  # random weights know nothing


def test_scripts_in_every_form(tmp_path: Path) -> None:
    timed = read_script(subtitles(tmp_path / "a.srt"))
    assert timed.timed
    assert timed.lines[1] == {"text": TEXT[1], "start": 7.3, "end": pytest.approx(10.1)}
    transcript = Transcript("en", segments_of(spoken()))
    (tmp_path / "a.json").write_text(transcript.written("json"))
    assert read_script(tmp_path / "a.json").lines[0]["text"] == TEXT[0]
    (tmp_path / "a.txt").write_text("\ufeffeins\n\n  zwei  drei \n***\n", "utf-8")
    plain = read_script(tmp_path / "a.txt")
    assert (plain.timed, [line["text"] for line in plain.lines]) == (False, ["eins", "zwei drei"])
    assert plain.words() == [(0, "eins"), (1, "zwei"), (1, "drei")]


def test_scripts_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        read_script(tmp_path / "none.srt")
    for name, content, problem in (
        ("empty.txt", b"\n \n", "empty.txt: no line of text in it"),
        ("latin.txt", "Gespräch".encode("latin-1"), "latin.txt: byte 5 is not UTF-8: save it as UTF-8"),
        ("a.json", b'{"text": "a"}', "a.json: no transcript in JSON"),
        ("b.json", b"{", "b.json: no transcript in JSON"),
        ("c.srt", b"just text", "c.srt: no cue in it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordError, match=problem):
            read_script(tmp_path / name)
    (tmp_path / "a.txt").write_text("a b c")
    with pytest.raises(ConfigError, match="a.txt has no times: align it at --level event"):
        align(silence(), tmp_path / "a.txt", Settings(level="frame"))
    with pytest.raises(ConfigError, match="a.txt: a transcript comes second"):
        align(tmp_path / "a.txt", silence())
    with pytest.raises(ConfigError, match="only sound-transcript can be aligned"):
        align(silence(), tmp_path / "a.txt", Settings(between="sound-sound"))


def test_words_stand_where_their_letters_do() -> None:
    events = word_events("a", [{"text": "ab cd ef gh", "start": 1.0, "end": 2.1}], 3.0)
    assert events.times.tolist() == pytest.approx([1.0, 1.3, 1.6, 1.9])
    assert words_in("安全 mat.") == [("安", 0.0), ("全", pytest.approx(1 / 6)), ("mat", 0.5)]
    vectors = word_vectors(["coffee", "coffees", "engine"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > 0.6
    assert vectors[0] @ vectors[2] < 0.3
