"""Every official annotation file at hand is read whole: as many records as its authors count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_prep.importers.write import Report, import_records
from mllm.records.record import read_records

pytestmark = pytest.mark.slow


@pytest.fixture
def counted(real_data: Path, tmp_path: Path):
    """Imports files of the real data into `tmp_path` and returns the report."""

    def counted(name: str, *files: str, media: str | None = None) -> Report:
        folder = real_data / media if media else None
        return import_records(name, [real_data / file for file in files], folder, tmp_path)

    return counted


ACTIVITYNET = "activitynet_qa/dataset"


@pytest.mark.parametrize(
    ("name", "files", "records"),
    [
        ("msrvtt-qa", ["msrvtt_qa/val.jsonl"], 12_278),
        ("msvd-qa", ["msvd_qa/train_qa.json", "msvd_qa/youtube_mapping.txt"], 30_933),
        ("msvd-qa", ["msvd_qa/val_qa.json", "msvd_qa/youtube_mapping.txt"], 6_415),
        ("msvd-qa", ["msvd_qa/test_qa.json", "msvd_qa/youtube_mapping.txt"], 13_157),
        ("activitynet-qa", [f"{ACTIVITYNET}/train_q.json", f"{ACTIVITYNET}/train_a.json"], 32_000),
        ("activitynet-qa", [f"{ACTIVITYNET}/val_q.json", f"{ACTIVITYNET}/val_a.json"], 18_000),
        ("activitynet-qa", [f"{ACTIVITYNET}/test_q.json", f"{ACTIVITYNET}/test_a.json"], 8_000),
        ("nextqa", ["nextqa/dataset/nextqa/val.csv"], 4_996),
        ("nextqa", ["nextqa/dataset/nextqa/test.csv"], 8_564),
        ("music-avqa", ["music_avqa/data/json_update/avqa-val.json"], 4_568),
        ("music-avqa", ["music_avqa/data/json_update/avqa-test.json"], 9_129),
        ("tvqa", ["tvqa/tvqa_test_public.jsonl"], 7_623),
        ("msrvtt-captions", ["msrvtt_ret/MSRVTT_JSFUSION_test.csv"], 1_000),
        ("audiocaps", ["audiocaps/dataset/train.csv"], 49_838),
        ("audiocaps", ["audiocaps/dataset/val.csv"], 2_475),
        ("audiocaps", ["audiocaps/dataset/test.csv"], 4_875),
        ("audiocaps", ["audiocaps/dataset2.0/val.csv"], 2_475),
        ("audiocaps", ["audiocaps/dataset2.0/test.csv"], 4_875),
        ("meld", ["meld/data/MELD/train_sent_emo.csv"], 9_989),
        ("meld", ["meld/data/MELD/dev_sent_emo.csv"], 1_109),
        ("meld", ["meld/data/MELD/test_sent_emo.csv"], 2_610),
        ("meld", ["meld/data/MELD_Dyadic/train_sent_emo_dya.csv"], 12_840),
        ("meld", ["meld/data/MELD_Dyadic/dev_sent_emo_dya.csv"], 1_462),
        ("meld", ["meld/data/MELD_Dyadic/test_sent_emo_dya.csv"], 3_400),
        ("meld", [f"meld/data/MELD/{split}_sent_emo.csv" for split in ("train", "dev", "test")], 13_708),
        ("chats", ["llamafactory_demo/alpaca_en_demo.json"], 999),
        ("chats", ["llamafactory_demo/identity.json"], 91),
        ("moments", ["moments/qvhighlights_val.jsonl"], 1_550),
        ("moments", ["moments/charades_test.jsonl"], 3_720),
        ("moments", ["moments/unav100_subset_test.jsonl"], 100),
        ("moments", ["real_sintel/moments.json"], 23),
    ],
)
def test_official_counts(counted, name: str, files: list[str], records: int) -> None:
    report = counted(name, *files)
    assert report.records == records
    assert report.left_out == {}


def test_music_avqa_as_first_published_answers_some_questions_twice(counted) -> None:
    report = counted("music-avqa", "music_avqa/data/json/avqa-test.json")
    assert (report.records, report.left_out) == (9_130, {"id and question came before": 55})


def test_tvqa_test_public_has_spans_that_are_none(counted) -> None:
    report = counted("tvqa", "tvqa/tvqa_test_public.jsonl")
    assert report.noted == {
        "span NaN: taken as 10 to 30 s, as the authors do": 3,
        "span empty": 2,
        "two options that say the same": 17,
    }


@pytest.mark.parametrize(
    ("name", "media", "records", "each"),
    [("ravdess", "ravdess", 640, 40), ("fsdd", "fsdd", 2_700, 270)],
)
def test_recordings_that_are_labelled_by_their_names(
    counted, tmp_path: Path, name: str, media: str, records: int, each: int
) -> None:
    report = counted(name, media=media)
    assert report.records == records
    answers = Counter(record["answer"] for record in read_records(tmp_path / "records.jsonl"))
    assert max(answers.values()) <= 2 * each
    assert min(answers.values()) >= each


def test_a_film_and_its_subtitles(counted, tmp_path: Path) -> None:
    report = counted("subtitles", media="real_sintel")
    records = list(read_records(tmp_path / "records.jsonl"))
    assert (report.records, report.missing, report.left_out) == (12, [], {})
    assert sum(len(record["words"]) for record in records) == 26  # as many as its README counts
    assert records[0]["answer"].startswith("This blade has a dark past. It has shed much innocent blood.")


def test_a_table_with_tabs_that_names_its_classes(counted, real_data: Path, tmp_path: Path) -> None:
    rows = list(read_records(real_data / "real_esc10" / "test.jsonl"))
    names = [(Path(row["messages"][0]["content"][0]["audio"]).stem, row["answer"]) for row in rows]
    table = tmp_path / "esc10.csv"
    lines = [f"{name}.wav\t{label}\n" for name, label in names]
    table.write_text("".join(["filename\tcategory\n", *lines]))
    report = counted("table", str(table), media="real_esc10")
    assert (report.records, report.missing) == (80, [])
    answers = Counter(record["answer"] for record in read_records(tmp_path / "records.jsonl"))
    assert answers == Counter(label for _, label in names)


@pytest.mark.parametrize(
    ("file", "records"),
    [("mllm_demo", 6), ("mllm_video_demo", 3), ("mllm_audio_demo", 3), ("mllm_video_audio_demo", 3)],
)
def test_chats_with_their_media(counted, tmp_path: Path, file: str, records: int) -> None:
    report = counted("chats", f"llamafactory_demo/{file}.json", media="llamafactory_demo")
    assert (report.records, report.missing) == (records, [])
    assert len(list(read_records(tmp_path / "records.jsonl"))) == records


def test_chats_whose_paths_begin_elsewhere(counted, tmp_path: Path) -> None:
    file = "llamafactory_demo/v1_multimodal_demo.jsonl"
    report = counted("chats", file, media="llamafactory_demo")
    assert report.missing == []
    assert len(list(read_records(tmp_path / "records.jsonl"))) == report.records
