"""A checkpoint of bases and deltas, written whole into the cache: once, exact, never by half."""

from __future__ import annotations

import importlib
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import typer
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from mllm.errors import MllmError
from mllm.models import checkpoint
from mllm.models.deltas import DELTAS, read_bases
from tests.pretrained import built_from_bases
from tests.tiny import tiny

module = importlib.import_module("mllm.command.export")  # the package's name is taken by its function


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint named `mine`, with LoRA beside its deltas, in bf16."""
    home = tmp_path_factory.mktemp("run")
    model, processor = built_from_bases(home / "bases")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model\..*\.q_proj"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return checkpoint.save(tuned, processor, home / "mine", {"metrics.json": "{}"}, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/exports"


@pytest.fixture
def copied(monkeypatch, folder) -> list[Path]:
    """The folders that were written from here on; a copy of a small folder takes an export's place."""
    written: list[Path] = []

    def export(source, out, *_):
        written.append(out)
        return checkpoint.save(*tiny(), out)

    monkeypatch.setattr(module, "export", export)
    return written


def command(*words: str):
    app = typer.Typer()
    app.command()(module.export_command)
    return CliRunner().invoke(app, words)


def test_it_is_what_load_joins_rounded_once(folder, capsys):
    whole = module.exported(folder)
    assert f"{folder} is bases and deltas: writing it whole, once, to {whole}" in capsys.readouterr().err
    assert whole.name.startswith("mine-")
    assert {"model.safetensors", "config.json", "metrics.json", "README.md", "space_tokenizer"} <= {
        path.name for path in whole.iterdir()
    }
    assert not (whole / "adapter").exists()
    here = checkpoint.load(folder)[0].to(torch.bfloat16).state_dict()
    there = checkpoint.load(whole, "bfloat16")[0].state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_without_its_adapter_it_is_the_base_of_another(folder):
    left_out = checkpoint.load(module.exported(folder, "float32", "left out"))[0].state_dict()
    plain = checkpoint.load(folder, merge=False)[0].unload().state_dict()
    assert all(torch.equal(left_out[name], plain[name]) for name in plain)


def test_it_is_written_once_and_again_after_a_change_or_a_loss(folder, copied, cache, tmp_path):
    first = module.exported(folder)
    assert module.exported(folder) == first
    assert copied == [first]
    assert module.exported(folder, "float32") != first
    (first / "model.safetensors").write_bytes(b"half")
    (cache / f".{first.name}.killed.tmp").mkdir()
    assert module.exported(folder) == first
    assert len(copied) == 3
    assert not list(cache.glob("*.tmp"))
    assert (first / "model.safetensors").stat().st_size > 1000


def test_of_two_at_once_one_writes(folder, copied):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(module.exported, [folder, folder])
    assert first == second
    assert copied == [first]


def test_a_full_disk_and_a_cache_that_cannot_be_are_said_in_one_line(folder, cache, monkeypatch, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(MllmError, match="cannot write .*: make room, or write elsewhere") as caught:
            module.exported(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        MllmError, match=r"cannot be written \(Not a directory\): name another cache by MLLM_"
    ):
        module.exported(folder)


def test_the_command_writes_into_the_cache_or_as_it_is_shipped(folder, cache, tmp_path):
    done = command(str(folder))
    assert done.exit_code == 0, done.output
    (whole,) = cache.glob("mine-*")
    assert f"mllm serve {whole}" in done.output
    out = tmp_path / "shipped"
    done = command(str(folder), "--deltas", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert read_bases(out) == read_bases(folder)
    assert (out / DELTAS).read_bytes() == (folder / DELTAS).read_bytes()
    assert (out / "adapter/adapter_model.safetensors").is_file()
    assert " million weights of its own; " in (out / "README.md").read_text()
    with pytest.raises(
        MllmError, match="--scores, --notes and --deltas are for a folder of your own: give --out"
    ):
        module.export_command(str(folder), deltas=True)
    with pytest.raises(MllmError, match="nano was built from no base: export it without --deltas"):
        module.export("nano", out, deltas=True)
