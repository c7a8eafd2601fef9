"""Folders named by class, COCO's captions, LJSpeech, Kaldi, and moment queries."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.importers.write import import_records
from mllm.errors import RecordError
from tests.data_prep.importing import asked, do_import, folder, medium, read


def test_folders_are_classes(tmp_path: Path) -> None:
    media = folder(tmp_path, "dog_bark/a.wav", "dog_bark/more/b.mp4", "cat/a.wav", "readme.txt", "c.wav")
    records, report = do_import(tmp_path, "folders", {}, media)
    told = {record["id"]: (medium(record)["type"], record["answer"]) for record in records}
    assert told == {
        "folders/cat/a.wav": ("audio", "cat"),
        "folders/dog_bark/a.wav": ("audio", "dog bark"),
        "folders/dog_bark/more/b.mp4": ("video", "dog bark"),
    }
    assert records[0]["options"] == ["cat", "dog bark"]
    assert "cat, dog bark" in asked(records[0])
    assert report.left_out == {"in no folder of a class": 1}


def test_folders_of_splits_hold_the_folders_of_classes(tmp_path: Path) -> None:
    media = folder(tmp_path, *(f"{split}/{name}/a.jpg" for split in ("train", "test") for name in "xy"))
    records, report = do_import(tmp_path, "folders", {}, media, held_out={"split": {"test"}})
    assert [record["labels"] for record in records] == [
        {"class": "x", "split": "train"},
        {"class": "y", "split": "train"},
    ]
    assert report.held_out == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["clips/dog/a.wav", "clips/cat/b.wav"], "folders: all lie in 'clips': give --media the folder that"),
        (["a.wav"], "folders: there is no recording in a folder: give --media"),
    ],
)
def test_the_folder_above_or_below_is_told(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(RecordError, match=f"^{message}"):
        do_import(tmp_path, "folders", {}, folder(tmp_path, *names))


COCO = {
    "images": [
        {"id": 9, "file_name": "000000000009.jpg"},
        {"id": 25, "file_name": "000000000025.jpg"},
        {"id": 30, "file_name": "000000000030.jpg"},
    ],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "A plate of food."},
        {"image_id": 25, "id": 2, "caption": "Two giraffes."},
        {"image_id": 9, "id": 3, "caption": "Broccoli, and bread.\n"},
        {"image_id": 7, "id": 4, "caption": "Nowhere."},
    ],
}


def test_coco_captions_of_one_picture_stand_together(tmp_path: Path) -> None:
    media = folder(tmp_path, "val2017/000000000009.jpg", "val2017/000000000025.jpg")
    instances = {"images": COCO["images"], "annotations": [{"image_id": 9, "bbox": [0, 0, 1, 1]}]}
    files = {"captions_val2017.json": COCO, "instances_val2017.json": instances}
    records, report = do_import(tmp_path, "coco-captions", files, media)
    assert [record["captions"]["video"] for record in records] == [
        ["A plate of food.", "Broccoli, and bread."],
        ["Two giraffes."],
    ]
    assert medium(records[0])["image"].endswith("val2017/000000000009.jpg")
    assert report.left_out == {
        "picture without a caption": 1,
        "picture that has captions, and is not listed": 1,
    }
    assert report.noted == {"file without captions, such as instances_val2017.json": 1}
    assert report.missing == []


def test_karpathys_splits(tmp_path: Path) -> None:
    image = {
        "filename": "a.jpg",
        "imgid": 0,
        "split": "val",
        "sentences": [{"raw": "A dog."}, {"raw": "It."}],
    }
    (record,), _ = do_import(tmp_path, "coco-captions", {"dataset_coco.json": {"images": [image]}})
    assert (record["captions"]["video"], record["labels"]) == (["A dog.", "It."], {"split": "val"})


def test_coco_of_another_task_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="^c.json: no list of 'images': give captions_<split>.json"):
        do_import(tmp_path, "coco-captions", {"c.json": {"info": 1}})


def test_folders_by_class_and_then_by_split(tmp_path: Path) -> None:
    names = (
        "V\u00f6gel/train/a.wav",
        "Vo\u0308gel/test/b.wav",
        "Hunde/speaker1/c.wav",
    )  # NFC, NFD as on macOS
    records, report = do_import(tmp_path, "folders", {}, folder(tmp_path, *names))
    labels = sorted((record["answer"], record["labels"].get("split", "")) for record in records)
    assert labels == [("Hunde", ""), ("V\u00f6gel", "test"), ("V\u00f6gel", "train")]
    note = "folder in a folder, such as Hunde/speaker1: the outer one names the class"
    assert report.noted == {note: 1}


def test_coco_with_odd_annotations(tmp_path: Path) -> None:
    images = [{"id": "1", "file_name": "1.jpg"}]  # its annotations count in numbers
    annotations = [None, {"image_id": 1, "bbox": []}, {"image_id": 1, "caption": "A dog."}]
    whole = {"images": images, "annotations": annotations}
    (record,), report = do_import(tmp_path, "coco-captions", {"c.json": whole}, folder(tmp_path, "1.jpg"))
    assert (record["answer"], sum(report.left_out.values())) == ("A dog.", 2)
    with pytest.raises(RecordError, match="^c.json: 'annotations' is no list"):
        do_import(tmp_path, "coco-captions", {"c.json": {"images": images, "annotations": {"1": "A"}}})


def test_ljspeech_takes_the_normalised_text(tmp_path: Path) -> None:
    text = 'LJ001-0001|"Printing, in 1450|"Printing, in fourteen fifty\nLJ001-0002|He said "no"|\n\n'
    media = folder(tmp_path, "wavs/LJ001-0001.wav", "wavs/LJ001-0002.flac")
    (first, second), report = do_import(tmp_path, "ljspeech", {"metadata.csv": text}, media)
    assert (first["task"], first["answer"]) == ("transcript", '"Printing, in fourteen fifty')
    assert second["answer"] == 'He said "no"'
    assert medium(second)["audio"].endswith("wavs/LJ001-0002.flac")
    assert report.missing == []


def test_ljspeech_with_two_columns_and_file_lists_with_speakers(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "ljspeech", {"metadata.csv": "de-0004|Er sagt: nein\n"})
    assert (record["id"], record["answer"]) == ("ljspeech/de-0004", "Er sagt: nein")
    (record,), _ = do_import(tmp_path, "ljspeech", {"train.txt": "wavs/a.wav|Hello|p225\n"})
    assert (record["id"], record["labels"]) == ("ljspeech/a", {"speaker": "p225"})


@pytest.mark.parametrize(
    ("text", "answers", "speakers"),
    [
        ("wavs/a.wav|0|Hello there\nwavs/b.wav|1|Go\n", ["Hello there", "Go"], ["0", "1"]),  # VITS
        ("a|bob|Hello there\nb|eve|Go\n", ["Hello there", "Go"], ["bob", "eve"]),  # Piper
        ("a.wav|bob|EN|Hello there\nb.wav|eve|EN|Go\n", ["Hello there", "Go"], ["bob", "eve"]),  # GPT-SoVITS
        ("wavs/a.wav|Dr. X|Doctor X\nwavs/b.wav|Go|Go\n", ["Doctor X", "Go"], [None, None]),
        ("a|Dr. X|\nb|Go|Go\n", ["Dr. X", "Go"], [None, None]),
    ],
)
def test_the_text_of_a_file_list_is_told_from_the_speaker(
    tmp_path: Path, text: str, answers: list[str], speakers: list[str | None]
) -> None:
    records, _ = do_import(tmp_path, "ljspeech", {"train.txt": text})
    assert [record["answer"] for record in records] == answers
    assert [record.get("labels", {}).get("speaker") for record in records] == speakers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.wav|0|yes\nb.wav|1|no\n", "m.csv: 3 columns, and which is the text cannot be told"),
        ("audio_file|text|speaker\na.wav|b|c\n", "m.csv: has a header, which ljspeech has not: import it as"),
        ("a, b\n", r"m.csv line 1: must be id\|text"),
    ],
)
def test_what_is_no_ljspeech_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecordError, match=f"^{message}"):
        do_import(tmp_path, "ljspeech", {"m.csv": text})


KALDI = {
    "text": "u1 HELLO THERE\nu2 GO\nu3\nu4 LOST\nu5 PIPED\nu6 PACKED\n",
    "wav.scp": "r1 wav/r1.flac\nr5 flac -c -d -s wav/r5.flac |\nr6 raw.ark:17\n",
    "segments": "u1 r1 1.5 3.25\nu2 r1 4 -1\nu3 r1 0 1\nu4 r4 0 1\nu5 r5 0 2\nu6 r6 0 1\n",
    "utt2spk": "u1 s1\nu2 s1\n",
    "spk2gender": "s1 f\n",
}


def test_kaldi(tmp_path: Path) -> None:
    media = folder(tmp_path, "wav/r1.flac", "wav/r5.flac")
    (first, second, piped), report = do_import(tmp_path, "kaldi", KALDI, media)
    part = medium(first)
    assert part["audio"].endswith("wav/r1.flac")
    assert (part["start"], part["end"]) == (1.5, 3.25)
    assert (first["answer"], first["words"]) == ("HELLO THERE", [[0.0, 1.75, "HELLO THERE"]])
    assert first["labels"] == {"speaker": "s1", "gender": "f"}
    assert (medium(second)["start"], "end" in medium(second), "words" in second) == (4.0, False, False)
    assert medium(piped)["audio"].endswith("wav/r5.flac")  # no command is run
    assert report.left_out == {
        "empty question or answer": 1,
        "utterance that wav.scp does not list": 1,
        "sound of a command or an archive (wav.scp)": 1,
    }


def test_a_kaldi_folder_without_segments(tmp_path: Path) -> None:
    data = tmp_path / "train"
    data.mkdir()
    (data / "text").write_text("u1\thello\n")
    (data / "wav.scp").write_text(f"u1 {tmp_path}/u1.wav\n")
    (data / "conf.yaml").write_text("no annotation")
    (tmp_path / "u1.wav").touch()
    report = import_records("kaldi", [data], None, tmp_path / "out")
    (record,) = read(tmp_path / "out" / "records.jsonl")
    assert medium(record)["audio"] == "../u1.wav"
    assert (report.missing, report.noted) == ([], {})
    with pytest.raises(RecordError, match="^kaldi: no file called text: give --annotations a data folder"):
        do_import(tmp_path, "kaldi", {"wav.scp": "a b\n"})


def test_kaldi_splits_that_number_alike(tmp_path: Path) -> None:
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "text").write_text(f"u1 said in {split}\n")
        (tmp_path / split / "wav.scp").write_text(f"u1 {split}.wav\n")
    import_records("kaldi", [tmp_path], None, tmp_path / "out")
    records = read(tmp_path / "out" / "records.jsonl")
    assert [(Path(medium(record)["audio"]).name, record["answer"]) for record in records] == [
        ("test.wav", "said in test"),
        ("train.wav", "said in train"),
    ]


@pytest.mark.parametrize(
    "command",
    [
        "sox a.wav -t wav - trim 1 2 |",  # a part of it
        "sph2pipe -f wav -p -c 2 a.wav |",  # one of two speakers
        "ffmpeg -ss 3 -i a.wav -f wav - |",
        "sox a.wav -t wav - speed 0.9 |",
        "cat 'a.wav |",
    ],
)
def test_kaldi_leaves_out_what_a_command_cuts_out_of_a_recording(tmp_path: Path, command: str) -> None:
    files = {"text": "u1 hello\nu2 go\n", "wav.scp": f"u1 {command}\nu2 sox 'my b.wav' -r 16k -t wav - |\n"}
    (record,), report = do_import(tmp_path, "kaldi", files, folder(tmp_path, "a.wav", "my b.wav"))
    assert medium(record)["audio"].endswith("my b.wav")
    assert report.left_out == {"sound of a command or an archive (wav.scp)": 1}


QV = {"qid": 1, "query": "a bell rings", "duration": 150, "vid": "abc_60.0_210.0"}


def test_moment_queries_of_qvhighlights(tmp_path: Path) -> None:
    rows = [QV | {"relevant_windows": [[82, 150], [10, 12.5]], "saliency_scores": []}, QV | {"qid": 2}]
    media = folder(tmp_path, "abc_60.0_210.0.mp4")
    (record, kept_back), report = do_import(tmp_path, "moments", {"val.jsonl": rows}, media)
    assert (record["task"], record["query"]) == ("moments", "a bell rings")
    assert record["spans"] == [[82.0, 150.0], [10.0, 12.5]]
    assert record["answer"] == "01:22 to 02:30, 00:10 to 00:12.5"
    assert "a bell rings" in asked(record)
    assert medium(record)["video"].endswith("abc_60.0_210.0.mp4")
    assert (kept_back["answer"], "spans" in kept_back) == (None, False)
    assert (report.noted, report.missing) == ({"no spans given: kept to be answered": 1}, [])


@pytest.mark.parametrize(
    ("files", "kind", "spans"),
    [
        ({"charades_sta_test.txt": "3MSZA 24.3 30.4##person turn a light on.\n"}, "video", [[24.3, 30.4]]),
        ({"m.json": [{"video": "a.mp4", "query": "x", "start": 1, "end": 2.5}]}, "video", [[1.0, 2.5]]),
        ({"m.csv": "audio;sentence;start;end\na;x;0:01;0:02,5\n"}, "audio", [[1.0, 2.5]]),
        ({"m.jsonl": [{"file": "a.wav", "query": "x", "spans": [[0, 1]]}]}, "audio", [[0.0, 1.0]]),
        (
            {"val_1.json": {"v_a": {"duration": 9, "timestamps": [[0, 4]], "sentences": [" He jumps."]}}},
            "video",
            [[0.0, 4.0]],
        ),
    ],
)
def test_moment_queries_in_other_forms(tmp_path: Path, files: dict, kind: str, spans: list) -> None:
    (record,), _ = do_import(tmp_path, "moments", files)
    assert (medium(record)["type"], record["spans"]) == (kind, spans)


def test_moment_queries_by_columns(tmp_path: Path) -> None:
    rows = [{"clip": "a.mp4", "what": "x", "when": [[0, 1]]}]
    columns = ["file=clip,query=what,spans=when"]
    (record,), _ = do_import(tmp_path, "moments", {"m.jsonl": rows}, columns=columns)
    assert (record["query"], record["spans"]) == ("x", [[0.0, 1.0]])
    with pytest.raises(
        RecordError, match=r"m.jsonl row 1: no field is called like the query \(it has clip, w"
    ):
        do_import(tmp_path, "moments", {"m.jsonl": rows})


def test_spans_that_are_none_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        QV | {"relevant_windows": [[5, 5], [1, 160]]},
        QV | {"relevant_windows": [[150, 160]], "qid": 2},
        QV | {"relevant_windows": [], "qid": 3},
    ]
    (record,), report = do_import(tmp_path, "moments", {"val.jsonl": rows})
    assert record["spans"] == [[1.0, 160.0]]
    assert report.noted == {
        "span left out: empty, reversed or outside the recording": 2,
        "span ends after its recording: left so": 1,
    }
    assert report.left_out == {"query without a span": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"p.jsonl": [QV | {"pred_relevant_windows": [[0, 1, 0.9]]}]},
            "p.jsonl row 1: these are predictions",
        ),
        ({"m.jsonl": [QV | {"relevant_windows": [3, 4]}]}, r"m.jsonl row 1: a span must be \[start, end\]"),
        ({"m.csv": "video,query,start,end\na,x,1,\n"}, "m.csv line 2: a start without an end"),
        ({"c.txt": "3MSZA 24.3##on\n"}, "c.txt line 1: must be '<video> <start> <end>##<query>'"),
    ],
)
def test_what_is_no_moment_query_is_told(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(RecordError, match=f"^{message}"):
        do_import(tmp_path, "moments", files)


def test_spans_in_the_cell_of_a_table(tmp_path: Path) -> None:
    csv = 'query,video,spans\na bell,a.mp4,"[[1, 2.5]]"\na dog,a.mp4,1-2\na cat,a.mp4,\n'
    (record, kept_back), report = do_import(tmp_path, "moments", {"m.csv": csv}, folder(tmp_path, "a.mp4"))
    assert (record["spans"], kept_back["answer"]) == ([[1.0, 2.5]], None)
    assert next(iter(report.left_out)).startswith(
        "spans: not JSON (Extra data at column 2): write [[1.5, 4]]"
    )
