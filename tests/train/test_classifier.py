"""The plain classifier of sounds that instruction tuning is measured against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mllm.errors import ConfigError, RecordError
from mllm.experiment import load_experiment
from mllm.records.record import write_records
from tests.tiny import tiny
from train import cli
from train.stages.classifier import ClassifierStage

PITCHES = {"low": 300.0, "high": 2000.0}  # Hz


def tones(folder: Path, name: str, count: int, answers=tuple(PITCHES), silent: bool = False) -> Path:
    """A record file about tones, half of them low, half high, each at another loudness."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(name))
    rows = []
    for number in range(count):
        answer = answers[number % len(answers)]
        time = np.arange(8000) / 16_000
        wave = rng.uniform(0.2, 0.8) * np.sin(
            2 * np.pi * PITCHES.get(answer, 500.0) * time + rng.uniform(0, 6)
        )
        path = folder / f"{name}{number}.wav"
        soundfile.write(path, wave.astype(np.float32), 16_000)
        part = {"type": "audio", "audio": str(path)}
        user = ([] if silent else [part]) + [{"type": "text", "text": "how high is the tone?"}]
        messages = [{"role": "user", "content": user}]
        rows.append({"id": f"{name}{number}", "messages": messages, "answer": answer, "task": "pitch"})
    write_records(folder / f"{name}.jsonl", rows)
    return folder / f"{name}.jsonl"


@pytest.fixture
def config(tmp_path, write_experiment, tiny_folder) -> Path:
    data = {
        "train": str(tones(tmp_path / "data", "train", 32)),
        "val": str(tones(tmp_path / "data", "held", 12)),
    }
    instruct = {"steps": 40, "batch": 8, "lr": 3e-3, "warmup": 2, "log_every": 20, "num_threads": 1}
    instruct["train"] = ["audio_tower"]
    off = {"steps": 0}
    return write_experiment(
        tmp_path, start=str(tiny_folder), data=data, text=off, contrastive=off, instruct=instruct
    )


def trainer_of(experiment, model, processor):
    stage = ClassifierStage()
    return stage.trainer(stage.open(experiment), model, processor)


def test_it_learns_what_the_tower_can_hear(config, tmp_path):
    result = CliRunner().invoke(cli.app, ["classifier", str(config)], catch_exceptions=False)
    assert "1.000 of 12 recordings right (majority 0.500), 2 labels" in result.output
    scores = json.loads((tmp_path / "runs/tiny/classifier/metrics.json").read_text())
    assert scores["right"] == 12
    assert scores["labels"] == ["high", "low"]


def test_from_scratch_it_begins_with_other_weights(config, tmp_path, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "train.classifier.ClassifierTrainer.run_stage",
        lambda trainer: seen.append((trainer.objective.tower.state_dict(), trainer.run.folder.name)),
    )
    for words in ([], ["--from-scratch"]):
        CliRunner().invoke(cli.app, ["classifier", str(config), *words], catch_exceptions=False)
    (started, _), (fresh, folder) = seen
    name = "encoder.conv1.weight"
    assert torch.equal(started[name], tiny[0].model.audio_tower.state_dict()[name])
    assert not torch.equal(fresh[name], started[name])
    assert folder == "classifier-from-scratch"


def test_a_frozen_tower_stays_as_it_was(config, tmp_path, tiny):
    model, processor = tiny
    before = [weight.clone() for weight in model.model.audio_tower.parameters()]
    experiment = load_experiment(config, ["instruct.train=[qformers]", "instruct.steps=2"])
    trainer_of(experiment, model, processor).run_stage()
    after = model.model.audio_tower.parameters()
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


def test_an_answer_that_training_never_has_is_named(config, tmp_path, tiny):
    held_out = tones(tmp_path / "data", "odd", 3, answers=("low", "middling"))
    experiment = load_experiment(config, [f"data.val={held_out}"])
    with pytest.raises(RecordError, match="the answer 'middling' is none of"):
        trainer_of(experiment, *tiny)


def test_a_record_without_sound_is_named(config, tmp_path, tiny):
    mute = tones(tmp_path / "data", "mute", 3, silent=True)
    experiment = load_experiment(config, [f"data.train={mute}"])
    trainer = trainer_of(experiment, *tiny)
    with pytest.raises(RecordError, match="no sound before 'how high is the tone"):
        trainer.data_collator([{"number": 0}])


def test_a_model_that_does_not_hear_is_refused(config):
    model, processor = tiny(audio=None)
    with pytest.raises(ConfigError, match="this model has no audio side: set model.audio"):
        trainer_of(load_experiment(config), model, processor)
