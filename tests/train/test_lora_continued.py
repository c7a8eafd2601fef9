"""Fine-tuning from a checkpoint with LoRA: the same adapter is trained further, so the result stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from mllm.experiment import load_experiment
from mllm.models.checkpoint import load, save
from train.lora import add_lora
from train.pipeline import run_stage
from train.sections import Lora
from train.stages.instruct import InstructStage


@pytest.fixture
def start(tmp_path, tiny) -> Path:
    """A checkpoint with an adapter that changes something."""
    model, processor = tiny
    adapted = add_lora(model, Lora(rank=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return save(adapted, processor, tmp_path / "start")


def decoder(folder: Path) -> dict[str, torch.Tensor]:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    return {name: weight for name, weight in weights.items() if "language_model" in name}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter/adapter_model.safetensors")


def tuned(start: Path, path: Path, *overrides: str) -> Path:
    off = ["text.steps=0", "contrastive.steps=0", "instruct.steps=2", f"start={start}"]
    experiment = load_experiment(path, [*off, *overrides])
    run_stage(experiment, InstructStage())
    return InstructStage().open(experiment).final


def test_an_adapter_of_the_same_kind_is_trained_further(start, tmp_path, write_experiment, capsys):
    final = tuned(start, write_experiment(tmp_path), "instruct.lora.dropout=0.1")
    assert "merged" not in capsys.readouterr().out
    before, after = decoder(start), decoder(final)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert adapter(start).keys() == adapter(final).keys()
    assert any(not torch.equal(adapter(start)[name], adapter(final)[name]) for name in adapter(start))


def test_another_kind_is_merged_and_a_line_says_so(start, tmp_path, write_experiment, capsys):
    final = tuned(start, write_experiment(tmp_path), "instruct.lora.rank=2")
    said = capsys.readouterr().out
    assert "instruct: the LoRA of the start is merged into the decoder, since instruct.lora.rank is 2" in said
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    merged = load(start)[0].state_dict()[name]
    torch.testing.assert_close(decoder(final)[name], merged)
