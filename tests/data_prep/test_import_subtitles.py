"""Recordings with subtitles beside them become timed transcripts, a record for each stretch."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.importers.write import import_records
from mllm.errors import RecordError
from tests.data_prep.importing import asked, folder, medium, read

SRT = """1
00:01:47,250 --> 00:01:50,500
This blade has a <i>dark</i> past.

2
00:01:51,800 --> 00:01:55,800
It has shed
much innocent blood.

3
00:02:30,000 --> 00:02:31,500
[thunder]

4
00:02:40,000 --> 00:02:41,500
Thank you.
"""

ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Go\\Nnow
"""


def imported(tmp_path: Path, media: Path | None, *annotations: Path, **options):
    report = import_records("subtitles", annotations, media, tmp_path / "out", **options)
    return read(tmp_path / "out" / "records.jsonl"), report


def test_a_recording_and_its_subtitles(tmp_path: Path) -> None:
    media = folder(tmp_path, "films/sintel.mp4")
    (media / "films" / "sintel.srt").write_text(SRT)
    (first, second), report = imported(tmp_path, media)
    assert (first["task"], first["id"]) == ("transcript", "subtitles/sintel-0")
    assert first["answer"] == "This blade has a dark past. It has shed much innocent blood."
    assert "seen" not in asked(first)
    part = medium(first)
    assert part["video"].endswith("films/sintel.mp4")
    assert (part["start"], part["end"]) == (107.25, 115.8)
    assert first["words"] == [  # from where the cut begins
        [0.0, 3.25, "This blade has a dark past."],
        [4.55, 8.55, "It has shed much innocent blood."],
    ]
    assert (second["answer"], medium(second)["start"]) == ("Thank you.", 160.0)
    assert report.left_out == {"line that is no speech": 1}
    assert report.missing == []


@pytest.mark.parametrize("most", [10, 30])
def test_a_record_has_no_more_than_so_many_seconds(tmp_path: Path, most: int) -> None:
    media = folder(tmp_path, "a.wav")
    cues = [
        f"00:00:{second:02},000 --> 00:00:{second + 2:02},500\nat {second}\n" for second in range(0, 57, 3)
    ]
    (media / "a.srt").write_text("\n".join(cues))
    records, _ = imported(tmp_path, media, stretch=most)
    spans = [medium(record)["end"] - medium(record)["start"] for record in records]
    assert max(spans) <= most
    assert sum(len(record["words"]) for record in records) == 19
    assert len(records) == {10: 7, 30: 2}[most]


def test_the_language_in_a_name(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mp4", "b.flac")
    (media / "a.en.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n")
    (media / "a.de-DE.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHallo\n")
    (media / "b.flac.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nBonjour\n")
    records, report = imported(tmp_path, media)
    told = {record["answer"]: (record["id"], record.get("labels")) for record in records}
    assert told == {
        "Hello": ("subtitles/a.en-0", {"language": "en"}),
        "Hallo": ("subtitles/a.de-DE-0", {"language": "de-DE"}),
        "Bonjour": ("subtitles/b.flac-0", None),
    }
    assert report.noted == {"more subtitles of one recording: only those in its language say what is said": 1}


def test_what_players_write_behind_the_language(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mp4", "b.mp4")
    cue = "1\n00:00:01,000 --> 00:00:02,000\n"
    (media / "a.en.forced.srt").write_text(cue + "Hello\n")
    (media / "a.es-419.srt").write_text(cue + "Hola\n")
    (media / "b.sdh.srt").write_text(cue + "Hi\n")
    (media / "b.2.srt").write_text(cue + "Another\n")
    records, report = imported(tmp_path, media)
    told = {record["answer"]: (record.get("labels") or {}).get("language") for record in records}
    assert told == {"Hello": "en", "Hola": "es-419", "Hi": None, "Another": None}
    assert report.missing == ["b.2.mp4"]


def test_speech_between_brackets_stays(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mp4")
    lines = ["(laughs) Hi [door]", "[A] said hi (B)", "[door] (laughs)", "♪ la la ♪"]
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{line}\n" for n, line in enumerate(lines, start=1)]
    (media / "a.srt").write_text("\n".join(cues))
    (record,), report = imported(tmp_path, media)
    assert record["answer"] == "(laughs) Hi [door] [A] said hi (B)"
    assert report.left_out == {"line that is no speech": 2}


def test_recordings_of_one_name_keep_their_subtitles(tmp_path: Path) -> None:
    media = folder(tmp_path, "train/a.mp4", "test/a.mp4")
    for split in ("train", "test"):
        (media / split / "a.srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{split}\n")
    records, _ = imported(tmp_path, media)
    assert {record["answer"]: medium(record)["video"] for record in records} == {
        "train": "../media/train/a.mp4",
        "test": "../media/test/a.mp4",
    }


def test_subtitles_in_a_folder_of_their_own(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mkv")
    subtitles = tmp_path / "subs"
    subtitles.mkdir()
    (subtitles / "a.ass").write_text(ASS)
    (record,), report = imported(tmp_path, media, subtitles)
    assert (record["answer"], report.missing) == ("Go now", [])
    (subtitles / "b.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nLost\n")
    _, report = imported(tmp_path, media, subtitles)
    assert report.missing == ["b.mp4"]


def test_captions_that_roll_are_taken_once(tmp_path: Path) -> None:
    media = folder(tmp_path, "talk.webm")
    (media / "talk.en.vtt").write_text(  # as yt-dlp writes YouTube's own
        "WEBVTT\nKind: captions\n\n"
        "00:00:00.000 --> 00:00:02.000 align:start position:0%\n \nhello<00:00:00.500><c> dear</c>\n\n"
        "00:00:02.000 --> 00:00:02.010\nhello dear\n \n\n"
        "00:00:02.010 --> 00:00:04.000\nhello dear\nall<00:00:03.000><c> of you</c>\n\n"
        "00:00:04.000 --> 00:00:04.010\nall of you\n \n\n"
        "00:00:04.010 --> 00:00:06.000\nall of you\nwho came\n\n"
    )
    (record,), report = imported(tmp_path, media)
    assert record["answer"] == "hello dear all of you who came"
    assert [word[2] for word in record["words"]] == ["hello dear", "all of you", "who came"]
    assert report.noted == {"rolling captions: what a line repeats is taken once": 1}


def test_what_is_said_twice_is_written_twice(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mp4")
    said = enumerate(["no", "no", "stop", "I"])
    cues = [f"00:00:0{at},000 --> 00:00:0{at + 1},000\n{text}\n" for at, text in said]
    (media / "a.srt").write_text("\n".join(cues))
    assert imported(tmp_path, media)[0][0]["answer"] == "no no stop I"


def test_a_folder_without_subtitles_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="^subtitles: no records: give --annotations its files, or --media"):
        imported(tmp_path, folder(tmp_path, "a.mp4"))


def test_what_is_said_again_and_again_is_no_rolling(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.mp4")
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nNo!\n" for n in range(1, 5)]
    (media / "a.srt").write_text("\n".join(cues))
    (record,), report = imported(tmp_path, media)
    assert (record["answer"], report.noted) == ("No! No! No! No!", {})
