"""Damaged checkpoints: one line that names the file and what to do, before anything large is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mllm.command import cli
from mllm.command.export import export
from mllm.errors import MllmError
from mllm.models import checkpoint
from mllm.models.checkpoint_check import check_folder
from tests.tiny import tiny

WEIGHTS = "model.safetensors"
UP = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return checkpoint.save(*tiny(), tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00\x01" * 50),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another kind of JSON": lambda path: path.write_text("[]"),
    "without content": lambda path: path.write_text("{}"),
}
FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line(folder, name, damage):
    DAMAGE[damage](folder / name)
    with pytest.raises(MllmError, match=rf"{name}|{folder}") as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    assert ":" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "not text"])
def test_a_damaged_generation_config_or_template_is_named(folder, damage):
    for name in ("generation_config.json", "chat_template.jinja"):
        before = (folder / name).read_bytes()
        DAMAGE[damage](folder / name)
        with pytest.raises(MllmError, match=f"{name} is damaged"):
            check_folder(folder)
        (folder / name).write_bytes(before)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    change(weights)
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_weights_that_are_not_the_models_are_named(folder):
    edit_weights(folder, lambda weights: weights.update({UP: weights[UP][:-1].contiguous()}))
    with pytest.raises(
        MllmError, match=rf"{UP} is \[47, 32\] in model.safetensors, and config.json asks for \[48, 32\]"
    ):
        checkpoint.load(folder)
    edit_weights(folder, lambda weights: weights.pop(UP))
    with pytest.raises(MllmError, match=f"1 weights are missing, {UP} for one"):
        checkpoint.load(folder)


def test_a_config_of_fewer_layers_does_not_load_half_of_the_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MllmError, match=r"9 weights are of no part of the model, .*layers\.1\."):
        checkpoint.load(folder)


def test_a_config_of_a_huge_model_costs_no_memory(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]  # then transformers takes its default: seven billion weights
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MllmError, match="271 weights are missing"):
        checkpoint.load(folder)


def shard(folder: Path) -> None:
    """The weights in two files and an index, as large models have them."""
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        held = {name: weights[name] for name in names if places[name] == file}
        safetensors.torch.save_file(held, folder / file, metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_read_and_a_missing_one_is_named(folder):
    shard(folder)
    checkpoint.load(folder)
    index = folder / f"{WEIGHTS}.index.json"
    (folder / "model-00002-of-00002.safetensors").rename(folder / "away")
    with pytest.raises(MllmError, match="model-00002-of-00002.safetensors is missing: copy the whole"):
        checkpoint.load(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(MllmError, match=r"model-00002-of-00002.safetensors lacks \S+, which .*index.json"):
        checkpoint.load(folder)
    index.write_text('{"weight_map": []}')
    with pytest.raises(MllmError, match="index.json has no weight_map"):
        checkpoint.load(folder)


def test_a_pointer_of_git_lfs_says_how_to_get_the_weights(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(MllmError, match="git lfs pull"):
        checkpoint.load(folder)


def test_a_folder_of_another_kind_of_model_is_told(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MllmError, match=r"is of a 'llama' model.* name this folder as model\.decoder"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"video_token_id": 7}),
        ("config.json", {"window_seconds": 1.0}),
        ("processor_config.json", {"frames_per_window": 5}),
        ("processor_config.json", {"sides": {}}),
        ("tokenizer_config.json", {"pad_token": None}),
    ],
)
def test_files_of_two_models_are_told(folder, name, change):
    values = json.loads((folder / name).read_text()) | change
    (folder / name).write_text(json.dumps(values))
    with pytest.raises(MllmError, match=r"of another model|is damaged \(no pad_token\)"):
        checkpoint.load(folder)


def test_every_command_says_it_in_one_line(folder, tmp_path, capsys):
    cut(folder / WEIGHTS)
    experiment = tmp_path / "e.yaml"
    experiment.write_text(
        f"start: {folder}\ntext: {{steps: 0}}\ncontrastive: {{steps: 0}}\noutput: {tmp_path / 'runs'}\n"
    )
    for words in (
        ["chat", str(folder), "why?"],
        ["export", str(folder), "--out", str(tmp_path / "out")],
        ["eval", "world", "--model", str(folder), "--media", "arrays"],
        ["serve", str(folder), "--port", "0"],
        ["train", "instruct", str(experiment)],
        ["index", "add", str(tmp_path), "--model", str(folder), "--index", str(tmp_path / "index")],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2, (words, said)
        assert said.splitlines()[-1].startswith(f"error: {folder / WEIGHTS} is cut or damaged"), (words, said)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_neither_folder_nor_hub_id_is_told():
    with pytest.raises(MllmError, match="nobody/nothing cannot be read .*mend it, or go online"):
        checkpoint.load("nobody/nothing")  # tests are offline
    with pytest.raises(MllmError, match="name is empty"):
        checkpoint.load("")


def test_damage_to_the_history_is_told_before_an_export_writes(folder, tmp_path):
    (folder / "metrics.json").write_text('{"rows": [')
    with pytest.raises(MllmError, match="metrics.json is damaged"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
