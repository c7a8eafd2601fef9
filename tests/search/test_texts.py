"""What an index knows in words: transcripts, subtitles beside files, titles and descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import MediaError
from mllm.records.transcript import Segment, Transcript, Word
from mllm.search.index import Index
from mllm.search.items import Item
from mllm.search.store import read_columns
from mllm.search.subtitles import SubtitlesBeside
from tests.search.test_index import CountingEmbedder, full, recording

SRT = """\
1
00:00:00,500 --> 00:00:01,500
The <i>dogs</i> are barking

2
00:00:03,000 --> 00:00:04,000
Ouch!
"""


class Listener:
    """Hears "hello there" in every recording that is not called mute."""

    def __init__(self, name: str = "whisper-base"):
        self.name = name
        self.heard: list[str] = []

    def transcribe(self, source, isolated=False, **span):
        self.heard.append(Path(source).name)
        if "torn" in str(source):
            raise MediaError(f"{source} cannot be\nheard")
        if "mute" in str(source):
            return Transcript()
        words = (Word(0.25, 0.5, " hello"), Word(0.5, 1.0, " there"))
        return Transcript("en", (Segment(0.25, 1.0, "hello there", words),))


@pytest.fixture
def clips(tmp_path) -> Path:
    recording(tmp_path / "clips/talk.mp4", full([1, 0, 0, 0], [0, 1, 0, 0]), full([1, 0, 0, 0], [0, 1, 0, 1]))
    recording(tmp_path / "clips/mute.mp4", {"video": [0, 1, 0, 0]})
    return tmp_path / "clips"


@pytest.fixture
def index(tmp_path) -> Index:
    return Index.open(tmp_path / "index", CountingEmbedder())


def texts(index: Index, modality: str = "said") -> list[tuple[str, float, float, str]]:
    names = ["source", "start", "end", "text"]
    rows = read_columns(index.table, names, index.folder, f"modality = '{modality}'").to_pylist()
    return sorted((Path(row["source"]).name, row["start"], row["end"], row["text"]) for row in rows)


def test_what_is_said_is_kept_with_the_times_of_words(index, clips):
    report = index.add([clips], transcriber=Listener())
    assert report.line() == "2 recordings added (7 rows), 0 unchanged"
    assert texts(index) == [("talk.mp4", 0.25, 1.0, "hello there")]
    (row,) = read_columns(index.table, ["words"], index.folder, "modality = 'said'").to_pylist()
    assert [(word["start"], word["text"].strip()) for word in row["words"]] == [
        (0.25, "hello"),
        (0.5, "there"),
    ]
    info = index.info()
    assert (info.texts, info.said) == ({"said": 1, "written": 0}, {"transcript whisper-base": 2})
    assert info.rows == {"video": 3, "audio": 2, "both": 2, "image": 0}


def test_a_recording_is_heard_once(index, clips):
    listener = Listener()
    index.add([clips])
    assert index.info().said == {"": 2}
    index.embedder.read.clear()
    report = index.add([clips], transcriber=listener)  # those that are in the index, too
    assert len(report.updated) == 2
    assert index.add([clips], transcriber=listener).updated == []
    assert index.add([clips]).updated == []  # and what was heard is kept
    assert (index.embedder.read, sorted(listener.heard)) == ([], ["mute.mp4", "talk.mp4"])
    assert len(index.add([clips], transcriber=Listener("whisper-small")).updated) == 2
    recording(clips / "talk.mp4", {"video": [0, 0, 0, 1]})
    index.add([clips])
    assert texts(index) == []  # nobody has listened to what is in it now


def test_a_recording_that_cannot_be_heard_costs_a_line(index, clips):
    recording(clips / "torn.mp4", {"audio": [1, 1, 0, 0]})
    report = index.add([clips], transcriber=Listener())
    assert report.failed == [(str(clips / "torn.mp4"), f"{clips / 'torn.mp4'} cannot be heard")]
    assert len(report.added) == 2


def test_subtitles_beside_a_file_are_what_is_said(index, clips):
    (clips / "talk.srt").write_text(SRT)
    listener = Listener()
    index.add([clips], transcriber=listener)
    lines = [("talk.mp4", 0.5, 1.5, "The dogs are barking"), ("talk.mp4", 3.0, 4.0, "Ouch!")]
    assert (texts(index), listener.heard) == (lines, ["mute.mp4"])
    assert index.info().said == {"subtitles": 1, "transcript whisper-base": 1}
    index.embedder.read.clear()
    assert len(index.add([clips]).unchanged) == 2
    (clips / "talk.srt").write_text(SRT.replace("Ouch!", "Oh."))
    assert index.add([clips]).updated == [str(clips / "talk.mp4")]
    assert texts(index)[1][3] == "Oh."
    (clips / "talk.srt").unlink()
    assert index.add([clips]).updated == [str(clips / "talk.mp4")]
    assert (texts(index), index.embedder.read) == ([], [])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\xff\xfe" + "1\n00:00:00,500 --> 00:00:01,500\nHallo\n".encode("utf-16-le"), None),
        (b"1\n00:00:00,500 --> 00:00:01,500\nGr\xfc\xdfe\n", "talk.srt: not text in UTF-8: save it as UTF-8"),
        (b"nothing of the kind", "talk.srt: no cue in it"),
        (b"1\n00:00:01,000 --> x\nHi\n", "talk.srt line 2: '00:00:01,000 --> x' are no times of a cue"),
        (b"", None),
    ],
)
def test_subtitles_that_cannot_be_read_cost_a_line(index, clips, content, cause):
    (clips / "talk.srt").write_bytes(content)
    report = index.add([clips])
    assert len(report.added) == 2  # the recording is found by what is seen and heard
    assert [(Path(path).name, why[: len(cause)]) for path, why in report.passed_over] == (
        [("talk.srt", cause)] if cause else []
    )


def test_subtitles_are_found_by_name(tmp_path):
    def beside(*names: str) -> str | None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        found = SubtitlesBeside()(folder / "talk.one.mp4")
        return found and found.name

    assert beside("talk.srt", "talk.one.en.txt", "talk.one.notes.srt", "talk.one two.srt") is None
    assert beside("talk.one.mp4.vtt", "talk.one.en.srt") == "talk.one.mp4.vtt"
    assert beside("talk.one.mp4.vtt", "talk.one.vtt") == "talk.one.vtt"
    assert beside("talk.one.pt-BR.forced.srt", "talk.one.en.vtt") == "talk.one.en.vtt"
    assert beside("talk.one.two.srt", "talk.one.two.mp4") is None  # of another recording
    assert beside("talk.one.wav.srt", "talk.one.wav") is None
    assert SubtitlesBeside()(tmp_path / "nowhere/a.mp4") is None


def test_titles_and_descriptions_are_one_text(index, clips):
    index.add([Item(clips / "talk.mp4", "Ann's talk", description="About dogs,\nand cats."), clips])
    text = "Ann's talk\nAbout dogs,\nand cats."
    assert texts(index, "written") == [("talk.mp4", 0.0, 4.0, text)]
    index.embedder.read.clear()
    assert len(index.add([clips]).unchanged) == 2  # kept, as the name is
    assert index.add([Item(clips / "talk.mp4", "Bob's talk")]).updated == ["Bob's talk"]
    assert texts(index, "written")[0][3] == "Bob's talk\nAbout dogs,\nand cats."
    index.add([Item(clips / "talk.mp4", description="")])
    assert texts(index, "written")[0][3] == "Bob's talk\n"
    assert [item.description for item in index.items()] == [None, None]
    assert index.embedder.read == []
