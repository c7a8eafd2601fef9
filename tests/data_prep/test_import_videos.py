"""Questions about videos: an official excerpt of each set, as the files have it, and its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.importers.write import import_records
from mllm.records.jsonl import JsonlSource
from tests.data_prep.importing import MUSIC, QUESTION, SUBTITLES, TVQA, asked, do_import, folder, medium, read


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("msrvtt-qa", {"val_qa.json": [QUESTION | {"category_id": 14, "id": 3, "video_id": 6513}]}),
        ("msrvtt-qa", {"val.jsonl": [QUESTION | {"video_id": "video6513", "answer_type": "who"}]}),
        (
            "msrvtt-qa",
            {
                "test_q.json": [
                    {"video_name": "video6513", "question": "who opens a box?", "question_id": "v_6513_0"}
                ],
                "test_a.json": [{"answer": "man", "type": 3, "question_id": "v_6513_0"}],
            },
        ),
    ],
    ids=["official", "clipbert", "community"],
)
def test_msrvtt_qa_in_its_three_forms(tmp_path: Path, name: str, files: dict) -> None:
    media = folder(tmp_path, "videos/video6513.mp4")
    (record,), report = do_import(tmp_path, name, files, media)
    assert medium(record) == {"type": "video", "video": "../media/videos/video6513.mp4"}
    assert "who opens a box?" in asked(record)
    assert record["messages"][1]["content"] == [{"type": "text", "text": "man"}]
    assert (record["task"], record["answer"], record["source"]) == ("qa", "man", "msrvtt-qa")
    assert report.missing == []


def test_msvd_qa_finds_recordings_under_either_name(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": 1, "video_id": 1}, QUESTION | {"id": 2, "video_id": 2}]
    files = {
        "train_qa.json": rows,
        "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid2\n",
    }
    records, _ = do_import(tmp_path, "msvd-qa", files, folder(tmp_path, "-4wsuPCjDBc_5_15.avi", "vid2.avi"))
    assert [Path(medium(record)["video"]).name for record in records] == ["-4wsuPCjDBc_5_15.avi", "vid2.avi"]


def test_activitynet_qa_joins_answers_by_question_id_and_keeps_a_video_together(tmp_path: Path) -> None:
    questions = [
        {"video_name": video, "question": f"q{number}", "question_id": f"v_{video}_{number}"}
        for number, video in enumerate(["1QIUV7WYKXg", "9eniCub7u60", "1QIUV7WYKXg"])
    ]
    answers = [{"answer": f"a{n}", "type": 3, "question_id": questions[n]["question_id"]} for n in (2, 0)]
    records, report = do_import(tmp_path, "activitynet-qa", {"val_q.json": questions, "val_a.json": answers})
    assert [record["answer"] for record in records] == ["a0", "a2", None]
    assert [record["id"] for record in records][2] == "activitynet-qa/v_9eniCub7u60_1"
    assert records[0]["question_type"] == "yes/no"
    assert medium(records[0])["video"] == "v_1QIUV7WYKXg.mp4"
    assert report.noted == {"no answer given": 1}


NEXTQA = """video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
4010069381,369,640,480,how do the two man play,0,6,CH,roll the handle,tap their feet,strum,hit with sticks,pat
"""


def test_nextqa_shuffles_options_and_keeps_their_official_numbers(tmp_path: Path) -> None:
    media = folder(tmp_path, "1106/4010069381.mp4")
    files = {"val.csv": NEXTQA, "map_vid_vidorID.json": {"4010069381": "1106/4010069381"}}
    (record,), report = do_import(tmp_path, "nextqa", files, media)
    assert record["answer"][3:] == "roll the handle"
    assert record["answer"] in record["options"]
    assert record["option_order"][record["options"].index(record["answer"])] == 0
    assert all(option in asked(record) for option in record["options"])
    assert record["messages"][1]["content"][0]["text"] == record["answer"]
    assert report.missing == []
    again, _ = do_import(tmp_path, "nextqa", files, media)
    assert again == [record]


def test_nextqa_open_ended(tmp_path: Path) -> None:
    csv = "video,frame_count,width,height,question,answer,qid,type,additional_ref_answer\n"
    csv += "401,369,640,480,how do the two man play,strum,6,CH,\n401,369,640,480,who,man,7,DO,guy\n"
    first, second = do_import(tmp_path, "nextqa", {"val.csv": csv})[0]
    assert (first["id"], first["task"], first["answer"]) == ("nextqa/401_6", "qa", "strum")
    assert "additional_ref_answer" not in first
    assert second["additional_ref_answer"] == "guy"


def test_music_avqa_reads_anser_and_fills_its_gaps(tmp_path: Path) -> None:
    rows = [MUSIC, MUSIC | {"anser": "yes"}, MUSIC | {"question_id": 29, "question_deleted": 1}]
    (record,), report = do_import(tmp_path, "music-avqa", {"avqa-test.json": rows})
    assert "Is the violin in the video always playing?" in asked(record)
    assert record["answer"] == "no"
    assert record["question_type"] == "Audio-Visual/Existential"
    assert report.left_out == {"id and question came before": 1, "question deleted by its authors": 1}


def test_tvqa_takes_frames_sound_and_subtitles_as_one_video(tmp_path: Path) -> None:
    clip = "met_s06e22_seg01_clip_02"
    media = folder(tmp_path, f"frames/met_frames/{clip}/00001.jpg", f"audio/{clip}.wav")
    files = {"tvqa_val.jsonl": [TVQA], "subtitles.jsonl": [SUBTITLES]}
    (record,), _ = do_import(tmp_path, "tvqa", files, media)
    assert medium(record) == {
        "type": "video",
        "video": f"../media/frames/met_frames/{clip}",
        "audio": f"../media/audio/{clip}.wav",
    }
    assert "[00:00] ( Robin :) Hi.\n[00:05] Look!\n" in asked(record)
    assert record["answer"].endswith("A beer bottle")


def test_tvqa_asks_about_the_located_span_as_its_authors_do(tmp_path: Path) -> None:
    def located(ts: str, media: Path | None = None) -> tuple[dict, str, dict]:
        files = {"tvqa_val.jsonl": [TVQA | {"ts": ts}], "subtitles.jsonl": [SUBTITLES]}
        (record,), report = do_import(tmp_path, "tvqa", files, media, localised=True)
        return medium(record), asked(record), report.noted

    video, text, _ = located("1.21-8.49")
    assert (video["start"], video["end"]) == (0, pytest.approx(28 / 3))
    assert "[00:00] ( Robin :) Hi.\n[00:05] Look!\n" in text  # the line before comes along
    video, text, _ = located("19.18-19.18")
    assert (video["start"], video["end"]) == (18, 20)
    assert "Look!" in text  # the nearest
    video, text, noted = located("8.49-1.21")  # they leave it reversed: none of the frames, the nearest lines
    assert video["type"] == "text"
    assert "Look!" in text
    assert noted == {
        "span reversed: left so, as the authors do": 1,
        "no frames in the span: asked without the video": 1,
    }
    assert located("8.49-8.01")[0]["type"] == "video"  # a second more at both ends puts it right


def test_tvqa_spans_end_with_the_frames(tmp_path: Path) -> None:
    clip = TVQA["vid_name"]
    media = folder(tmp_path, *(f"frames/{clip}/{number:05}.jpg" for number in range(1, 61)))  # 20 s
    spans = ["15.0-20.03", "NaN-NaN", "30.0-31.0"]
    rows = [TVQA | {"qid": number, "ts": ts} for number, ts in enumerate(spans)]
    records, _ = do_import(tmp_path, "tvqa", {"tvqa_val.jsonl": rows}, media, localised=True)
    assert [(medium(record)["start"], medium(record)["end"]) for record in records] == [
        (14, 20), (9, 20), (19, 20),
    ]  # fmt: skip


SRT = """1
00:00:00,400 --> 00:00:01,000
( Robin :) Hi.

