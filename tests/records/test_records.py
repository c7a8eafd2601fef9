"""Records: reading, writing, checking, grouping, and finding sources by name."""

from __future__ import annotations

import errno
import json
import os
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm.errors import RecordError
from mllm.files import replacing
from mllm.records import record as records
from mllm.records.jsonl import JsonlSource
from mllm.records.source import DataSource, open_source


def record(video: str = "clips/a.mp4", question: str = "Seen?", answer: str = "A star.", **more) -> dict:
    user = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"id": "1", "messages": messages, "task": "qa", "source": "test", **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4", "a.wav"):
        (tmp_path / "clips" / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, *rows) -> Path:
    path = folder / "data.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8"
    )
    return path


def first_part(read: dict) -> dict:
    return read["messages"][0]["content"][0]


def test_paths_become_absolute_and_extra_keys_stay(folder: Path) -> None:
    path = write(folder, record(question_id=7), "", record("clips/b.mp4", id=3))
    first, second = records.read_records(path)
    assert first_part(first)["video"] == str(folder / "clips/a.mp4")
    assert first["question_id"] == 7
    assert second["id"] == "3"
    assert first["messages"][1]["content"] == [{"type": "text", "text": "A star."}]


def test_uris_and_file_urls(folder: Path) -> None:
    (folder / "clips/a b.mp4").write_bytes(b"x")
    data = ("data:video/mp4;base64,QUJD", "\n DATA:video/mp4;base64,QUJD")
    path = write(folder, *map(record, data), record(f"file://{folder}/clips/a%20b.mp4"))
    *first, second = records.read_records(path)
    assert [first_part(one)["video"] for one in first] == ["data:video/mp4;base64,QUJD"] * 2
    assert first_part(second)["video"] == str(folder / "clips/a b.mp4")


def test_written_records_are_read_back_and_can_be_moved(folder: Path, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "c.mp4"
    outside.write_bytes(b"x")
    given = [record(str(folder / "clips/a.mp4"), question="Gesehen? 星"), record(str(outside))]
    path = folder / "out.jsonl"
    assert records.write_records(path, given) == 2
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [first_part(row)["video"] for row in rows] == ["clips/a.mp4", os.path.relpath(outside, folder)]
    assert [first_part(row)["video"] for row in records.read_records(path)] == [
        first_part(row)["video"] for row in given
    ]


def test_recordings_that_share_no_folder_with_the_records_are_named_whole(folder: Path) -> None:
    records.write_records(folder / "out.jsonl", [record("/elsewhere/a.mp4")], media_must_exist=False)
    assert first_part(json.loads((folder / "out.jsonl").read_text()))["video"] == "/elsewhere/a.mp4"


def test_a_failed_write_leaves_the_old_file_and_no_rest(folder: Path) -> None:
    path = folder / "out.jsonl"
    records.write_records(path, [record(str(folder / "clips/a.mp4"))])
    before = path.read_bytes()
    clip = SimpleNamespace(waveform=None)
    with pytest.raises(RecordError, match="out.jsonl row 2: media in memory cannot be written"):
        records.write_records(path, [record(str(folder / "clips/a.mp4")), record(clip)])
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in folder.iterdir()) == ["clips", "out.jsonl"]


def test_an_error_about_another_file_is_not_told_of_this_one(tmp_path: Path) -> None:
    def rows():
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "media.wav"))
        yield

    with pytest.raises(PermissionError, match="media.wav"):
        records.write_records(tmp_path / "out.jsonl", rows())


