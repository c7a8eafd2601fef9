"""A table of one's own: which column is what, and the record that each row becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.command.cli import main
from mllm.errors import ConfigError, MllmError, RecordError
from tests.data_prep.importing import asked, do_import, folder, medium


def test_columns_are_told_by_their_names_and_said(tmp_path: Path) -> None:
    csv = "Clip Path,Label,weather\na.wav,dog,wet\nb.wav,cat,dry\nc.wav,dog,\nd.wav,cat,\n"
    records, report = do_import(tmp_path, "table", {"t.csv": csv})
    assert [record["answer"] for record in records] == ["dog", "cat", "dog", "cat"]
    assert [record["options"] for record in records] == [["cat", "dog"]] * 4
    assert {record["task"] for record in records} == {"class"}
    assert "cat, dog" in asked(records[0])
    assert medium(records[0])["audio"].endswith("a.wav")
    assert report.noted == {
        "answer taken as one of 2 classes": 4,
        "column Clip Path read as file": 4,
        "column Label read as answer": 4,
        "column weather not read": 4,
    }


def test_columns_as_they_are_given(tmp_path: Path) -> None:
    tsv = "where\twhat is asked\twhat is so\tanswer\na.mp4\twho, then?\tthe man\t7\n"
    columns = ["file=where,question=what is asked", "answer=what is so"]
    (record,), report = do_import(tmp_path, "table", {"t.tsv": tsv}, columns=columns)
    assert (record["task"], record["answer"]) == ("qa", "the man")
    assert "who, then?" in asked(record)
    assert report.noted == {"column answer not read": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["clip_path"], "--columns clip_path: write ROLE=COLUMN, such as file=clip_path,answer=label"),
        (["anwser=x"], "--columns anwser=x: no role 'anwser': did you mean answer"),
        (["file=path"], r"t.csv: no column 'path' for --columns file=… \(it has file, label\)"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, columns: list[str], message: str) -> None:
    with pytest.raises(MllmError, match=f"^{message}"):
        do_import(tmp_path, "table", {"t.csv": "file,label\na.wav,x\n"}, columns=columns)


def test_other_importers_have_no_columns_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="webvid reads its official columns"):
        do_import(tmp_path, "webvid", {"t.csv": "videoid,name\n1,a\n"}, columns=["file=videoid"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,b", r"t.csv: no column is called like the recording: add --columns file=… \(it has a, b\)"),
        ("path,b", "t.csv: no column is called like what is to be learnt: add --columns answer=…, text=…"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(RecordError, match=f"^{message}"):
        do_import(tmp_path, "table", {"t.csv": f"{header}\na.wav,x\n"})


@pytest.mark.parametrize(
    ("csv", "task", "kind"),
    [
        ("audio,text\na.wav,hello there\n", "transcript", "audio"),
        ("audio_filepath,duration,text\na,3,hello there\n", "transcript", "audio"),
        ("file_name,text\na.jpg,hello there\n", "caption", "image"),  # imagefolder's metadata.csv
        ("video,caption\na.mp4,hello there\n", "caption", "video"),
        ("file,answer\na.mkv,hello there\n", "class", "video"),
        ("gif_name,question,answer\na.gif,what?,hello there\n", "qa", "video"),
    ],
)
def test_the_record_is_as_the_columns_say(tmp_path: Path, csv: str, task: str, kind: str) -> None:
    (record,), _ = do_import(tmp_path, "table", {"t.csv": csv})
    assert (record["task"], medium(record)["type"]) == (task, kind)
    assert record["answer"] == "hello there"


def test_a_recording_without_a_suffix_is_what_is_found_of_that_name(tmp_path: Path) -> None:
    media = folder(tmp_path, "x/a.flac", "x/b.webm", "x/c.png")
    csv = "file,caption\na,one\nb,two\nc,three\n"
    records, report = do_import(tmp_path, "table", {"t.csv": csv}, media)
    assert [medium(record)["type"] for record in records] == ["audio", "video", "image"]
    assert report.missing == []


def test_addresses_and_data_are_kept_as_they_are(tmp_path: Path) -> None:
    csv = "file;caption\nhttps://a.org/b.wav?x=1;one\ndata:image/png;base64,QUJD;two\n"
    with pytest.raises(RecordError, match="t.csv line 3: 3 columns where 2 were announced: put quotation"):
        do_import(tmp_path, "table", {"t.csv": csv.replace("https://a.org/b.wav?x=1;one\n", "\n")})
    csv = csv.replace(";caption", "|caption").replace(";one", "|one").replace(";two", "|two")
    records, _ = do_import(tmp_path, "table", {"t.csv": csv})
    assert [medium(record) for record in records] == [
        {"type": "audio", "audio": "https://a.org/b.wav?x=1"},
        {"type": "image", "image": "data:image/png;base64,QUJD"},
    ]


def test_recordings_lie_beside_the_table_unless_media_says_where(tmp_path: Path, capsys) -> None:
    folder(tmp_path, "clips/a.wav")
    table = tmp_path / "media" / "t.csv"
    table.write_text("file,label\nclips/a.wav,dog\nclips/b.wav,cat\n")
    with pytest.raises(SystemExit, match="0"):
        main(["data", "import", "table", "--annotations", str(table), "--out", str(tmp_path / "out")])
    assert f"not found in {table.parent}: 1 recordings, the first clips/b.wav" in capsys.readouterr().out


def test_several_captions_in_columns_or_a_list(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "table", {"t.csv": "audio,caption_1,caption_2\na.wav,one,two\n"})
    assert record["captions"]["audio"] == ["one", "two"]
    (record,), _ = do_import(tmp_path, "table", {"t.jsonl": [{"image": "a.jpg", "captions": ["one", "two"]}]})
    assert record["captions"]["video"] == ["one", "two"]


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({"t.csv": "video,question,a0,a1,a2,answer\na.mp4,who?,I,you,we,you\n"}, "you"),
        ({"t.csv": "video,question,option_a,option_b,answer\na.mp4,who?,I,you,B\n"}, "you"),
        ({"t.csv": "video,question,options,answer\na.mp4,who?,I|you|we,YOU\n"}, "you"),
        ({"t.csv": 'video,question,options,answer\na.mp4,who?,"[""I"", ""you; we""]",(b)\n'}, "you; we"),
        ({"t.jsonl": [{"video": "a.mp4", "question": "?", "choices": ["I", "you"], "answer": "you"}]}, "you"),
        ({"t.csv": "video,question,a1,a2,answer\na.mp4,who?,I,you,1\nb.mp4,who?,I,you,0\n"}, "you"),
        ({"t.csv": "video,question,a1,a2,answer\na.mp4,who?,I,you,2\nb.mp4,who?,I,you,1\n"}, "you"),
        ({"t.csv": "video,question,options,answer\na.mp4,how many?,3;2;1,2\n"}, "2"),
    ],
)
def test_options(tmp_path: Path, files: dict, answer: str) -> None:
    records, report = do_import(tmp_path, "table", files)
    assert records[0]["task"] == "choice"
    assert records[0]["answer"][3:] == answer  # behind its letter
    assert report.left_out == {}


def test_numbers_of_options_that_may_count_from_0_or_1_are_asked_about(tmp_path: Path) -> None:
    csv = "video,question,a1,a2,a3,answer\na.mp4,who?,I,you,we,1\nb.mp4,who?,I,you,we,2\n"
    with pytest.raises(RecordError, match="t.csv line 2: answer 1 may count from 0 or from 1: write"):
        do_import(tmp_path, "table", {"t.csv": csv})


def test_options_without_a_question_are_classes(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "table", {"t.csv": "audio,options,answer\na.wav,dog|cat,cat\n"})
    assert (record["task"], record["answer"], record["options"]) == ("class", "cat", ["dog", "cat"])


def test_start_and_end_are_seconds_or_a_clock(tmp_path: Path) -> None:
    csv = 'file,start,end,caption\na.mp4,1.5,3,one\na.mp4,00:01:02.5,"1:03,25",two\na.mp4,,,three\n'
    records, _ = do_import(tmp_path, "table", {"t.csv": csv})
    spans = [(medium(record).get("start"), medium(record).get("end")) for record in records]
    assert spans == [(1.5, 3.0), (62.5, 63.25), (None, None)]
    with pytest.raises(RecordError, match="t.csv line 2: start must be seconds or h:mm:ss, not 'soon'"):
        do_import(tmp_path, "table", {"t.csv": "file,start,caption\na.mp4,soon,one\n"})


def test_labels_are_what_splits_are_held_out_by(tmp_path: Path) -> None:
    csv = "file,label,speaker,fold\na.wav,dog,s1,1\nb.wav,cat,s2,2\n"
    (record,), report = do_import(tmp_path, "table", {"t.csv": csv}, held_out={"fold": {"2"}})
    assert (record["labels"], report.held_out) == ({"speaker": "s1", "fold": "1"}, 1)
    (record, _), _ = do_import(tmp_path, "table", {"t.csv": csv}, columns=["labels=speaker"])
    assert record["labels"] == {"speaker": "s1"}
    rows = [{"file": "a.wav", "text": "hi", "labels": {"mood": "sad"}}]
    (record,), _ = do_import(tmp_path, "table", {"t.jsonl": rows})
    assert record["labels"] == {"mood": "sad"}


def test_a_row_that_tells_two_things_becomes_two_records(tmp_path: Path) -> None:
    records, _ = do_import(tmp_path, "table", {"t.csv": "id,audio,emotion,text\n7,a.wav,sad,go away\n"})
    told = [(record["id"], record["task"], record["answer"]) for record in records]
    assert told == [("table/7", "class", "sad"), ("table/7-text", "transcript", "go away")]
    records, _ = do_import(
        tmp_path, "table", {"t.csv": "audio,emotion,text\na.wav,sad,go\n"}, columns=["answer=emotion"]
    )
    assert [record["task"] for record in records] == ["class"]  # what was said is what is learnt


def test_the_sound_of_a_video_in_a_file_of_its_own(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "table", {"t.csv": "video,audio,caption\na.mp4,a.wav,one\n"})
    part = medium(record)
    assert part["video"].endswith("a.mp4")
    assert part["audio"].endswith("a.wav")


def test_odd_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    csv = "file,question,options,answer\na.mp4,who?,I|you,you\n,who?,I|you,I\nb.mp4,who?,I|you,they\n"
    csv += "c.mp4,,,\nd.mp4,who?,I|I,I\ne.mp4,who?,I|you,\n"
    records, report = do_import(tmp_path, "table", {"t.csv": csv})
    assert [record["answer"] is None for record in records] == [False, True]
    assert report.left_out == {
        "no recording named": 1,
        "answer that is none of its options": 1,
        "neither question nor answer": 1,
        "options alike": 1,
    }
    assert report.noted["no answer given"] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"A": "a dog", "B": "a cat", "answer": "B"},
        {"options": ["A. a dog", "B. a cat"], "answer": "B"},
        {"options": ["(A) a dog", "(B) a cat"], "answer": "(B) a cat"},
        {"options": {"A": "a dog", "B": "a cat"}, "answer": "b"},
        {"options": '{"A": "a dog", "B": "a cat"}', "answer": "a cat"},
        {"option_a": "A) a dog", "option_b": "B) a cat", "answer": "(B)"},
    ],
)
def test_options_that_have_letters_already(tmp_path: Path, row: dict) -> None:
    rows = [{"file": "a.wav", "question": "Who?"} | row]
    (record,), _ = do_import(tmp_path, "table", {"t.jsonl": rows})
    assert sorted(option[3:] for option in record["options"]) == ["a cat", "a dog"]
    assert record["answer"][3:] == "a cat"
    assert record["answer"] in record["options"]


def test_a_letter_never_means_the_option_after_a_gap(tmp_path: Path) -> None:
    csv = "file,question,A,B,C,answer\na.wav,Who?,,x,y,B\nb.wav,Who?,x,y,,B\n"
    (record,), report = do_import(tmp_path, "table", {"t.csv": csv})
    assert record["answer"][3:] == "y"
    assert report.left_out == {"A is empty, and options follow it: fill it (first: t.csv line 2)": 1}


def test_a_start_with_a_duration(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "table", {"t.csv": "file,start,duration,label\na.wav,1.5,2,dog\n"})
    assert (medium(record)["start"], medium(record)["end"]) == (1.5, 3.5)
    whole = "file,start,end,duration,label\na.wav,1.5,2,60,dog\n"  # that of the recording
    (record,), report = do_import(tmp_path, "table", {"t.csv": whole})
    assert (medium(record)["end"], report.noted["column duration not read"]) == (2, 1)


def test_recordings_as_datasets_of_hugging_face_hold_them(tmp_path: Path) -> None:
    rows = [
        {"audio": {"path": "a.wav", "bytes": None}, "text": "Hello"},
        {"audio": {"bytes": "x"}, "text": "y"},
    ]
    (record,), report = do_import(tmp_path, "table", {"t.jsonl": rows}, folder(tmp_path, "a.wav"))
    assert (Path(medium(record)["audio"]).name, record["answer"]) == ("a.wav", "Hello")
    assert next(iter(report.left_out)).startswith("audio must be text")


def test_labels_as_json_in_a_cell(tmp_path: Path) -> None:
    csv = 'file,answer,labels\na.wav,dog,"{""actor"": ""7""}"\n'
    (record,), _ = do_import(tmp_path, "table", {"t.csv": csv})
    assert record["labels"] == {"actor": "7"}


def test_many_different_answers_are_no_classes(tmp_path: Path) -> None:
    rows = [{"file": f"{number}.wav", "answer": f"name {number}"} for number in range(100)]
    records, report = do_import(tmp_path, "table", {"t.jsonl": rows})
    assert "options" not in records[0]
    assert report.noted == {}


def test_rows_of_json_may_leave_fields_out(tmp_path: Path) -> None:
    rows = [{"file": "a.wav", "answer": "x", "start": 1}, {"file": "b.wav", "answer": "y"}]
    records, report = do_import(tmp_path, "table", {"t.jsonl": rows})
    assert (len(records), report.left_out) == (2, {})


def test_two_tables_with_other_columns(tmp_path: Path) -> None:
    files = {"a.csv": "path,label\na.wav,x\n", "b.csv": "filename;caption\nb.wav;y, z\n"}
    records, _ = do_import(tmp_path, "table", files)
    assert [record["task"] for record in records] == ["class", "caption"]


def test_the_command_says_what_it_guessed(tmp_path: Path, capsys) -> None:
    table = tmp_path / "t.csv"
    table.write_text("clip_path;label\na.wav;dog\n")
    command = ["data", "import", "table", "--annotations", str(table), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert "noted: 1 × column clip_path read as file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--columns", "file=clip_path,answer=label"])
    assert "noted" not in capsys.readouterr().out
