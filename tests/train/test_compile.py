"""The decoder can be compiled: the same losses, and a clear word where there is no compiler."""

from __future__ import annotations

import shutil
import sysconfig

import pytest
import torch

from mllm.errors import ConfigError
from train.compiler import require_compiler
from train.data import TextCollator
from train.run import prepare_model, set_trainable
from train.stages.text import TextStage


def test_a_missing_compiler_is_named_before_training(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"text.compile needs a C\+\+ compiler: install it .* text.compile=false"
    ):
        require_compiler("text")


def test_missing_python_headers_are_named_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="text.compile needs Python's headers"):
        require_compiler("text")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_decoder_has_the_losses_and_gradients_of_a_plain_one(experiment, tiny, world):
    model, processor = tiny
    run = TextStage().open(experiment)
    set_trainable(model, ["decoder"])
    batches = [TextCollator(world, processor, 0)([{"number": i} for i in range(k)]) for k in (3, 5)]

    def step(batch):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach(), model.get_input_embeddings().weight.grad.clone()

    prepare_model(model, run)
    plain = [step(batch) for batch in batches]
    run.settings.compile = True
    prepare_model(model, run)
    torch.testing.assert_close([step(batch) for batch in batches], plain)
