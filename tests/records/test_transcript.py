"""Transcripts: words become segments, segments become subtitles, and subtitles a part of the prompt."""

from __future__ import annotations

import json

import pysubs2
import pytest

from mllm.records.chat import validate_messages
from mllm.records.templates import with_subtitles
from mllm.records.transcript import Transcript, Word, segments_of


def spoken(text: str, start: float = 0.0, seconds: float = 0.3) -> list[Word]:
    """One word after another, without pause."""
    return [
        Word(round(start + number * seconds, 2), round(start + (number + 1) * seconds, 2), f" {word}")
        for number, word in enumerate(text.split())
    ]


WORDS = [*spoken("Grüß Gott, 你好! Who {really} is <i>it</i>?", 0.5), *spoken("It's me", 65.25)]
SAID = Transcript("de", segments_of(WORDS))


def test_a_segment_ends_with_a_sentence_before_a_pause_and_when_it_grows_too_long() -> None:
    assert [segment.text for segment in SAID.segments] == [
        "Grüß Gott, 你好!", "Who {really} is <i>it</i>?", "It's me",
    ]  # fmt: skip
    long = segments_of(spoken("never " * 40))
    assert all(len(segment.text) <= 80 for segment in long)
    assert sum(len(segment.words) for segment in long) == 40
    assert segments_of([]) == ()


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_read_back_say_the_same_at_the_same_times(form: str) -> None:
    read = pysubs2.SSAFile.from_string(SAID.written(form), format_=form)
    found = [(event.plaintext, event.start / 1000, event.end / 1000) for event in read]
    # Braces and tags mean something to pysubs2, and are none of a transcript's own.
    wanted = [(segment.text, segment.start, segment.end) for segment in SAID.segments]
    assert [found[0], found[2]] == [wanted[0], wanted[2]]
    assert found[1][1:] == wanted[1][1:]


def test_json_holds_every_word_and_text_every_line() -> None:
    found = json.loads(SAID.written("json"))
    assert found["language"] == "de"
    assert [tuple(word) for segment in found["segments"] for word in segment["words"]] == WORDS
    assert SAID.written("txt").splitlines() == [segment.text for segment in SAID.segments]
    assert SAID.line() == "9 words said (de)"


def test_nothing_said_is_nothing_written() -> None:
    assert Transcript().written("txt") == ""
    assert Transcript().line() == "nothing said"
    assert json.loads(Transcript().written("json")) == {"language": None, "segments": []}


def test_what_is_said_stands_behind_its_recording_before_the_question() -> None:
    content = [
        {"type": "video", "video": "a.mp4"},
        {"type": "image", "image": "b.png"},
        {"type": "audio", "audio": "silence.wav"},
        {"type": "text", "text": "Who?"},
    ]
    messages = validate_messages([{"role": "user", "content": content}])
    told = with_subtitles(messages, lambda part: SAID.lines if part.source == "a.mp4" else ())
    (turn,) = told
    block = "Subtitles:\n[00:00] Grüß Gott, 你好!\n[00:01] Who {really} is <i>it</i>?\n[01:05] It's me\n"
    assert turn.parts == [content[0], {"type": "text", "text": block}, *content[1:]]
    marked = with_subtitles(messages, lambda part: SAID.lines, "seconds")
    assert "65s It's me" in marked[0].parts[1].text
