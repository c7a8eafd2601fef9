"""Importers: one official excerpt for each, as it stands in the files, and the records that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.importers import IMPORTERS
from data_prep.importers.write import _portable, import_records, parse_held_out
from mllm.cli import main
from mllm.errors import ConfigError, MllmError, RecordError
from mllm.records import JsonlSource, read_records

QUESTION = {"question": "who opens a box?", "answer": "man"}


def do_import(tmp_path: Path, name: str, files: dict[str, object], media: Path | None = None, **options):
    """Writes annotation files, imports them, and returns (records, report); text is written as it is."""
    paths = []
    for file, content in files.items():
        path = tmp_path / file
        if not isinstance(content, str):
            lines = path.suffix == ".jsonl"
            content = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    report = import_records(name, paths, media, tmp_path / "out", **options)
    return read(tmp_path / "out" / "records.jsonl"), report


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def asked(record: dict) -> str:
    return "".join(part.get("text", "") for part in record["messages"][0]["content"])


def medium(record: dict) -> dict:
    return record["messages"][0]["content"][0]


def folder(tmp_path: Path, *names: str) -> Path:
    media = tmp_path / "media"
    for name in names:
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(b"x")
    return media


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


MUSIC = {
    "video_id": "00000086", "question_id": 28, "type": "[\"Audio-Visual\", \"Existential\"]",
    "question_content": "Is the <Object> in the video always playing?", "templ_values": "[\"violin\"]",
    "question_deleted": 0, "anser": "no",
}  # fmt: skip


def test_music_avqa_reads_anser_and_fills_its_gaps(tmp_path: Path) -> None:
    rows = [MUSIC, MUSIC | {"anser": "yes"}, MUSIC | {"question_id": 29, "question_deleted": 1}]
    (record,), report = do_import(tmp_path, "music-avqa", {"avqa-test.json": rows})
    assert "Is the violin in the video always playing?" in asked(record)
    assert record["answer"] == "no"
    assert record["question_type"] == "Audio-Visual/Existential"
    assert report.left_out == {"id and question came before": 1, "question deleted by its authors": 1}


TVQA = {
    "a0": "A martini glass", "a1": "Nachos", "a2": "Her purse", "a3": "A book", "a4": "A beer bottle",
    "answer_idx": 4, "q": "What is Robin holding?", "qid": 7, "ts": "1.21-8.49",
    "vid_name": "met_s06e22_seg01_clip_02", "show_name": "How I Met Your Mother",
}  # fmt: skip
SUBTITLES = {
    "vid_name": "met_s06e22_seg01_clip_02",
    "sub": [
        {"text": "( Robin :) Hi.", "start": 0.4, "end": 1.0},
        {"text": "Look!", "start": 5.2, "end": 6.0},
    ],
}


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


def test_msrvtt_captions_of_the_listed_videos_only(tmp_path: Path) -> None:
    info = {
        "videos": [{"video_id": "video1"}],
        "sentences": [
            {"caption": caption, "video_id": video, "sen_id": 0}
            for video, caption in [("video1", "a man sings"), ("video2", "a cat"), ("video1", "a song")]
        ],
    }
    files = {"videodatainfo_2016.json": info, "MSRVTT_train.9k.csv": "video_id\nvideo1\nvideo7\n"}
    (record,), report = do_import(tmp_path, "msrvtt-captions", files)
    assert record["captions"] == {"video": ["a man sings", "a song"], "audio": [], "both": []}
    assert record["answer"] in ("a man sings", "a song")
    assert report.left_out == {"listed, but without a caption": 1}


def test_msrvtt_retrieval_split(tmp_path: Path) -> None:
    csv = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something to system\n"
    (record,), _ = do_import(tmp_path, "msrvtt-captions", {"MSRVTT_JSFUSION_test.csv": csv})
    assert record["id"] == "msrvtt-captions/video9770"
    assert record["captions"]["video"] == ["a person is connecting something to system"]


def test_audiocaps(tmp_path: Path) -> None:
    csv = "audiocap_id,youtube_id,start_time,caption\n103549,7fmOlUlwoNg,20,Constant rattling, and sharp\n"
    with pytest.raises(RecordError, match="test.csv line 2: 5 columns where 4 were announced: put quotation"):
        do_import(tmp_path, "audiocaps", {"test.csv": csv})
    csv = csv.replace("Constant rattling, and sharp", '"Constant rattling, and sharp"')
    media = folder(tmp_path, "test/7fmOlUlwoNg_20.wav")
    (record,), report = do_import(tmp_path, "audiocaps", {"test.csv": csv}, media)
    assert record["captions"]["audio"] == ["Constant rattling, and sharp"]
    assert medium(record)["audio"].endswith("7fmOlUlwoNg_20.wav")
    assert report.missing == []


def test_clotho_in_a_mirrors_encoding(tmp_path: Path) -> None:
    path = tmp_path / "clotho_captions_evaluation.csv"
    text = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n빗소리.wav,one,two,three,four,five\n"
    path.write_bytes(text.encode("cp949"))
    import_records("clotho", [path], None, tmp_path / "out")
    (record,) = read(tmp_path / "out" / "records.jsonl")
    assert medium(record)["audio"] == "빗소리.wav"
    assert record["captions"]["audio"] == ["one", "two", "three", "four", "five"]


def test_vggsound_has_no_header(tmp_path: Path) -> None:
    row = '---g-f_I2yQ,1,"people marching, singing",test\n'
    (record,), _ = do_import(tmp_path, "vggsound", {"vggsound.csv": row})
    assert medium(record)["video"] == "---g-f_I2yQ_000001.mp4"
    assert record["answer"] == "people marching, singing"
    assert record["labels"] == {"split": "test"}


def test_the_splits_within_a_file_can_be_held_out(tmp_path: Path) -> None:
    rows = '---g-f_I2yQ,1,"people marching, singing",test\nabc,2,dog,train\n'
    held_out = parse_held_out(["split=test,validate"])
    (record,), report = do_import(tmp_path, "vggsound", {"vggsound.csv": rows}, held_out=held_out)
    assert (record["answer"], report.held_out) == ("dog", 1)
    info = {
        "videos": [{"video_id": "video1", "split": "train"}, {"video_id": "video2", "split": "validate"}],
        "sentences": [{"caption": f"of {video}", "video_id": video} for video in ("video1", "video2")],
    }
    files = {"train_val_videodatainfo.json": info}
    (record,), report = do_import(tmp_path, "msrvtt-captions", files, held_out=held_out)
    assert (record["answer"], report.held_out) == ("of video1", 1)


def test_vggsound_as_sound_alone(tmp_path: Path) -> None:
    media = folder(tmp_path, "a/---g-f_I2yQ_000001.wav")
    (record,), report = do_import(tmp_path, "vggsound", {"v.csv": "---g-f_I2yQ,1,bells,test\n"}, media)
    assert medium(record) == {"type": "audio", "audio": "../media/a/---g-f_I2yQ_000001.wav"}
    assert report.missing == []


def test_webvid(tmp_path: Path) -> None:
    csv = "videoid,contentUrl,duration,page_dir,name\n21179416,http://x,PT0H,006001_006050,Aerial shot\n"
    (record,), _ = do_import(
        tmp_path, "webvid", {"results_2M_val.csv": csv}, folder(tmp_path, "006001_006050/21179416.mp4")
    )
    assert medium(record)["video"].endswith("006001_006050/21179416.mp4")
    assert record["answer"] == "Aerial shot"


def test_howto100m_gives_a_record_for_each_thing_said(tmp_path: Path) -> None:
    said = {"start": [1.5, 4, 6], "end": [4, 6, 6], "text": ["cut the onion", "then fry it", "gone"]}
    records, report = do_import(tmp_path, "howto100m", {"caption.json": {"xZecGPPhbHE": said}})
    assert [medium(record) for record in records] == [
        {"type": "video", "video": "xZecGPPhbHE.mp4", "start": 1.5, "end": 4.0},
        {"type": "video", "video": "xZecGPPhbHE.mp4", "start": 4.0, "end": 6.0},
    ]
    assert records[0]["captions"]["both"] == ["cut the onion"]
    assert report.left_out == {"empty span or text": 1}


def test_flickr8k_audio_gives_captions_and_transcripts(tmp_path: Path) -> None:
    files = {
        "Flickr8k.token.txt": "1.jpg#0\tA child climbs .\n1.jpg#1\tA girl goes in .\n"
        "2258277193_586949ec62.jpg.1#0\tpeople waiting\n",  # stands in the official file
        "wav2capt.txt": "1_0.wav 1.jpg #0\n1_1.wav 1.jpg #1\n2_0.wav 2.jpg #0\n",
    }
    (picture, first, second), report = do_import(tmp_path, "flickr8k-audio", files)
    assert picture["captions"]["video"] == ["A child climbs .", "A girl goes in ."]
    assert (medium(first)["audio"], first["answer"]) == ("1_0.wav", "A child climbs .")
    assert second["task"] == "transcript"
    assert report.left_out == {
        "caption of a picture that does not exist": 1,
        "spoken caption without its text": 1,
    }


IEMOCAP = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
[10.0100 - 11.3925]\tSes05M_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes01F_impro01_F002\txxx\t[2.5000, 2.5000, 2.5000]
"""


