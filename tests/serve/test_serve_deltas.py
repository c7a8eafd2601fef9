"""Serving bases and deltas: vLLM gets what `mllm export` writes, and an adapter over it its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from mllm.models import checkpoint
from serve import engine_settings
from serve.engine_settings import EngineSettings
from tests.pretrained import built_from_bases

LORA = LoraConfig(r=2, target_modules=r".*language_model\..*\.q_proj")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_settings, "vllm_is_for_cpu", lambda: True)
    model, processor = built_from_bases(tmp_path / "bases")
    return checkpoint.save(get_peft_model(model, LORA), processor, tmp_path / "mine")


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_its_own_adapter_is_merged_and_another_is_served_by_name(folder, tmp_path, capsys):
    server = EngineSettings(folder)
    command = server.command()
    served = Path(value(command, "--model"))
    assert served.parent == tmp_path / "cache/exports"
    assert (served / "model.safetensors").is_file()
    assert value(command, "--served-model-name") == server.model == "mine"
    assert "--enable-lora" not in command
    assert server.compiled
    assert capsys.readouterr().err.startswith(f"{folder} is bases and deltas: writing it whole, once, to ")
    assert EngineSettings(folder).command() == command
    assert capsys.readouterr().err == ""

    model, _ = checkpoint.load(folder, merge=False)
    model.save_pretrained(tmp_path / "theirs")
    config = tmp_path / "theirs/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(folder)}))
    command = EngineSettings(tmp_path / "theirs").command()
    assert value(command, "--lora-modules") == f"theirs={tmp_path / 'theirs'}"
    assert value(command, "--served-model-name") == "theirs-base"
    assert value(command, "--model") != str(served)
    assert EngineSettings(folder, flags=["--lora-modules", f"theirs={tmp_path / 'theirs'}"]).command()
