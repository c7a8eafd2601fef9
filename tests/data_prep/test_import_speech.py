"""Spoken recordings with labels, as they stand in the official files or in names, and the records of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from tests.data_prep.importing import IEMOCAP, asked, do_import, folder, medium


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
    with pytest.raises(ConfigError, match="^all.csv line 2: --media .* are both called 'dia0_utt3': give "):
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


def test_ravdess_with_pictures(tmp_path: Path) -> None:
    (record,), _ = do_import(tmp_path, "ravdess", {}, folder(tmp_path, "01-01-06-01-02-01-12.mp4"))
    assert medium(record)["type"] == "video"
    assert record["answer"] == "afraid"
