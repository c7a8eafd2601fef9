"""Run folders: resumed after a kill with the same losses, refused with other settings, whole to the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from mllm.models.checkpoint import load
from mllm.records.record import write_records
from train import cli
from train.curves import draw_losses
from train.pipeline import starting_point
from train.run import metrics_of
from train.stages.instruct import InstructStage
from train.stages.text import TextStage

LOSSES = ("loss", "grad_norm", "caption_loss", "video_text_loss", "answer_loss", "val_loss")
CHAT = [
    {"messages": [{"role": "user", "content": "hello?"}, {"role": "assistant", "content": f"hello {n}."}]}
    for n in range(5)
]


def rows(folder: Path) -> list[dict[str, float]]:
    logged = json.loads((folder / "metrics.json").read_text())["rows"]
    return [{key: row[key] for key in ("step", *LOSSES) if key in row} for row in logged]


def test_a_run_with_other_settings_is_refused_and_says_what_differs(tmp_path, write_experiment):
    path = write_experiment(tmp_path)
    TextStage().open(load_experiment(path))
    with pytest.raises(ConfigError, match=r"text\.lr: 0\.003 there, 0\.01 here.*--restart") as caught:
        TextStage().open(load_experiment(path, ["text.lr=0.01"]))
    assert "\n" not in str(caught.value)
    TextStage().open(load_experiment(path, ["text.lr=0.01"]), restart=True)
    # What changes neither the model nor its data may change.
    TextStage().open(load_experiment(path, ["text.lr=0.01", "text.num_threads=1", "data.workers=1"]))
    TextStage().open(load_experiment(path, ["text.lr=0.01", "instruct.lr=0.5", "serve.port=1"]))


def test_the_loss_curve_is_drawn_even_of_nothing(tmp_path):
    draw_losses([], tmp_path / "empty.png", "nothing")
    draw_losses([{"step": 1, "loss": 2.0, "caption_loss": 0.0}], tmp_path / "one.png", "one")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_the_command_says_which_settings_differ(tmp_path, write_experiment):
    path = write_experiment(tmp_path)
    InstructStage().open(load_experiment(path))
    result = CliRunner().invoke(cli.app, ["instruct", str(path), "seed=3"])
    assert isinstance(result.exception, ConfigError)
    assert "seed: 0 there, 3 here" in str(result.exception)


def test_a_stage_wants_the_one_before_it_or_none(tmp_path, write_experiment):
    path = write_experiment(tmp_path)
    result = CliRunner().invoke(cli.app, ["instruct", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert "contrastive comes before instruct and has not finished" in str(result.exception)
    result = CliRunner().invoke(cli.app, ["instruct", str(path), "instruct.steps=0"], catch_exceptions=False)
    assert "nothing to do" in result.output


def test_a_stage_begins_from_a_checkpoint_where_the_experiment_says_so(
    tmp_path, write_experiment, tiny_folder
):
    def begun(start: str):
        overrides = ["text.steps=0", "contrastive.steps=0", f"start={start}"]
        experiment = load_experiment(write_experiment(tmp_path), overrides)
        return starting_point(experiment, InstructStage(), tmp_path)[0]

    name = "model.video_qformer.queries"
    weights = safetensors.torch.load_file(tiny_folder / "model.safetensors")
    assert torch.equal(begun(str(tiny_folder)).state_dict()[name], weights[name])
    assert begun("nano").config.text_config.num_hidden_layers == 4


def test_what_a_run_started_from_is_part_of_its_history(tmp_path, write_experiment, tiny_folder):
    start = tmp_path / "start"
    shutil.copytree(tiny_folder, start)
    stages = [
        {"stage": stage, "steps": 9, "rows": [{"loss": 2.0}, {"loss": 1.0}]} for stage in ("text", "instruct")
    ]
    (start / "metrics.json").write_text(json.dumps(stages[1] | {"earlier": stages[:1]}))
    experiment = load_experiment(write_experiment(tmp_path), [f"start={start}", "text.steps=0"])
    state = SimpleNamespace(max_steps=6, log_history=[])
    metrics = metrics_of(InstructStage().open(experiment), state, history=True)
    assert [stage["stage"] for stage in metrics["earlier"]] == ["text", "instruct"]
    assert metrics["earlier"][1]["rows"] == [{"loss": 1.0}]


def test_the_whole_route_and_its_files(tmp_path, write_experiment, monkeypatch):
    from train import validate

    monkeypatch.setattr(validate.retrieval, "__defaults__", (8,))
    monkeypatch.setattr(validate.answers, "__defaults__", (4, 16))
    monkeypatch.setattr(validate.text_answers, "__defaults__", (2, 16))
    path = write_experiment(tmp_path)
    result = CliRunner().invoke(cli.app, ["all", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "R@1" in result.output
    assert "answers" in result.output
    for stage in ("text", "contrastive", "instruct"):
        folder = tmp_path / "runs/tiny" / stage
        assert {"experiment.yaml", "metrics.json", "loss.png", "final"} <= {p.name for p in folder.iterdir()}
        assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]
        assert load_experiment(folder / "experiment.yaml") == load_experiment(path)
        assert {"experiment.yaml", "metrics.json"} <= {p.name for p in (folder / "final").iterdir()}
        assert not (folder / "README.md").exists()  # TRL's card is not ours
    assert (tmp_path / "runs/tiny/instruct/final/adapter/adapter_model.safetensors").is_file()
    model, _ = load(tmp_path / "runs/tiny")
    assert not any("lora" in name for name, _ in model.named_parameters())
    scores = json.loads((tmp_path / "runs/tiny/instruct/validation.json").read_text())
    assert set(scores) == {"R@1 of 256", "answers of 64 clips"}
    scores = json.loads((tmp_path / "runs/tiny/contrastive/validation.json").read_text())
    assert set(scores) == {"R@1 of 256", "answers of 64 scenes told as text"}
    # Once more: nothing is left to do.
    again = CliRunner().invoke(cli.app, ["all", str(path)], catch_exceptions=False)
    assert again.output.count("finished already") == 3


def test_the_probe_reads_labels_from_the_query_outputs(tiny_folder):
    source = "world:{},frames=2,size=32,objects=1,media=av"
    options = ["--train", source.format("train"), "--val", source.format("val"), "--clips", "40"]
    result = CliRunner().invoke(cli.app, ["probe", str(tiny_folder), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    scores = {line.split()[0]: float(line.split()[1]) for line in result.output.splitlines()}
    assert scores.keys() == {"colour", "shape", "motion"}
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_linear_probe_finds_what_is_linear():
    import torch

    from train.probe import fit

    points = torch.randn(60, 5)
    targets = (points[:, 2] > 0).long() + 2 * (points[:, 4] > 0).long()
    assert (fit(points, targets, 4)(points).argmax(-1) == targets).float().mean() > 0.95


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path, write_experiment):
    stage = (
        "instruct"  # dropout, the retained contrastive loss, chat, validation, both optimizers: all there is
    )
    section = {"steps": 9, "batch": 4, "warmup": 1, "save_every": 3, "log_every": 1, "num_threads": 1}
    section |= {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "train": ["qformers", "projectors", "space"]}
    section |= {"muon_lr": 4e-3, "validate_every": 2, "validate_rows": 8}
    write_records(tmp_path / "chat.jsonl", CHAT)
    section |= {"chat": {"source": str(tmp_path / "chat.jsonl"), "share": 0.3}}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        write_experiment(folder, text={"steps": 0}, contrastive={"steps": 0}, **{stage: section})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "mllm.command.cli", "train", stage, str(folder / "tiny.yaml")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    reference, run = start(straight), start(killed)
    metrics = killed / "runs/tiny" / stage / "metrics.json"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and json.loads(metrics.read_text())["rows"][-1]["step"] >= 5):
        assert run.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (metrics.parent / "final").exists()
    run = start(killed)
    printed = run.communicate(timeout=300)[0]
    assert run.returncode == 0
    assert "goes on from checkpoint-" in printed
    assert reference.wait(timeout=300) == 0
    resumed, expected = rows(metrics.parent), rows(straight / "runs/tiny" / stage)
    assert [row["step"] for row in resumed] == list(range(1, 10))
    for one, other in zip(resumed, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
