"""Captions and sound events, as they stand in the official files, and the records that come of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.importers.write import import_records, parse_held_out
from mllm.errors import RecordError
from tests.data_prep.importing import asked, do_import, folder, medium, read


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
    import_records("clotho", [path], None, tmp_path / "out", encoding="cp949")
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
    assert (records[0]["task"], records[0]["answer"]) == ("transcript", "cut the onion")
    assert records[0]["words"] == [[0.0, 2.5, "cut the onion"]]
    assert "seen" not in asked(records[0])
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