def test_iemocap_has_four_emotions(tmp_path: Path) -> None:
    records, report = do_import(tmp_path, "iemocap", {"Ses01F_impro01.txt": IEMOCAP})
    assert [(record["answer"], record["labels"]["session"]) for record in records] == [
        ("neutral", "1"),
        ("happy", "5"),
    ]
    assert records[1]["labels"]["actor"] == "05M"
    assert records[0]["options"] == ["angry", "happy", "neutral", "sad"]
    assert report.left_out == {"emotion 'xxx' is not of the four": 1}


@pytest.mark.parametrize(
    ("name", "file", "answer", "labels"),
    [
        ("crema-d", "1001_DFA_ANG_XX.wav", "angry", {"actor": "1001", "sentence": "DFA", "level": "XX"}),
        (
            "ravdess",
            "03-01-06-01-02-01-12.wav",
            "afraid",
            {"actor": "12", "intensity": "01", "sentence": "02"},
        ),
        ("emodb", "03a01Fa.wav", "happy", {"actor": "03", "sentence": "a01"}),
        ("fsdd", "7_jackson_32.wav", "seven", {"actor": "jackson", "index": "32"}),
    ],
)
def test_labels_from_file_names(tmp_path: Path, name: str, file: str, answer: str, labels: dict) -> None:
    media = folder(tmp_path, f"audio/{file}", "audio/notes.wav")
    (record,), report = do_import(tmp_path, name, {}, media)
    assert record["answer"] == answer
    assert answer in record["options"]
    assert all(option in asked(record) for option in record["options"])
    assert labels.items() <= record["labels"].items()
    assert report.left_out == {f"file names not like {name}'s, such as notes.wav": 1}


