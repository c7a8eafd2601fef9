"""`mllm data small`: what goes into training, validation and tests, and what never does."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.small import made, mixtures, sets
from data_prep.small.phrasing import phrasings
from data_prep.small.write import write_small
from mllm.errors import MllmError
from mllm.records.source import open_source
from tests.data_prep.small_sets import write_sets

FEW = {"SEQUENCES": 5, "TIMED": 7, "COUNTED": 4, "OVER": 5, "QUIET": 5, "SHOWN": 5}
FEW |= {"SAME": 6, "CHILD": 6, "SIDE_BY_SIDE": 5}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Few made recordings, and enough of them held back to see it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in FEW.items():
            patch.setattr(mixtures, name, number)
        patch.setattr(made, "CUTS", 3)
        patch.setattr(made, "SPOKEN", 2)
        patch.setattr(sets, "HELD_BACK", 0.15)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory, few) -> Path:
    out = tmp_path_factory.mktemp("data") / "small"
    write_small(folder, out, chat=0, workers=1)
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(row: dict) -> str:
    return row["messages"][-2]["content"][-1]["text"]


def heard_of(row: dict) -> list[str]:
    """The files that a row is about."""
    parts = row["messages"][0]["content"]
    return [part[part["type"]] for part in parts if part["type"] != "text"]


def all_tests(out: Path) -> list[dict]:
    return [row for path in sorted(out.glob("test_*.jsonl")) for row in rows(path)]


def test_every_file_is_one_that_the_trainers_read(out):
    for name in ("train", "val", "pairs"):
        source = open_source(str(out / f"{name}.jsonl"))
        assert len(source)
    pairs = open_source(str(out / "pairs.jsonl"))
    for index in range(len(pairs)):  # stage 1 takes every scene of it
        assert any(pairs.pair(index)["captions"].values())


def test_no_recording_of_a_test_is_trained(out):
    trained = {
        path for row in rows(out / "train.jsonl") + rows(out / "pairs.jsonl") for path in heard_of(row)
    }
    held = {path for row in rows(out / "val.jsonl") for path in heard_of(row)}
    tested = {path for row in all_tests(out) for path in heard_of(row)}
    assert min(len(trained), len(held), len(tested)) > 0
    assert not trained & tested
    assert not trained & held
    of_sets = {path for path in trained if "/media/" not in path and not path.startswith("media/")}
    assert not [path for path in of_sets if "/test" in path]


def test_recordings_that_were_held_back_have_no_copies_in_training(out):
    ids = {"-".join(row["id"].split("/")[:2]) for row in rows(out / "val.jsonl")}
    copied = {
        Path(path).stem for row in rows(out / "train.jsonl") for path in heard_of(row) if "copies" in path
    }
    assert copied
    assert not [name for name in copied for id in ids if name.startswith(f"{id}-")]


def test_digits_of_fsdd_are_split_by_their_index(out):
    indices = lambda data: {  # noqa: E731
        int(found[1])
        for row in data
        for path in heard_of(row)
        if (found := re.search(r"ann_(\d+)\.wav", path))
    }
    assert indices(rows(out / "train.jsonl") + rows(out / "val.jsonl")) == {10, 49}
    assert indices(all_tests(out)) == {5, 9}  # 2 belongs to the set's own test, and is left alone
    languages = [row for row in rows(out / "train.jsonl") if row["task"] == "language"]
    assert not [row for row in languages if row["source"] == "fsdd"]  # so that it can test language
    assert {row["answer"] for row in rows(out / "test_language_fsdd.jsonl")} == {"English"}


def test_phrasings_of_the_test_are_never_trained(out):
    for task, of_task in phrasings().items():
        assert not set(of_task["test"]) & {*of_task["train"], *of_task["own"]}, task
        assert len({*of_task["train"], *of_task["own"]}) >= 8, task
        assert len(of_task["test"]) >= 3, task
    assert not {asked(row) for row in rows(out / "train.jsonl")} & {asked(row) for row in all_tests(out)}


def test_answers_of_closed_lists_are_one_of_the_options_as_written(out):
    closed = [row for row in rows(out / "train.jsonl") + all_tests(out) if row.get("options")]
    assert closed
    for row in closed:
        assert row["answer"] in row["options"]
        assert all(option in asked(row) for option in row["options"])


def test_blind_guesses_do_not_win(out):
    train = rows(out / "train.jsonl")
    for task in ("sound_yes", "object_yes", "same", "which_child", "count"):
        answers = Counter(row["answer"] for row in train if row["task"] == task)
        assert max(answers.values()) <= 0.65 * sum(answers.values()), (task, answers)
    orders = {tuple(row["options"]) for row in train if row["task"] == "emotion" and len(row["options"]) == 7}
    assert len(orders) > 2  # the place in the list tells nothing


def test_short_speech_is_there_in_every_language(out):
    short = [
        row for row in rows(out / "train.jsonl") if row["task"] == "language" and row["source"] == "words"
    ]
    assert set(Counter(row["answer"] for row in short)) == {"English", "German", "Arabic"}


def test_pictures_that_are_not_free_never_appear(out, folder):
    names = {path for file in out.glob("*.jsonl") for row in rows(file) for path in heard_of(row)}
    photos = {Path(name).stem for name in names if "coco_mini" in name}
    assert photos == {"train1", "train3", "test1", "test3"}
    assert "https://photos.test/train0" not in (out / "attribution.md").read_text()


def test_the_attribution_names_sets_licences_and_single_credits(out):
    told = (out / "attribution.md").read_text()
    assert "Licence: CC BY-SA 4.0" in told
    assert "“train rain”, https://sounds.test/" in told
    assert "`--without caltech101` leaves them out" in told


def test_a_set_can_be_left_out_and_a_missing_one_is_named(out, folder, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    shutil.rmtree(some / "real_caltech101")
    with pytest.raises(
        MllmError, match=r"no real_caltech101: put it there, or leave it out with --without caltech101"
    ):
        write_small(some, tmp_path / "out", chat=0, workers=1)
    with pytest.raises(MllmError, match="--without birds: no such set: choose from esc10"):
        write_small(some, tmp_path / "out", without=["birds"], chat=0)
    write_small(some, tmp_path / "out", without=["caltech101"], chat=0, workers=1)
    assert not [row for row in rows(tmp_path / "out" / "train.jsonl") if row["task"] == "object_open"]
    assert "Caltech" not in (tmp_path / "out" / "attribution.md").read_text()


def test_again_with_the_same_seed_gives_the_same_bytes_and_keeps_what_is_there(out, folder, tmp_path):
    media = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "media").rglob("*.*")}
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    gone = sorted(media)[::9]
    for path in gone:  # as if a first call had been stopped
        path.unlink()
    write_small(folder, out, chat=0, workers=1)
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == before
    for path, (time, content) in media.items():
        assert path.read_bytes() == content, path.name
        assert (path.stat().st_mtime_ns == time) == (path not in gone)


def test_the_command_counts_questions_by_task(folder, out, few):
    said = CliRunner().invoke(app, ["small", str(folder), "--out", str(out), "--chat", "0", "--workers", "1"])
    assert said.exit_code == 0, said.output
    assert re.search(r"sound_event +\d+ +\d+\.\d%", said.output)
    assert "train.jsonl" in said.output
