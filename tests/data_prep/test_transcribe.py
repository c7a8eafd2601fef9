"""Transcripts: one row a recording, in time, goes on where it was stopped; Whisper with random weights."""

from __future__ import annotations

import base64
import json
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.transcribe import Whisper, load_whisper, transcribe
from data_prep.world.voice import say
from mllm.command.cli import main
from mllm.errors import ConfigError, MllmError
from mllm.records.record import read_records, write_records
from tests.media_files import make, tone


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Three recordings: sound, sound in a span, no sound; four records."""
    make(tmp_path / "a.mp4", seconds=6, sounds=[tone(6, 44_100)])
    make(tmp_path / "mute.mp4", seconds=2)
    parts = [
        {"video": "a.mp4"},
        {"video": "a.mp4"},
        {"video": "a.mp4", "start": 2.0, "end": 5.0},
        {"video": "mute.mp4"},
    ]
    rows = []
    for number, part in enumerate(parts):
        part = {"type": "video", **part, "video": str(tmp_path / part["video"])}
        user = [part, {"type": "text", "text": "Who?"}]
        rows.append({"id": str(number), "messages": [{"role": "user", "content": user}], "answer": "a man"})
    write_records(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl"


class MockedEars:
    """Says how long it listened: the mechanics need no model."""

    transcriber = "mock"

    def __init__(self, stop_after: int = 99):
        self.lengths: list[float] = []
        self.stop_after = stop_after

    def __call__(self, waveform: np.ndarray) -> dict:
        if len(self.lengths) == self.stop_after:
            raise KeyboardInterrupt
        self.lengths.append(len(waveform) / 16_000)
        lines = [{"text": "hello", "start": 0.5, "end": 1.0}, {"text": "you", "start": 2.2, "end": 2.9}]
        return {"language": "en", "sub": lines}


def asked(path: Path) -> list[str]:
    return [
        "".join(part.get("text", "") for part in record["messages"][0]["content"])
        for record in read_records(path)
    ]


def test_what_is_said_stands_before_the_question_with_mocked_ears(records: Path, tmp_path: Path) -> None:
    ears = MockedEars()
    assert transcribe(records, ears, tmp_path / "out") == (3, 0)
    assert ears.lengths == pytest.approx([6.0, 3.0], abs=0.1)
    told = "Subtitles:\n[00:00] hello\n[00:02] you\nWho?"
    assert asked(tmp_path / "out" / "rows.subtitled.jsonl") == [told, told, told, "Who?"]


def test_it_goes_on_where_it_was_stopped_with_mocked_ears(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    transcribe(records, MockedEars(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        transcribe(records, MockedEars(stop_after=1), out)
    file = out / "transcripts.jsonl"
    file.write_bytes(file.read_bytes() + b'{"media": "half a ro')  # as a kill may leave it
    ears = MockedEars()
    assert transcribe(records, ears, out) == (2, 1)
    assert len(ears.lengths) == 1
    for name in ("transcripts.jsonl", "rows.subtitled.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_row_is_named_and_costs_no_other(records: Path, tmp_path: Path) -> None:
    transcribe(records, MockedEars(), tmp_path / "out")
    file = tmp_path / "out" / "transcripts.jsonl"
    first, *others = file.read_bytes().splitlines(keepends=True)
    damaged = b"".join([first[:5] + b"\n", *others])
    file.write_bytes(damaged)
    with pytest.raises(MllmError, match="transcripts.jsonl row 1 is no transcript"):
        transcribe(records, MockedEars(), tmp_path / "out")
    assert file.read_bytes() == damaged


def test_other_files_keep_their_transcripts_and_another_model_listens_again_with_mocked_ears(
    records: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = list(read_records(records))
    write_records(tmp_path / "mute.jsonl", rows[3:])
    transcribe(records, MockedEars(), out)
    assert transcribe(tmp_path / "mute.jsonl", MockedEars(), out) == (0, 1)
    assert len((out / "transcripts.jsonl").read_text().splitlines()) == 3
    other = MockedEars()
    other.transcriber = "another"
    assert transcribe(records, other, out) == (3, 0)


class SlowEars(MockedEars):
    """Says when it has begun, and waits for leave to go on."""

    def __init__(self, begun, go_on):
        super().__init__()
        self.begun, self.go_on = begun, go_on

    def __call__(self, waveform: np.ndarray) -> dict:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().__call__(waveform)


def test_two_at_once_in_one_folder_are_refused_with_mocked_ears(records: Path, tmp_path: Path) -> None:
    fork = get_context("fork")
    begun, go_on = fork.Event(), fork.Event()
    first = fork.Process(target=transcribe, args=(records, SlowEars(begun, go_on), tmp_path / "out"))
    first.start()
    assert begun.wait(60)
    with pytest.raises(MllmError, match="`mllm data transcribe` works there already: wait, or give another"):
        transcribe(records, MockedEars(), tmp_path / "out")
    go_on.set()
    first.join(60)
    assert first.exitcode == 0
    assert transcribe(records, MockedEars(), tmp_path / "out") == (0, 3)


def question(media: str, kind: str = "video") -> dict:
    user = [{"type": kind, kind: media}, {"type": "text", "text": "Who?"}]
    return {"id": "1", "messages": [{"role": "user", "content": user}], "answer": "a man"}


def test_a_folder_that_was_moved_is_done_and_a_recording_that_was_replaced_is_not_with_mocked_ears(
    tmp_path: Path,
) -> None:
    folder, moved = tmp_path / "here", tmp_path / "there"
    folder.mkdir()
    make(folder / "a.mp4", seconds=2, sounds=[tone(2, 44_100)])
    write_records(folder / "rows.jsonl", [question(str(folder / "a.mp4"))])
    assert transcribe(folder / "rows.jsonl", MockedEars(), folder) == (1, 0)
    folder.rename(moved)
    assert transcribe(moved / "rows.jsonl", MockedEars(), moved) == (0, 1)
    (row,) = (moved / "transcripts.jsonl").read_text().splitlines()
    assert json.loads(row)["media"] == "a.mp4"
    make(moved / "a.mp4", seconds=3, sounds=[tone(3, 44_100)])
    ears = MockedEars()
    assert transcribe(moved / "rows.jsonl", ears, moved) == (1, 0)
    assert ears.lengths == pytest.approx([3.0], abs=0.1)
    os.utime(moved / "a.mp4", (0, 0))
    assert transcribe(moved / "rows.jsonl", MockedEars(), moved) == (1, 0)
    assert len((moved / "transcripts.jsonl").read_text().splitlines()) == 1


def test_a_recording_that_cannot_be_read_stops_no_other_with_mocked_ears(
    records: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "out", []
    transcribe(records, MockedEars(), tmp_path / "whole")
    rows = list(read_records(records))
    (tmp_path / "bad.mp4").write_text("404 Not Found")
    write_records(records, [question(str(tmp_path / "bad.mp4")), *rows])
    with pytest.raises(
        MllmError, match="1 of 4 recordings cannot be read.*`mllm data check .* --fix` leaves"
    ):
        transcribe(records, MockedEars(), out, warn=told.append)
    assert len(told) == 1
    assert "bad.mp4: it is text" in told[0]
    assert not (out / "rows.subtitled.jsonl").exists()
    write_records(records, rows)
    assert transcribe(records, MockedEars(), out) == (0, 3)
    for name in ("transcripts.jsonl", "rows.subtitled.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_command_names_what_cannot_be_read(tmp_path: Path, tiny_whisper: Path, capsys) -> None:
    (tmp_path / "bad.mp4").write_text("404 Not Found")
    write_records(tmp_path / "rows.jsonl", [question(str(tmp_path / "bad.mp4"))])
    with pytest.raises(SystemExit) as stopped:
        main(["data", "transcribe", str(tmp_path / "rows.jsonl"), "--model", str(tiny_whisper)])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("bad.mp4: ")[2][:10] for line in told[-2:]] == ["it is text"] * 2
    assert told[-1].startswith("error: ")


def test_a_data_uri_is_known_by_its_digest_with_mocked_ears(tmp_path: Path) -> None:
    make(tmp_path / "a.m4a", codec=None, sounds=[tone(1, 44_100)], container="mp4")
    data = base64.b64encode((tmp_path / "a.m4a").read_bytes()).decode()
    write_records(tmp_path / "rows.jsonl", [question(f"data:audio/mp4;base64,{data}", "audio")])
    assert transcribe(tmp_path / "rows.jsonl", MockedEars(), tmp_path) == (1, 0)
    assert transcribe(tmp_path / "rows.jsonl", MockedEars(), tmp_path) == (0, 1)
    (row,) = (tmp_path / "transcripts.jsonl").read_text().splitlines()
    assert len(json.loads(row)["media"]) < 60


def test_records_of_one_name_do_not_replace_each_other_with_mocked_ears(
    records: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "rows.jsonl"
    other.parent.mkdir()
    write_records(other, list(read_records(records))[:1])
    transcribe(records, MockedEars(), tmp_path / "out")
    before = (tmp_path / "out" / "rows.subtitled.jsonl").read_bytes()
    with pytest.raises(MllmError, match=r"holds the records of ../rows.jsonl: give another --out"):
        transcribe(other, MockedEars(), tmp_path / "out")
    assert (tmp_path / "out" / "rows.subtitled.jsonl").read_bytes() == before


@pytest.mark.parametrize("row", [{}, {"sub": None}, {"sub": [{"text": "hi"}]}, {"sub": [3]}])
def test_a_row_that_says_nothing_is_named(row: dict, records: Path, tmp_path: Path) -> None:
    (tmp_path / "transcripts.jsonl").write_text(json.dumps({"media": "a.mp4", "by": "mock"} | row) + "\n")
    with pytest.raises(MllmError, match="transcripts.jsonl row 1 is no transcript"):
        transcribe(records, MockedEars(), tmp_path)


def test_a_whisper_model_listens(tmp_path: Path, tiny_whisper: Path, heard_once) -> None:
    word = say("train", "seven", "en-us", "calm", 0)
    soundfile.write(tmp_path / "seven.wav", np.tile(word, 3), 16_000)
    write_records(tmp_path / "rows.jsonl", [question(str(tmp_path / "seven.wav"), "audio")])
    assert transcribe(tmp_path / "rows.jsonl", Whisper(str(tiny_whisper), "de"), tmp_path) == (1, 0)
    (row,) = map(json.loads, (tmp_path / "transcripts.jsonl").read_text().splitlines())
    assert (row["by"], row["language"]) == (f"whisper {tiny_whisper} de", "de")
    assert row["sub"][0]["start"] == row["words"][0][0] < row["sub"][-1]["end"] == row["words"][-1][1]


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="'nonsense' is no base, no folder and no hub id"):
        load_whisper("nonsense")
