"""`mllm eval world` and `records` from end to end, with a tiny model of random weights."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from eval import world
from eval.cli import app
from mllm.errors import ConfigError, MllmError
from mllm.experiment import experiment_type
from mllm.models.checkpoint import save
from mllm.records.record import write_records
from tests.media_files import make
from tests.tiny import tiny

runner = CliRunner()


@pytest.fixture(scope="module")
def nano():
    model, processor = tiny()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As initialised, every layer is a small change, and no recording would change an answer.
            if parameter.dim() > 1 and "queries" not in name and "embed" not in name:
                parameter.mul_(4.0)
    return model, processor


@pytest.fixture(scope="module")
def checkpoint(nano, tmp_path_factory):
    experiment = experiment_type()(eval={"clips": 3, "retrieval_clips": 4, "splits": ["comp"]})
    folder = tmp_path_factory.mktemp("run") / "nano"
    return save(*nano, folder, {"experiment.yaml": experiment.dump_yaml()})


@pytest.fixture
def small_prior(monkeypatch):
    """The prior of few scenes: the real one reads thousands."""
    train_prior = world.train_prior
    monkeypatch.setattr(world, "train_prior", lambda: train_prior(50))


def test_eval_world_on_arrays(checkpoint, tmp_path, monkeypatch, small_prior):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(
        app, ["world", "--model", str(checkpoint), "--media", "arrays", "--max-tokens", "4"]
    )
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs/eval").iterdir()
    assert folder.name.endswith("nano")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["clips"], metrics["backend"], metrics["max_tokens"]) == (3, "transformers", 4)
    assert list(metrics["splits"]) == ["comp"]  # as the checkpoint's experiment says
    comp = metrics["splits"]["comp"]
    assert comp["retrieval"]["both"]["clips"] == 4
    assert comp["overall"]["blind"] is not None
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["group"] != "caption" for row in rows) == comp["overall"]["count"]
    assert (folder / "report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_eval_world_on_files(checkpoint, tmp_path, monkeypatch, small_prior):
    words = ["world", "--model", str(checkpoint), "--split", "val", "--clips", "2", "--questions", "2"]
    words += [
        "--max-tokens",
        "4",
        "--search-clips",
        "0",
        "--no-blind",
        "--clips-folder",
        str(tmp_path / "clips"),
    ]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/metrics.json").read_text())["splits"]["val"]["retrieval"] == {}
    # The files serve the next run.
    monkeypatch.setattr(world.subprocess, "run", lambda *args, **options: pytest.fail("written again"))
    source = world.write_files("val", 2, 2, 0, tmp_path / "clips")
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [question.id for question in world.collect(source)] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "choose from val, comp"),
        (["--media", "gif"], "choose mp4 or arrays"),
        (["--media", "arrays", "--url", "http://127.0.0.1:9"], "with --url take --media mp4"),
    ],
)
def test_wrong_words(checkpoint, words, message):
    model = [] if "--url" in words else ["--model", str(checkpoint)]
    with pytest.raises(ConfigError, match=message):
        runner.invoke(app, ["world", *model, *words], catch_exceptions=False)


def test_damaged_and_missing_recordings_are_counted_and_the_rest_is_scored(checkpoint, tmp_path):
    sound = np.sin(np.arange(16_000) / 20).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", sound, 16_000)
    (tmp_path / "bad.mp4").write_bytes(b"\0\1" * 999)
    write_film(tmp_path / "silent.mp4")
    os.mkfifo(tmp_path / "pipe.wav")
    media = ["tone.wav", "bad.mp4", "tone.wav", "gone.wav", "pipe.wav", "silent.mp4"]
    rows = []
    for number, name in enumerate(media):
        user = [{"type": "audio", "audio": name}, {"type": "text", "text": f"how high? ({number})"}]
        message = {"role": "user", "content": user}
        rows.append({"id": str(number), "task": "pitch", "messages": [message], "answer": "low"})
    write_records(tmp_path / "mine.jsonl", rows, media_must_exist=False)
    words = ["records", str(tmp_path / "mine.jsonl"), "--model", str(checkpoint), "--max-tokens", "3"]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "4 questions left out, their recordings cannot be read; the first: " in result.output
    mine = json.loads((tmp_path / "out/metrics.json").read_text())["splits"]["mine"]
    assert (mine["overall"]["count"], mine["missing"]) == (2, 4)
    causes = {one["id"]: one["cause"] for one in mine["missing_recordings"]}
    assert {id: word in causes[id] for id, word in zip("1345", CAUSES, strict=True)} == dict.fromkeys(
        "1345", True
    ), causes
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "2"]

    write_records(tmp_path / "none.jsonl", [rows[1]])
    with pytest.raises(MllmError, match="none of the 1 questions can be asked; the first: .*bad.mp4"):
        runner.invoke(app, ["records", str(tmp_path / "none.jsonl"), *words[2:]], catch_exceptions=False)


CAUSES = ("not a recording", "no such file", "a pipe", "no sound")


def write_film(path):
    """A second of picture without sound."""
    make(path, seconds=1, fps=4)


def test_eval_records_scores_a_file_of_ones_own(checkpoint, tmp_path):
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) / 20).astype(np.float32), 16_000)
    rows = []
    for number, (task, answer) in enumerate([("pitch", "low"), ("pitch", "high"), ("pitch", "low")]):
        user = [{"type": "audio", "audio": "tone.wav"}, {"type": "text", "text": f"how high? ({number})"}]
        messages = [{"role": "user", "content": user}]
        rows.append({"id": str(number), "task": task, "messages": messages, "answer": answer})
    write_records(tmp_path / "mine.jsonl", rows)
    words = ["records", str(tmp_path / "mine.jsonl"), "--model", str(checkpoint), "--max-tokens", "3"]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert "mine: exact match" in result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    pitch = metrics["splits"]["mine"]["types"]["pitch"]
    assert (pitch["count"], round(pitch["majority"], 2)) == (3, 0.67)
    assert pitch["blind"] is not None
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "out/report.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="is a folder: give the JSONL file that it was built from"):
        runner.invoke(app, ["records", str(tmp_path)], catch_exceptions=False)
