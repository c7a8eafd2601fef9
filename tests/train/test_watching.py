"""What a run is watched by: media that reach the decoder, and answers on the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mllm.answerer import Answerer
from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from mllm.models.checkpoint import load
from mllm.records.record import answered
from train.answer_validation import AnswerValidation
from train.objectives.media import media_shares
from train.stages.contrastive import ContrastiveStage
from train.stages.instruct import InstructStage
from train.trainer import guard_media


def test_the_share_is_what_differs_between_recordings(tiny):
    model, _ = tiny
    same = torch.randn(1, 2, 32).expand(64, -1, -1)
    assert media_shares(model.model, {"audio": same})["media_share_audio"] < 1e-6
    assert media_shares(model.model, {"audio": torch.randn(64, 2, 32)})["media_share_audio"] > 0.1
    assert media_shares(model.model, {"audio": same[:3]}) == {}


def test_a_run_whose_projector_is_constant_is_stopped(tmp_path, write_experiment, tiny_folder):
    experiment = load_experiment(write_experiment(tmp_path), ["contrastive.guard=0.01"])
    model, processor = load(tiny_folder)
    run = ContrastiveStage().open(experiment)
    trainer = ContrastiveStage().trainer(run, model, processor)
    for side in model.config.sides:
        torch.nn.init.zeros_(model.model.projector(side).linear_out.weight)
        model.model.projector(side).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"contrastive: step 4: .* the \w+ of all recordings is the same"):
        trainer.run_stage()
    assert not run.final.exists()


def test_the_guard_waits_for_the_warm_up_and_three_logs():
    settings = SimpleNamespace(guard=0.01, warmup=10)
    run = SimpleNamespace(settings=settings, stage="instruct", section="instruct")

    def rows(*shares: float, first: int = 20):
        return [
            {"step": first + n, "loss": 1.0, "media_share_audio": share} for n, share in enumerate(shares)
        ]

    guard_media(run, rows(0.0, 0.0, 0.0, first=1))
    guard_media(run, rows(0.0, 0.0))
    guard_media(run, rows(0.0, 0.02, 0.0, 0.0))
    guard_media(run, [{"step": 30, "loss": 1.0}] * 5)
    with pytest.raises(
        ConfigError, match=r"instruct\.guard 0\.01.*or go on regardless with instruct\.guard=0"
    ):
        guard_media(run, rows(0.02, 0.0, 0.0, 0.0))
    settings.guard = 0.0
    guard_media(run, rows(0.0, 0.0, 0.0))


def test_answers_count_as_right_where_greedy_decoding_would_give_them(tiny, world):
    model, processor = tiny
    records = [record for scene in range(12) for record in world.conversations(scene)]
    conversations = [answered(record) for record in records]
    said = Answerer(model, processor).answer([one.question for one in conversations])

    class Answered:
        """The world, with every other answer replaced by what the model itself says."""

        name = "answered"

        def __len__(self):
            return len(records)

        def conversations(self, index):
            answer = said[index] if index % 2 and said[index].strip() else "no such thing."
            return [{"messages": conversations[index].question, "answer": answer, "task": "own"}]

    expected = sum(bool(index % 2 and said[index].strip()) for index in range(len(records))) / len(records)
    scores = AnswerValidation(Answered(), processor, len(records), 0).scores(model)
    assert scores["val_own"] == scores["val_exact"] == pytest.approx(expected, abs=0.03)
    assert scores["val_loss"] > 0


def test_tasks_are_asked_about_evenly(tiny, world):
    validation = AnswerValidation(world, tiny[1], 24, 0)
    asked = [task for batch in validation.batches for task, _, _ in batch.answers]
    assert len(asked) == 24
    assert max(map(asked.count, asked)) - min(map(asked.count, asked)) <= 2


def test_validation_is_logged_and_changes_no_loss(tmp_path, write_experiment, tiny_folder):
    def rows(name: str, *overrides: str) -> list[dict[str, float]]:
        experiment = load_experiment(write_experiment(tmp_path), [f"name={name}", *overrides])
        run = InstructStage().open(experiment)
        InstructStage().trainer(run, *load(tiny_folder)).run_stage()
        return json.loads((run.folder / "metrics.json").read_text())["rows"]

    plain = rows("plain", "instruct.lora.dropout=0.1")
    watched = rows(
        "watched", "instruct.lora.dropout=0.1", "instruct.validate_every=2", "instruct.validate_rows=8"
    )
    assert [row["loss"] for row in watched] == [row["loss"] for row in plain]
    assert [row["step"] for row in watched if "val_exact" in row] == [2, 4, 6]
    assert watched[1].keys() - plain[1].keys() >= {"val_loss", "val_exact"}