@pytest.mark.parametrize(
    "table",
    [
        {
            "summaryTable.csv": '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel",'
            '"MultiModalVote","MultiModalLevel"\n"1","1001_DFA_ANG_XX","A:S","57:61","D","70","A","66"\n'
        },
        {
            "tabulatedVotes.csv": '"","A","S","fileName","emoVote"\n100001,4,4,"1001_DFA_ANG_XX","A:S"\n'
            '200001,0,9,"1001_DFA_ANG_XX","S"\n'
        },
    ],
    ids=["summary", "tabulated"],
)
def test_crema_d_with_what_listeners_heard(tmp_path: Path, table: dict[str, str]) -> None:
    media = folder(tmp_path, "1001_DFA_ANG_XX.wav", "1002_DFA_SAD_XX.wav")
    (first, second), report = do_import(tmp_path, "crema-d", table, media)
    assert (first["answer"], first["labels"]["perceived"]) == ("angry", "angry:sad")
    assert "perceived" not in second["labels"]
    assert report.noted == {"no votes given": 1}


def test_ravdess_songs_are_left_out(tmp_path: Path) -> None:
    media = folder(tmp_path, "03-01-06-01-02-01-12.wav", "03-02-06-01-02-01-12.wav")
    (_,), report = do_import(tmp_path, "ravdess", {}, media)
    assert report.left_out == {"song, not speech": 1}