def left_half_written(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        os._exit(0)


def test_two_processes_may_write_one_path(folder: Path) -> None:
    path = folder / "out.jsonl"
    with replacing(path) as partial:
        partial.write_text("first")
        other = get_context("fork").Process(target=records.write_records, args=(path, []))
        other.start()
        other.join(60)
        assert other.exitcode == 0
        assert path.read_text() == ""
    assert path.read_text() == "first"
    killed = get_context("fork").Process(target=left_half_written, args=(path,))
    killed.start()
    killed.join(60)
    assert len(list(folder.glob("out.jsonl.*.part"))) == 1
    records.write_records(path, [])
    assert sorted(entry.name for entry in folder.iterdir()) == ["clips", "out.jsonl"]


WRONG = [
    ("[" * 200_000, r"row 2: not JSON \(maximum recursion depth"),
    ('{"id": ' + "1" * 5000 + "}", r"row 2: not JSON \(Exceeds the limit \(4300 digits\)"),
    (record() | {"task": "\ud800"}, r"row 2: half a character \(.ud800\) in its text"),
    (record("a" * 300 + "/b.mp4"), r"row 2: 'aaaaa.*… is no path: give a file"),
    (record("file://[/b.mp4"), r"row 2: 'file://\[/b.mp4' is no file:// address"),
    ("{", r"data.jsonl row 2: not JSON \(.* at column 2\)"),
    ("[1]", "data.jsonl row 2: a record must be an object, not list"),
    ({"id": "x"}, "row 2: no 'messages': give a list"),
    ({"conversations": []}, "row 2: no 'messages' .this is LLaVA's form: `mllm data import chats`"),
    (
        record("clips/none.mp4"),
        "row 2: there is no 'clips/none.mp4' in .*: paths are relative to the record file; `mllm data check",
    ),
    (record(answer=" "), "row 2: the assistant's answer is empty"),
    (record() | {"task": 3}, "row 2: 'task' must be a string, not int"),
    (record(options="yes"), "row 2: 'options' must be a list of strings"),
    (record(captions=[3]), "row 2: 'captions of video' must be a list of strings"),
    (
        record(captions={"picture": "x"}),
        "row 2: 'captions' must be a list, or an object with keys video, audio, both",
    ),
    ({"messages": [{"role": "user", "content": "hi"}]}, "row 2: nothing to learn or score"),
    (
        {"messages": [{"role": "user", "content": [{"type": "film"}]}]},
        "row 2: message 0 part 0 has type 'film'",
    ),
]


@pytest.mark.parametrize(("row", "error"), WRONG)
def test_errors_name_file_row_and_remedy(folder: Path, row, error: str) -> None:
    with pytest.raises(RecordError, match=error) as caught:
        list(records.read_records(write(folder, record(), row)))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(json.dumps(record(answer="Grün."), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(RecordError, match=r"row 1: not UTF-8 text .*: save the file as UTF-8"):
        list(records.read_records(path))


def test_a_missing_file_and_an_empty_one(folder: Path) -> None:
    with pytest.raises(RecordError, match="is not a file"):
        list(records.read_records(folder / "none.jsonl"))
    with pytest.raises(RecordError, match="holds no records"):
        JsonlSource(write(folder))


def test_a_file_is_a_source_of_scenes(folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    cut = record()
    cut["messages"][0]["content"][0] |= {"start": 1.0, "end": 2.0}
    rows = [record(), record(question="Heard?"), cut, record("clips/b.mp4"), chat, chat, record()]
    source = open_source(str(write(folder, *rows)))
    assert isinstance(source, DataSource)
    assert source.name == "data"
    assert [len(source.conversations(index)) for index in range(len(source))] == [2, 1, 1, 1, 1, 1]
    assert source.conversations(0)[1]["messages"][0]["content"][1]["text"] == "Heard?"
    assert source.text(0) == []
    assert source.text(3)[0][1]["content"] == [{"type": "text", "text": "hello"}]


def test_pairs_take_their_captions_in_turn(folder: Path) -> None:
    alone = [{"role": "user", "content": [{"type": "video", "video": "clips/a.mp4"}]}]
    sound = [{"role": "user", "content": [{"type": "audio", "audio": "clips/a.wav"}]}]
    path = write(
        folder,
        {
            "messages": alone,
            "captions": {"video": ["one", "two", "three"], "both": "all"},
            "labels": {"n": 1},
        },
        {"messages": sound, "captions": ["a bell"]},
        record("clips/b.mp4"),
    )
    source = JsonlSource(path)
    pair = source.pair(0)
    assert pair["clip"] == str(folder / "clips/a.mp4")
    assert pair["part"]["type"] == "video"
    assert pair["captions"] == {"video": "one", "audio": None, "both": "all"}
    assert pair["labels"] == {"n": 1}
    assert source.pair(3)["captions"]["video"] == "two"
    assert source.pair(1)["captions"] == {"video": None, "audio": "a bell", "both": None}
    assert source.conversations(0) == []
    with pytest.raises(RecordError, match="data.jsonl row 3: no 'captions'"):
        source.pair(2)


def test_sources_are_found_through_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(name="moon", load=lambda: lambda rest: f"moon of {rest}")
    monkeypatch.setattr(
        "mllm.records.source.entry_points", lambda group: [entry] if group == "mllm.sources" else []
    )
    assert open_source("moon:train,seed=3") == "moon of train,seed=3"
    with pytest.raises(
        RecordError, match=r"no data source 'mon:val': did you mean 'moon:val'\? give a JSONL file"
    ):
        open_source("mon:val")
    with pytest.raises(RecordError, match=r"no data source 'none.jsonl': .* or one of moon:…"):
        open_source("none.jsonl")


def test_the_world_is_installed_as_a_source() -> None:
    source = open_source("world:val")
    assert isinstance(source, DataSource)
    for found in source.conversations(0):
        records.validate_record(found, "world")


def test_stage_0_reads_conversations_without_media_each_with_its_answer(folder: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "what is 1+1?"}]}
    path = write(folder, asked | {"answer": "two"}, asked | {"answer": None})
    (messages,), unanswered = (JsonlSource(path).text(scene) for scene in (0, 1))
    assert (messages[-1].role, messages[-1].text) == ("assistant", "two")
    assert unanswered == []


def test_a_row_without_an_id_is_called_by_its_place(folder: Path) -> None:
    (found,) = JsonlSource(write(folder, record("clips/a.mp4") | {"id": None})).conversations(0)
    assert found["id"] == "data.jsonl/1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["sad"]}, "'labels' must be an object"),
        ({"answer": "half \ud83d"}, "half a character .*ud83d. in its text"),
    ],
)
def test_more_that_is_wrong_with_a_row(changes: dict, message: str) -> None:
    talk = [{"role": "user", "content": "what?"}]
    with pytest.raises(RecordError, match=message):
        records.validate_record({"messages": talk, "answer": "it"} | changes, "row 1")


def test_base64_in_place_of_a_path_is_named() -> None:
    user = [{"type": "audio", "audio": "QUJD" * 200}, {"type": "text", "text": "what?"}]
    with pytest.raises(RecordError, match="'QUJDQUJD.*is no path: give a file, or data as a data: URI"):
        records.validate_record({"messages": [{"role": "user", "content": user}], "answer": "it"}, "row 1")
