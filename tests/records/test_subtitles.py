"""Subtitle files as people have them, read by pysubs2."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import RecordError
from mllm.records.subtitles import subtitle_lines


def read(text: str, name: str = "a.srt") -> list[tuple[float, float, str]]:
    return [(line["start"], line["end"], line["text"]) for line in subtitle_lines(Path(name), text)]


def test_a_cue_without_a_blank_line_before_the_next_ends_all_the_same() -> None:
    lines = "1\n00:00:01,000 --> 00:00:02,000\nHi.\n2\n00:00:03,000 --> 00:00:04,000\nYou\nthere\n"
    assert read(lines) == [(1, 2, "Hi."), (3, 4, "You there")]
    assert read(lines.replace("\n2\n", "\n")) == read(lines)  # nor a number
    assert read(lines.replace("\n", "\r\n")) == read(lines)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("00:00:03,5", 3.5),
        ("00:00:03,05", 3.05),
        ("00:00:03.500", 3.5),
        ("0:0:3,500", 3.5),
        ("00:00:03", 3),
        ("00:03,250", 3.25),
        ("01:00:03,000", 3603),
        ("00:00:03,123456", 3.123),
    ],
)
@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_times_as_people_write_them(name: str, time: str, seconds: float) -> None:
    head = "WEBVTT\n\n" if name == "a.vtt" else "1\n"
    ((start, _, text),) = read(f"{head}{time} --> 02:00:00,000\nHi.\n", name)
    assert (start, text) == (seconds, "Hi.")


def test_words_stay_and_markup_goes() -> None:
    lines = (
        "1\n00:00:01,000 --> 00:00:02,000 X1:10\n<i>How</i> many?\n{\\an8}A <font color=red>lot</font>:\n42\n"
    )
    assert read(lines) == [(1, 2, "How many? A lot: 42")]
    assert read("1\n00:00:01,000 --> 00:00:02,000\ngo --> there & back\n")[0][2] == "go --> there & back"


def test_what_webvtt_has_beside_its_cues_is_not_said() -> None:
    text = """WEBVTT - a title

NOTE nobody says this
nor this

STYLE
::cue { color: red }

intro
00:01.500 --> 00:02.000 align:start position:10%
<v Roger>Hello &amp; <c.red>bye</c>

NOTE 00:00:02.000 --> not a cue

3f2a-uuid
00:00:03.000 --> 00:00:04.000
- One
- <00:00:03.500>Two
00:00:05.000 --> 00:00:06.000
no blank line
"""
    assert read(text, "a.vtt") == [
        (1.5, 2, "Hello & bye"),
        (3, 4, "- One - Two"),
        (5, 6, "no blank line"),
    ]
    assert read(text, "really_webvtt.srt") == read(text, "a.vtt")


def test_substation_dialogue_is_said_comments_and_drawings_are_not() -> None:
    text = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,for translators
Dialogue: 0,0:00:02.50,0:00:03.00,Default,,0,0,0,,{\\i1}Hi{\\i0}, you\\Nthere
Dialogue: 0,0:00:01.50,0:00:03.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1{\\p0}
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,First.
"""
    assert read(text, "a.ass") == [(1, 2, "First."), (2.5, 3, "Hi, you there")]


def test_empty_files_say_nothing_and_others_are_named() -> None:
    assert read("") == read("WEBVTT\n\n", "a.vtt") == []
    with pytest.raises(RecordError, match=r"^a.srt: no cue in it, such as '00:00:01,000 --> 00:00:02,500'"):
        read("What is this?")
    with pytest.raises(RecordError, match=r"^a.srt line 2: '00:00:01,000 --> x' are no times of a cue"):
        read("1\n00:00:01,000 --> x\nHi.\n")


def test_lines_that_were_ended_twice() -> None:
    lines = "1\n00:00:01,000 --> 00:00:02,000\nHi.\n\n2\n00:00:03,000 --> 00:00:04,000\nYou\n"
    assert read(lines.replace("\n", "\r\r\n")) == [(1, 2, "Hi."), (3, 4, "You")]


def test_a_text_may_begin_behind_its_times() -> None:
    lines = "1\n00:00:01,000 --> 00:00:02,000 Hi you\n\n2\n00:00:03,000 --> 00:00:04,000 X1:10 Y1:20\nthere\n"
    assert [text for _, _, text in read(lines)] == ["Hi you", "there"]


def test_substation_fields_in_another_order_are_refused() -> None:
    events = "[Events]\nFormat: Start, End, Text\nDialogue: 0:00:01.00,0:00:02.00,a\n"
    text = f"[Script Info]\n\n[V4+ Styles]\n\n{events}"
    with pytest.raises(RecordError, match=r"^a.ass: events with Start, End, Text: only Layer, Start, End"):
        read(text, "a.ass")