MELD = """Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime
1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,3,4,7,"00:20:57,256","00:21:00,049"
"""


def test_meld_and_two_clips_of_one_name(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "meld", {"dev.csv": MELD}, folder(tmp_path, "dev/dia0_utt3.mp4"))
    assert record["answer"] == "sadness"
    assert record["id"] == "meld/dev/dia0_utt3"
    assert asked(record).startswith("Subtitles:\n[00:00] Oh my God, he’s lost it.\n")
    media = folder(tmp_path, "test/dia0_utt3.mp4")
    with pytest.raises(RecordError, match="^all.csv line 2: --media .* are both called 'dia0_utt3': give "):
        do_import(tmp_path, "meld", {"all.csv": MELD}, media)


def test_meld_takes_the_clips_of_the_split_that_a_file_is_called_by(tmp_path: Path) -> None:
    names = ["train_splits/dia0_utt3.mp4", "output_repeated_splits_test/dia0_utt3.mp4"]
    media = folder(tmp_path, *names, "dev_splits_complete/dia0_utt4.mp4")
    files = {f"{split}_sent_emo.csv": MELD for split in ("train", "dev", "test")}
    records, report = do_import(tmp_path, "meld", files, media)
    assert [medium(record)["video"] for record in records] == [
        "../media/train_splits/dia0_utt3.mp4", "../media/dia0_utt3.mp4",
        "../media/output_repeated_splits_test/dia0_utt3.mp4",
    ]  # fmt: skip
    assert report.missing == ["dia0_utt3.mp4"]  # not that of another split


def test_meld_emotions_are_those_of_the_set(tmp_path: Path) -> None:
    table = MELD + MELD.splitlines()[1].replace("sadness", "Joy").replace(",0,3,", ",0,4,") + "\n"
    table += MELD.splitlines()[1].replace("sadness", "awe").replace(",0,3,", ",0,5,") + "\n"
    records, report = do_import(tmp_path, "meld", {"dev.csv": table})
    assert [record["answer"] for record in records] == ["sadness", "joy"]
    assert report.left_out == {"emotion 'awe' is not of the seven": 1}


def test_meld_dyadic_finds_the_clips_by_their_old_numbers(tmp_path: Path) -> None:
    table = MELD.replace("Utterance_ID,", "Utterance_ID,Old_Dialogue_ID,Old_Utterance_ID,")
    table = table.replace("negative,0,3,", "negative,0,0,7,3,")
    (record,), _ = do_import(tmp_path, "meld", {"train_dya.csv": table})
    assert record["id"] == "meld/train/dia0_utt0"
    assert medium(record)["video"].endswith("dia7_utt3.mp4")


def test_a_folder_of_annotations_is_all_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "labels" / "more").mkdir(parents=True)
    for name in ("one", "more/two"):
        row = {"id": name, "instruction": f"{name}?", "output": "yes"}
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps([row]))
    (tmp_path / "labels" / "notes.md").write_text("not an annotation")
    report = import_records("alpaca", [tmp_path / "labels"], None, tmp_path / "out")
    assert report.records == 2


def test_another_question_under_the_same_id_is_kept_and_numbered(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "instruction": text, "output": answer}
        for text, answer in [("who?", "I"), ("when?", "now"), ("who?", "you"), ("where?", "here")]
    ]
    records, report = do_import(tmp_path, "chats", {"rows.json": rows})
    assert [record["id"] for record in records] == ["chats/1", "chats/1-2", "chats/1-3"]
    assert report.left_out == {"id and question came before": 1}
    assert report.noted == {"id came before with another question: numbered": 2}


def test_ravdess_with_pictures(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "ravdess", {}, folder(tmp_path, "01-01-06-01-02-01-12.mp4"))
    assert medium(record)["type"] == "video"
    assert record["answer"] == "afraid"


