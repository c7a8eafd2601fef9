"""Adapters: every weight finds its module, all of it is applied or refused, and merged answers as beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from mllm.command.export import export
from mllm.errors import MllmError
from mllm.models import checkpoint
from mllm.models.checkpoint_check import checkpoint_shapes
from mllm.models.lora import check_served, merge_lora
from tests.tiny import ask, clip, tiny

DECODER = r".*language_model\..*\.(q|v)_proj"
Keys = dict[str, torch.Tensor]


@pytest.fixture
def base(tmp_path) -> Path:
    return checkpoint.save(*tiny(), tmp_path / "base")


def tuned(**settings: Any) -> Any:
    """The tiny model with an adapter that has learned something."""
    model, _ = tiny()
    torch.manual_seed(1)
    model = get_peft_model(
        model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": DECODER} | settings)
    )
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_B", "lora_embedding_A", "modules_to_save")) or (
            parameter.requires_grad and name.endswith(".bias")
        ):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def write(model: Any, base: Path, folder: Path) -> Path:
    """The adapter as PEFT writes it."""
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return folder


def edit(folder: Path, change: Callable[[Keys], Keys]) -> None:
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**tiny()[1].batch([ask(clip(4), "what colour?")])).logits


def test_an_adapter_is_merged_as_it_was_trained(base, tmp_path):
    for settings in (
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 2}},
        {"modules_to_save": ["video_projector"]},
        {"bias": "all", "target_modules": r".*audio_tower.*\.q_proj"},
        {"target_modules": ["q_proj", "query", "key_value"]},
    ):
        model = tuned(**settings)
        folder = write(model, base, tmp_path / "adapter")
        expected = logits(model)
        assert not torch.allclose(expected, logits(tiny()[0]), atol=1e-3), settings
        for merge in (True, False):
            loaded, _ = checkpoint.load(folder, merge=merge)
            torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)


def renamed(old: str, new: str) -> Callable[[Keys], Keys]:
    return lambda keys: {key.replace(old, new): tensor for key, tensor in keys.items()}


NAMES: dict[str, Callable[[Keys], Keys]] = {
    "of the decoder alone": renamed("model.language_model.", "model."),
    "without PEFT's prefix": renamed("base_model.model.", ""),
    "with the adapter's name": renamed(".weight", ".default.weight"),
    "of a layer too many": renamed("layers.1.", "layers.9."),
    "of another size": lambda keys: {key: torch.zeros(33, 33) for key in keys},
    "of nothing": lambda keys: {},
}


@pytest.mark.parametrize("names", NAMES)
def test_weights_that_fit_no_module_are_named(base, tmp_path, names):
    folder = write(tuned(), base, tmp_path / "adapter")
    edit(folder, NAMES[names])
    for use in (
        lambda: checkpoint.load(folder),
        lambda: checkpoint.load(folder, merge=False),
        lambda: export(folder, tmp_path / "out"),
        lambda: check_served(folder, checkpoint_shapes(base), "base"),
    ):
        with pytest.raises(MllmError, match=r"fits? no module of \S+(base)? ?(\(\S*layers\.\d)?") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_some_that_fit_are_not_enough(base, tmp_path):
    folder = write(tuned(), base, tmp_path / "adapter")
    edit(folder, lambda keys: {k: v for k, v in keys.items() if "layers.1" not in k})
    with pytest.raises(MllmError, match=r"names modules of which .* holds nothing \(\S*layers\.1\S*q_proj, "):
        checkpoint.load(folder)
    edit(folder, lambda keys: {k: v for k, v in keys.items() if "q_proj.lora_B" not in k})
    with pytest.raises(MllmError, match=r"holds nothing \(\S*layers\.0\S*q_proj, "):
        checkpoint.load(folder)


def test_what_is_not_applied_is_refused(base, tmp_path):
    model = tuned()
    folder = write(model, base, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (
        ({"layer_replication": [[0, 2], [1, 2]]}, "sets layer_replication, which mllm does not apply"),
        ({"trainable_token_indices": [3]}, "sets trainable_token_indices"),
        ({"peft_type": "LOHA"}, "a LOHA adapter: mllm takes LoRA"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(MllmError, match=message):
            checkpoint.load(folder)
    other = get_peft_model(tiny()[0], IA3Config(target_modules=DECODER, feedforward_modules=[]))
    with pytest.raises(MllmError, match="a IA3 adapter"):
        checkpoint.load(write(other, base, tmp_path / "ia3"))


def test_a_damaged_adapter_is_named(base, tmp_path):
    folder = write(tuned(), base, tmp_path / "adapter")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(MllmError, match="adapter_model.safetensors is cut or damaged"):
        checkpoint.load(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(MllmError, match="adapter_model.bin is a pickle"):
        checkpoint.load(folder)
    config.write_text(config.read_text()[:50])
    with pytest.raises(MllmError, match="adapter_config.json is damaged"):
        checkpoint.load(folder)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_of_a_tied_embedding_unties_it_when_merged(base, tmp_path, target):
    model = tuned(target_modules=[target])
    folder = write(model, base, tmp_path / "adapter")
    expected = logits(model)
    merged, processor = checkpoint.load(folder)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    again, _ = checkpoint.load(checkpoint.save(merged, processor, tmp_path / "merged"))
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)
    assert not again.config.tie_word_embeddings
    exported, _ = checkpoint.load(export(folder, tmp_path / "out", "float32"))
    torch.testing.assert_close(logits(exported), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(merge_lora(model)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["video_projector"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head", "audio_projector"], "use_rslora": True},
        {"init_lora_weights": "pissa"},
    ],
)
def test_what_is_trained_whole_goes_into_the_base_beside_an_adapter(base, tmp_path, settings):
    model = tuned(**settings)
    expected = logits(model)
    processor = tiny()[1]
    saved = checkpoint.save(model, processor, tmp_path / "saved")
    exported = export(saved, tmp_path / "out", "float32", adapter="beside")
    for folder in (saved, exported):
        for merge in (True, False):
            loaded, _ = checkpoint.load(folder, merge=merge)
            torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
        check_served(folder / "adapter", checkpoint_shapes(folder), "base")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "it uses DoRA"),
        ({"target_modules": ["embed_tokens"]}, r"it tunes model\.language_model\.embed_tokens, outside"),
        ({"target_modules": ["linear_in"]}, r"it tunes model\.audio_projector\.linear_in, outside"),
        ({"bias": "all", "target_modules": ["q_proj"]}, "it trains biases"),
    ],
)
def test_what_vllm_does_not_take_beside_a_base_is_refused(base, tmp_path, settings, why):
    folder = write(tuned(**settings), base, tmp_path / "adapter")
    with pytest.raises(MllmError, match=f"{why}.*vLLM serves no such adapter.*--adapter merged"):
        export(folder, tmp_path / "out", adapter="beside")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MllmError, match=f"{why}.*merge it with `mllm export {folder} --out FOLDER`"):
        check_served(folder, checkpoint_shapes(base), "base")


def test_a_projector_beside_an_adapter_is_exported_into_the_base_or_refused_by_the_server(base, tmp_path):
    folder = write(tuned(modules_to_save=["video_projector"]), base, tmp_path / "adapter")
    with pytest.raises(MllmError, match=r"holds video_projector whole \(modules_to_save\)"):
        check_served(folder, checkpoint_shapes(base), "base")
    out = export(folder, tmp_path / "out", adapter="beside")
    check_served(out / "adapter", checkpoint_shapes(out), "out")