2
00:00:05,200 --> 00:00:06,000
Café
is there!

3
00:01:07,000 --> 00:01:08,000
"""


def test_tvqa_with_the_subtitles_that_its_authors_give(tmp_path: Path) -> None:
    clip = TVQA["vid_name"]
    (tmp_path / "tvqa_subtitles").mkdir()
    (tmp_path / "tvqa_subtitles" / f"{clip}.srt").write_bytes(SRT.encode("iso-8859-1"))
    (tmp_path / "v.jsonl").write_text(json.dumps(TVQA))
    paths = [tmp_path / "v.jsonl", tmp_path / "tvqa_subtitles"]
    report = import_records("tvqa", paths, None, tmp_path / "out")
    (record,) = read(tmp_path / "out" / "records.jsonl")
    assert "Subtitles:\n[00:00] ( Robin :) Hi.\n[00:05] Café is there!\n" in asked(record)
    assert report.noted == {}
    plus = {
        clip: {"sub_text": "( Robin :) Hi. <eos> Look!", "sub_time": [0.4, 5.2]},
        "other": {"sub_text": "", "sub_time": []},
    }
    for text in (json.dumps(plus), json.dumps(plus, indent=1)):
        files = {"tvqa_plus_val.json": [TVQA], "tvqa_plus_subtitles.json": text}
        (record,), _ = do_import(tmp_path, "tvqa-plus", files)
        assert "Subtitles:\n[00:00] ( Robin :) Hi.\n[00:05] Look!\n" in asked(record)


@pytest.mark.parametrize(
    ("ts", "span", "noted"),
    [
        ("NaN-NaN", [10, 30], "span NaN: taken as 10 to 30 s, as the authors do"),
        ("84.2-76.01", [84.2, 76.01], "span reversed: left so, as the authors do"),
        ("19.18-19.18", [19.18, 19.18], "span empty"),
        ([1.5, 3], [1.5, 3], None),
    ],
)
def test_tvqa_spans_that_are_none(tmp_path: Path, ts, span: list[float], noted: str | None) -> None:
    (record,), report = do_import(tmp_path, "tvqa-plus", {"v.json": [TVQA | {"ts": ts, "answer_idx": "4"}]})
    assert record["span"] == span
    assert list(report.noted) == ([noted] if noted else [])
    assert record["answer"].endswith("A beer bottle")


def test_a_test_set_without_answers_is_there_to_be_answered_not_trained(tmp_path: Path) -> None:
    row = {key: value for key, value in TVQA.items() if key != "answer_idx"}
    (record,), _ = do_import(tmp_path, "tvqa", {"tvqa_test_public.jsonl": [row]})
    assert record["answer"] is None
    assert len(record["messages"]) == 1
    folder(tmp_path / "out", "x")
    (tmp_path / "out" / medium(record)["video"]).write_bytes(b"x")
    assert JsonlSource(tmp_path / "out" / "records.jsonl").conversations(0) == []