def test_held_out_by_label(tmp_path: Path) -> None:
    media = folder(tmp_path, *(f"03-01-06-01-02-01-{actor:02}.wav" for actor in (1, 2, 17, 20)))
    held_out = parse_held_out(["actor=17-20"])
    records, report = do_import(tmp_path, "ravdess", {}, media, held_out=held_out)
    apart = read(tmp_path / "out" / "held_out.jsonl")
    assert [record["labels"]["actor"] for record in records] == ["1", "2"]
    assert [record["labels"]["actor"] for record in apart] == ["17", "20"]
    assert (report.records, report.held_out) == (2, 2)
    with pytest.raises(ConfigError, match="--held-out actor=99 takes none of the records"):
        do_import(tmp_path, "ravdess", {}, media, held_out=parse_held_out(["actor=99"]))
    with pytest.raises(ConfigError, match="has no such label"):
        do_import(tmp_path, "ravdess", {}, media, held_out=parse_held_out(["speaker=1"]))
    with pytest.raises(ConfigError, match="write LABEL=VALUES"):
        parse_held_out(["17-20"])
    assert parse_held_out(["actor=08-10"]) == {"actor": {"08", "09", "10"}}


def test_what_is_not_found_is_named_and_written_all_the_same(tmp_path: Path) -> None:
    media = folder(tmp_path, "b.wav")
    csv = "audiocap_id,youtube_id,start_time,caption\n1,a,0,one\n2,b,0,two\n"
    records, report = do_import(tmp_path, "audiocaps", {"t.csv": csv}, media)
    assert report.missing == ["a.wav"]
    assert len(records) == 2
    assert json.loads((tmp_path / "out" / "import.json").read_text())["missing"] == ["a.wav"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"q.json": [{"q": "?"}]}, r"q.json row 1: no field 'question_id' \(it has q\): is this the format"),
        ({"q.json": "[{]"}, "q.json: not JSON .*: write one array, or an object in each line"),
        ({"q.jsonl": json.dumps(QUESTION | {"video_id": 1}) + "\nnonsense"}, "q.jsonl row 2: not JSON"),
        ({"q.json": [3]}, "q.json row 1: a row must be an object, not int"),
        (
            {"q.xml": "<a/>"},
            ".*q.xml: annotations are read from .json, .jsonl, .csv, .tsv, .txt and .srt files",
        ),
        ({}, "msrvtt-qa: no records: give --annotations its files, or --media its recordings .*"),
        ({"q.json": " "}, "msrvtt-qa: no records in q.json: give .*"),
        ({"q.csv": "question,answer,video_id\n"}, "msrvtt-qa: no records in q.csv: give .*"),
        (
            {"q.json": json.dumps({"questions": [QUESTION]}, indent=1)},
            r"q.json \(one object, not rows\): no field 'question_id' \(it has questions\): is this .*",
        ),
        (
            {"val.jsonl": [QUESTION | {"video_id": 1}], "train_ans2label.json": '{"yes": 0, "no": 1}'},
            r"train_ans2label.json row 1: no field 'question_id' \(it has yes, no\): is this .*",
        ),
        (
            {"q.json": [QUESTION | {"question": q, "video_id": 1, "id": q} for q in (None, "a", "b")]},
            "q.json row 1: question must be text, not None: mend or drop the row",
        ),
        (
            {"q.json": [QUESTION | {"video_id": 1, "answer": ["a", "b"]}]},
            r"q.json row 1: answer must be text.*",
        ),
    ],
)
def test_bad_annotations_are_named_with_file_and_row(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(MllmError, match=f"^{message}"):
        do_import(tmp_path, "msrvtt-qa", files)
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("music-avqa", {"q.json": [MUSIC | {"templ_values": "['a']"}]}, "q.json row 1: not as music-avqa .*"),
        ("howto100m", {"h.json": {"v": {"start": [0], "end": ["x"], "text": ["a"]}}}, "h.json v: not as .*"),
        (
            "tvqa",
            {"v.jsonl": [TVQA | {"a1": None}, TVQA | {"qid": 8}], "subs.jsonl": [SUBTITLES]},
            "v.jsonl row 1: a1 must be text, not None: mend or drop the row",
        ),
        (
            "tvqa",
            {"v.jsonl": [TVQA], "subs.jsonl": [{"vid_name": "b", "sub": [{"text": "a"}]}, SUBTITLES]},
            "subs.jsonl row 1: not as tvqa .*",
        ),
        (
            "audiocaps",
            {"q.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,0\n"},
            "q.csv line 2: 3 columns where 4 were announced: write empty ones, too",
        ),
        ("crema-d", {}, "crema-d is read from file names: give --media the folder of audio recordings"),
        ("crema-d", {"t.csv": "name,vote\n1,a\n"}, "t.csv line 2: no field '' .*"),
        (
            "msrvtt-captions",
            {"i.json": {"sentences": [{"video_id": "video1", "caption": None}]}},
            "i.json sentences row 1: caption must be text, not None: mend or drop the row",
        ),
    ],
)
def test_what_an_importer_stumbles_over_is_named(
    tmp_path: Path, name: str, files: dict, message: str
) -> None:
    with pytest.raises(RecordError, match=f"^{message}$"):
        do_import(tmp_path, name, files)


