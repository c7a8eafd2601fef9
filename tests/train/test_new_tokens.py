"""Instruction tuning of a pretrained base model: the tokens that it was given here train beside LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from mllm.models import checkpoint
from tests.families import decoder_folder
from train import cli

EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.mark.slow
def test_new_tokens_train_go_on_and_end_up_in_the_base(tmp_path: Path, write_experiment) -> None:
    def losses(folder: Path) -> dict[int, float]:
        rows = json.loads((folder / "metrics.json").read_text())["rows"]
        return {row["step"]: row["loss"] for row in rows}

    decoder = decoder_folder("llama3", tmp_path / "decoder", template=None)
    path = write_experiment(tmp_path)
    arguments = ["instruct", str(path), f"model.decoder={decoder}", "text.steps=0", "contrastive.steps=0"]
    CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    folder = tmp_path / "runs/tiny/instruct"
    model, processor = checkpoint.load(folder)
    new, after = model.config.new_token_ids, model.get_input_embeddings().weight
    pretrained = safetensors.torch.load_file(decoder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(after[: new[0]], pretrained)
    (kept,) = (
        tensor
        for name, tensor in safetensors.torch.load_file(folder / "checkpoint-3/model.safetensors").items()
        if "trainable_tokens_delta" in name
    )
    assert not torch.equal(after[new][new.index(processor.end_id)], kept[new.index(processor.end_id)])
    straight = losses(folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-6")
    CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert losses(folder) == pytest.approx(straight, rel=1e-5)
