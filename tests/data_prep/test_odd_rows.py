"""One odd row is left out and counted, with the place of the first; a file of nothing else is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.importers.write import import_records
from mllm.errors import RecordError
from tests.data_prep.importing import MUSIC, QUESTION, SUBTITLES, TVQA, asked, do_import, folder

PLAIN = {"query": "What?", "response": "A cat."}
OPTIONS = "a0,a1,a2,a3,a4"
CAPTIONS = [("v1", "a cat"), ("v2", None)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PLAIN | {"audios": [None]}, "an audio must be a path, not None"),
        (PLAIN | {"images": [{"bytes": "AAAA"}]}, "image whose bytes stand in the row: save it as a file"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "a turn of 'narrator': known are human"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "not as chats writes it (TypeError"),
        ({"messages": "x"}, "messages must be a list of objects"),
        ({"text": "?"}, "none of the known forms"),
        (PLAIN | {"query": 3}, "a turn's text must be a string, not int"),
        (PLAIN | {"query": "<video><video>?", "videos": ["a.mp4"]}, "more <video> tags than video files"),
        ([1], "a row must be an object, not list"),
    ],
)
def test_an_odd_chat_costs_no_import(tmp_path: Path, row: object, reason: str) -> None:
    records, report = do_import(tmp_path, "chats", {"r.jsonl": [PLAIN, row, PLAIN | {"query": "Who?"}]})
    assert [asked(record) for record in records] == ["What?", "Who?"]
    ((told, count),) = report.left_out.items()
    assert count == 1
    assert told.startswith(reason)
    assert told.endswith("(first: r.jsonl row 2)")


def test_a_damaged_line_costs_itself(tmp_path: Path) -> None:
    line = json.dumps(PLAIN)
    records, report = do_import(tmp_path, "chats", {"r.jsonl": f"{line[:20]}\n{line}\n{line[:9]}"})
    assert len(records) == 1
    assert all(reason.startswith("not JSON") for reason in report.left_out)
    assert sum(report.left_out.values()) == 2


@pytest.mark.parametrize(
    ("name", "files", "kept", "reason"),
    [
        ("msrvtt-qa", {"q.jsonl": [QUESTION | {"video_id": 1, "question": None}]}, QUESTION, "question must"),
        ("activitynet-qa", {"q.jsonl": [{"question": "?"}]}, QUESTION, "no field 'video_id'"),
        ("music-avqa", {"q.jsonl": [MUSIC | {"templ_values": "['a']"}]}, MUSIC, "not as music-avqa"),
        ("tvqa", {"q.jsonl": [TVQA | {"a1": None, "qid": 8}]}, TVQA, "a1 must be text, not None"),
        ("tvqa", {"s.jsonl": [{"vid_name": "b", "sub": [{"text": "a"}]}, SUBTITLES]}, TVQA, "not as tvqa"),
        ("vggsound", {"v.csv": "a,1,dog,test\nb,x,dog,test\n"}, None, "not as vggsound writes it"),
        ("webvid", {"r.csv": "videoid,page_dir,name\n1,,a\n2,,b,c\n"}, None, "4 columns where 3 were"),
        (
            "audiocaps",
            {"q.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,0,one\n2,a,0\n"},
            None,
            "3 columns where 4 were announced: write empty ones, too",
        ),
        (
            "nextqa",
            {"q.csv": f"video,question,qid,type,{OPTIONS},answer\n1,q,1,C,a,b,c,d,e,0\n1,q,2,C,a,b,c,d,e,7"},
            None,
            "answer must be a number from 0 to 4, not '7'",
        ),
        (
            "msrvtt-captions",
            {"i.json": {"sentences": [{"video_id": "v1", "caption": "a"}], "videos": [{"split": "train"}]}},
            None,
            "not as msrvtt-captions writes it (KeyError: 'video_id')",
        ),
        (
            "msrvtt-captions",
            {"i.json": {"sentences": [{"video_id": name, "caption": text} for name, text in CAPTIONS]}},
            None,
            "caption must be text, not None",
        ),
        (
            "howto100m",
            {"h.json": {"v": {"start": [0, "x"], "end": [1, 2], "text": ["a", "b"]}}},
            None,
            "not as howto100m writes it",
        ),
        (
            "flickr8k-audio",
            {"w.txt": "a.jpg#0\tOne.\na_0.wav a.jpg #0\nwhat is this\n"},
            None,
            "neither '<image>.jpg#<n> TAB caption' nor",
        ),
    ],
)  # fmt: skip
def test_every_importer_leaves_out_its_odd_rows(
    tmp_path: Path, name: str, files: dict, kept: dict | None, reason: str
) -> None:
    if kept is not None:
        good = kept | {"video_id": 1} if kept is QUESTION else kept
        files = {file: [*rows, good] for file, rows in files.items()}
    records, report = do_import(tmp_path, name, files)
    assert records
    told = [f"{count} {why}" for why, count in report.left_out.items() if "(first: " in why]
    assert len(told) == 1
    assert told[0].startswith(f"1 {reason}")


def test_votes_that_are_none_cost_no_recording(tmp_path: Path) -> None:
    media = folder(tmp_path, "1001_DFA_ANG_XX.wav")
    votes = "FileName,VoiceVote\n1001_DFA_ANG_XX,A\n1002_DFA_ANG_XX,?\n"
    (record,), report = do_import(tmp_path, "crema-d", {"t.csv": votes}, media)
    assert record["labels"]["perceived"] == "angry"
    assert list(report.left_out.values()) == [1]


def test_a_file_without_one_good_row_is_another_file(tmp_path: Path) -> None:
    files = {"val.jsonl": [PLAIN], "labels.jsonl": [{"yes": 0}, {"no": 1}]}
    with pytest.raises(RecordError, match=r"^labels.jsonl row 1: none of the known forms \(it has yes\)"):
        do_import(tmp_path, "chats", files)
    assert not (tmp_path / "out").exists()


def test_kinds_of_odd_rows_are_not_listed_without_end(tmp_path: Path) -> None:
    odd = [{"messages": [{"role": f"r{number}", "content": "x"}]} for number in range(100)]
    _, report = do_import(tmp_path, "chats", {"r.jsonl": [PLAIN, *odd]})
    assert len(report.left_out) == 21
    assert report.left_out["odd in other ways, too"] == 80


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = [
        PLAIN | {"images": []},
        PLAIN | {"query": "<image>Who?", "images": [{"path": "a.jpg", "bytes": None}]},
    ]
    write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "train.parquet")
    report = import_records("chats", [tmp_path / "train.parquet"], None, tmp_path / "out")
    assert (report.records, report.left_out) == (2, {})
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-20])
    with pytest.raises(RecordError, match=r"cut.parquet: cannot be read as Parquet \(.*\): write"):
        import_records("chats", [tmp_path / "cut.parquet"], None, tmp_path / "out")
    (tmp_path / "train.parquet").rename(tmp_path / "train.json")
    with pytest.raises(RecordError, match=r"train.json: is a Parquet file: name it .parquet$"):
        import_records("chats", [tmp_path / "train.json"], None, tmp_path / "out")