def test_odd_rows_are_left_out_and_counted_the_others_imported(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": 1, "video_id": 1}, QUESTION | {"id": 2, "video_id": 1, "answer": " "}]
    half = json.dumps(rows[0] | {"id": 3, "question": "a\ud83d"})
    (record,), report = do_import(
        tmp_path, "msrvtt-qa", {"q.jsonl": "\n".join([*map(json.dumps, rows), half])}
    )
    assert record["id"] == "msrvtt-qa/1"
    assert report.left_out == {"empty question or answer": 1, "half a character in its text": 1}
    (_,), report = do_import(tmp_path, "webvid", {"r.csv": "videoid,page_dir,name\n1,,a\n2,,\n  \n"})
    assert report.left_out == {"empty question or answer": 1}


def test_missing_answers_are_no_answers(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": number, "video_id": 1} for number in range(3)]
    rows[1]["answer"], rows[2]["answer"] = None, float("nan")
    records, report = do_import(tmp_path, "msrvtt-qa", {"q.json": rows})
    assert [record["answer"] for record in records] == ["man", None, None]
    assert report.noted == {"no answer given": 2}
    said = {"start": [0, 1], "end": [1, 2], "text": [float("nan"), "x"]}
    (record,), report = do_import(tmp_path, "howto100m", {"c.json": {"v": said}})
    assert (record["answer"], report.left_out) == ("x", {"empty span or text": 1})


def test_ids_join_as_number_and_as_text(tmp_path: Path) -> None:
    files = {
        "test_q.json": [{"video_name": "video1", "question": "q", "question_id": 1}],
        "test_a.json": [{"answer": "x", "question_id": "1"}],
    }
    (record,), report = do_import(tmp_path, "msrvtt-qa", files)
    assert (record["answer"], report.noted) == ("x", {})


def test_json_is_told_by_its_content(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": number, "video_id": 1} for number in range(2)]
    for name, text in [("q.jsonl", json.dumps(rows, indent=1)), ("q.json", "\n".join(map(json.dumps, rows)))]:
        assert len(do_import(tmp_path, "msrvtt-qa", {name: text})[0]) == 2
    (record,), _ = do_import(tmp_path, "msrvtt-qa", {"one.json": json.dumps(rows[0], indent=1)})
    assert record["answer"] == "man"


@pytest.mark.parametrize(
    ("text", "encoding", "told"),
    [
        ("it’s a dog’s life", "cp1252", "cp1252"),
        ("crème brûlée – “naïve…”", "cp1252", "cp1252"),
        ("비가 온다. 빗소리", "cp949", "cp949"),
    ],
)
def test_texts_in_other_encodings_are_read_and_noted(
    tmp_path: Path, text: str, encoding: str, told: str
) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(f"videoid,page_dir,name\n1,,{text}\n".encode(encoding))
    report = import_records("webvid", [path], None, tmp_path / "out")
    assert read(tmp_path / "out" / "records.jsonl")[0]["answer"] == text
    assert report.noted == {f"file read as {told}, not UTF-8: check its texts": 1}
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(RecordError, match="^.*r.csv: is not text in UTF-8: save it as UTF-8$"):
        import_records("webvid", [path], None, tmp_path / "out")


def test_files_that_an_importer_does_not_read_are_not_passed_over(tmp_path: Path) -> None:
    info = {"sentences": [{"caption": "a", "video_id": f"video{number}"} for number in (1, 2)]}
    files = {"info.json": info, "train_list.txt": "video1\n"}
    (record,), _ = do_import(tmp_path, "msrvtt-captions", files)
    assert record["id"] == "msrvtt-captions/video1"
    with pytest.raises(RecordError, match=r"^.*x.jsonl: msrvtt-captions reads no such file: leave it out"):
        do_import(tmp_path, "msrvtt-captions", {"info.json": info, "x.jsonl": []})
    (tmp_path / "labels").mkdir()
    files = {"labels/info.json": info, "labels/x.jsonl": []}
    with pytest.raises(RecordError, match=r"^.*list.txt line 1: must be the name of one video"):
        do_import(tmp_path, "msrvtt-captions", files | {"list.txt": "These are the videos."})
    report = import_records("msrvtt-captions", [tmp_path / "labels"], None, tmp_path / "out")
    assert report.noted == {"file that msrvtt-captions does not read, such as x.jsonl": 1}
    media = folder(tmp_path, "03-01-06-01-02-01-12.wav")
    with pytest.raises(RecordError, match=r"^.*nope.csv: there is no such annotation file: check its path$"):
        import_records("ravdess", [tmp_path / "nope.csv"], media, tmp_path / "out")


def test_what_macos_leaves_beside_files_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "Ses01F_impro01.TXT").write_text(IEMOCAP)
    (tmp_path / "labels" / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07\x81\xff")
    media = folder(tmp_path, "Ses01F_impro01_F000.wav", "._Ses01F_impro01_F000.wav")
    report = import_records("iemocap", [tmp_path / "labels"], media, tmp_path / "out")
    assert report.records == 2
    _, report = do_import(tmp_path, "fsdd", {}, folder(tmp_path, "7_jackson_32.wav", "._7_jackson_32.wav"))
    assert report.left_out == {"file names not like fsdd's, such as Ses01F_impro01_F000.wav": 1}


def test_a_wrong_folder_of_recordings_is_one_short_line(tmp_path: Path) -> None:
    media = folder(tmp_path, *(f"0_george_{number}.wav" for number in range(300)))
    with pytest.raises(RecordError) as caught:
        do_import(tmp_path, "ravdess", {}, media)
    assert str(caught.value).startswith(
        "ravdess: no records; 300 file names not like ravdess's, such as 0_george_0.wav: give "
    )
    assert len(str(caught.value)) < 200


WEBVID = "videoid,page_dir,name\n1,000001_000050,cap\n"


def test_recordings_are_found_behind_links_and_in_other_folders(tmp_path: Path) -> None:
    real = folder(tmp_path / "elsewhere", "000001_000050/1.mp4")
    media = folder(tmp_path, "2.mp4")
    (media / "link").symlink_to(real)
    (media / "link" / "back").symlink_to(media)
    (record,), report = do_import(tmp_path, "webvid", {"r.csv": WEBVID}, media)
    assert (medium(record)["video"], report.noted) == ("../media/link/000001_000050/1.mp4", {})
    table = WEBVID + "2,000001_000050,flat\n"
    records, report = do_import(tmp_path, "webvid", {"r.csv": table}, media)
    assert medium(records[1])["video"] == "../media/2.mp4"
    assert report.noted == {"recording found in another folder than the one named": 1}
    media = folder(tmp_path, "a/2.mp4")  # two of the name, neither in the folder that is named
    assert do_import(tmp_path, "webvid", {"r.csv": table}, media)[1].missing == ["000001_000050/2.mp4"]


def test_recordings_are_found_under_other_spellings(tmp_path: Path) -> None:
    table = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    names = ["K\u00e4tzchen.wav", "f\\1.wav", "talk.mp4"]
    table += "".join(f"{name},a,b,c,d,e\n" for name in names)
    records, _ = do_import(tmp_path, "clotho", {"c.csv": table})
    assert [medium(record)["audio"] for record in records] == ["K\u00e4tzchen.wav", "f/1.wav", "talk.mp4"]
    media = folder(
        tmp_path, "deep/Ka\u0308tzchen.wav", "f/1.wav", "g/1.wav", "deep/talk.mp4", "deep/talk.webm"
    )
    _, report = do_import(tmp_path, "clotho", {"c.csv": table}, media)
    assert report.missing == []
    with pytest.raises(RecordError, match="^c.csv line 4: 'aaa.*'… is no path: give a file, or data"):
        do_import(tmp_path, "clotho", {"c.csv": table.replace("talk", "a" * 300)}, media)


def test_records_and_recordings_can_be_moved_together(tmp_path: Path, monkeypatch) -> None:
    project = tmp_path / "project"
    folder(project, "7_jackson_32.wav")
    (project / "deep" / "data").mkdir(parents=True)
    (project / "data").symlink_to(project / "deep" / "data")  # out/../.. leads to where the link leads
    monkeypatch.chdir(project / "deep")
    import_records("fsdd", [], Path("../media"), Path("../data/out"))
    (project / "deep" / "data" / "out" / "records.jsonl").stat()
    moved = project.rename(tmp_path / "moved")
    (record,) = read_records(moved / "deep" / "data" / "out" / "records.jsonl")
    assert medium(record)["audio"].endswith("out/../../../media/7_jackson_32.wav")
    inside = folder(tmp_path / "out", "7_jackson_32.wav")
    linked = tmp_path / "out2" / "media"
    linked.parent.mkdir()
    linked.symlink_to(inside)
    import_records("fsdd", [], linked, linked.parent)
    assert medium(read(linked.parent / "records.jsonl")[0])["audio"] == "media/7_jackson_32.wav"


def test_a_media_folder_without_a_common_root_is_named_whole(tmp_path: Path) -> None:
    assert _portable(Path("/elsewhere/media"), tmp_path) == Path("/elsewhere/media")


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    line = json.dumps({"instruction": "one\u2028two", "output": "x"}, ensure_ascii=False)
    (record,), _ = do_import(tmp_path, "alpaca", {"rows.jsonl": line})
    assert asked(record) == "one\u2028two"


def test_unknown_names_tell_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'msrvtt': did you mean 'msrvtt-qa'"):
        import_records("msrvtt", [], None, tmp_path)
    for name, meant in [("TVQA", "tvqa"), ("RAVDESS", "ravdess"), ("MSRVTT_QA", "msrvtt-qa")]:
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            import_records(name, [], None, tmp_path)
    with pytest.raises(RecordError, match="^.*none.json: there is no such annotation file: check its path$"):
        import_records("msrvtt-qa", [tmp_path / "none.json"], None, tmp_path)
    with pytest.raises(RecordError, match="is not a folder"):
        import_records("fsdd", [], tmp_path / "none", tmp_path)


def test_every_importer_says_what_it_needs() -> None:
    for name, importer in IMPORTERS.items():
        assert importer.fields, name
        assert importer.about.endswith((".", "said")), name


def test_the_command_says_what_was_left_out_and_not_found(tmp_path: Path, capsys) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["data", *arguments])
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    media = folder(tmp_path, "03-01-06-01-02-01-12.wav", "notes.wav")
    out = printed("import", "ravdess", "--media", str(media), "--out", str(tmp_path / "out"))
    assert "1 records in" in out
    assert "left out: 1 × file names not like ravdess's, such as notes.wav" in out
    (tmp_path / "test.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,a,0,one\n")
    command = ["import", "audiocaps", "--annotations", str(tmp_path / "test.csv"), "--out", str(tmp_path)]
    assert "not found in" in printed(*command, "--media", str(media))
    assert "recordings were not looked for" in printed(*command)
    assert "[start - end] turn emotion" in printed("formats")
