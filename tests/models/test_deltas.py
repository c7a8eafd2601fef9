"""Checkpoints of bases and deltas: small, exact, and never joined with another base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model

from mllm.errors import MllmError
from mllm.models import checkpoint
from mllm.models.deltas import DELTAS, read_bases
from mllm.models.lora import new_token_rows
from tests.pretrained import built_from_bases

EMBEDDINGS = "model.language_model.embed_tokens.weight"


@pytest.fixture
def built(tmp_path: Path):
    return built_from_bases(tmp_path / "bases")


def own(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / DELTAS)


def same(model, other) -> bool:
    here, there = model.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def tuned(model):
    """With LoRA on the decoder and the rows of its new tokens trained."""
    target = r".*language_model\..*\.(q|v)_proj"
    config = LoraConfig(r=2, target_modules=target, trainable_token_indices=new_token_rows_of(model))
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return tuned.eval()


def new_token_rows_of(model):
    for parameter in model.model.language_model.parameters():
        parameter.requires_grad_(False)
    return new_token_rows(model)


def test_only_what_no_base_holds_is_written_and_the_join_is_exact(built, tmp_path):
    model, processor = built
    folder = checkpoint.save(model, processor, tmp_path / "model")
    bases = read_bases(folder)
    assert {part: (Path(base.name).name, base.prefix) for part, base in bases.items()} == {
        "decoder": ("llama", "model."),
        "video": ("timesformer", ""),
        "audio": ("whisper", "model.encoder."),
        "text": ("bert", ""),
    }
    names = own(folder)
    assert not [name for name in names if "_tower" in name or "language_model.layers" in name]
    assert {"model.audio_qformer.queries", "model.space.text_head.weight"} <= names.keys()
    rows = names[EMBEDDINGS + "#rows"].tolist()
    assert rows == model.config.new_token_ids  # of the table, the new rows alone
    assert not (folder / "model.safetensors").exists()
    loaded, _ = checkpoint.load(folder)
    assert same(loaded, model)
    assert loaded.bases == bases
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert loaded.generation_config.temperature is None
    again = checkpoint.save(loaded, processor, tmp_path / "again")
    assert (again / DELTAS).read_bytes() == (folder / DELTAS).read_bytes()


def test_a_trained_weight_is_written_and_its_neighbours_are_not(built, tmp_path):
    model, processor = built
    encoder = model.model.audio_tower.encoder
    with torch.no_grad():
        encoder.conv1.bias[0] += 1e-3
        model.model.language_model.embed_tokens.weight[7] += 1
    folder = checkpoint.save(model, processor, tmp_path / "model")
    names = own(folder)
    assert [name for name in names if "_tower" in name] == ["model.audio_tower.encoder.conv1.bias"]
    assert names[EMBEDDINGS + "#rows"].tolist() == [7, *model.config.new_token_ids]
    assert same(checkpoint.load(folder)[0], model)


def test_a_part_that_is_trained_as_a_whole_needs_its_base_no_more(built, tmp_path):
    model, processor = built
    with torch.no_grad():
        for parameter in model.model.video_tower.parameters():
            parameter.add_(1e-3)
    folder = checkpoint.save(model, processor, tmp_path / "model")
    assert read_bases(folder).keys() == {"decoder", "audio", "text"}
    assert same(checkpoint.load(folder)[0], model)


def test_the_dtype_is_that_of_the_deltas_and_of_the_loaded_model(built, tmp_path):
    model, processor = built
    folder = checkpoint.save(model, processor, tmp_path / "model", dtype=torch.bfloat16)
    dtypes = {tensor.dtype for name, tensor in own(folder).items() if not name.endswith("#rows")}
    assert dtypes == {torch.bfloat16}
    half, _ = checkpoint.load(folder, "bfloat16")
    assert same(half, model.to(torch.bfloat16))


@pytest.mark.parametrize("lora", [False, True])
def test_bases_and_deltas_answer_as_the_whole_folder_does(built, tmp_path, lora):
    model, processor = built
    model = tuned(model) if lora else model
    folder = checkpoint.save(model, processor, tmp_path / "deltas")
    whole = checkpoint.save(model, processor, tmp_path / "whole", whole=True)
    assert (whole / "model.safetensors").exists()
    assert not (whole / "bases.json").exists()
    for merge in (False, True):
        assert same(checkpoint.load(folder, merge=merge)[0], checkpoint.load(whole, merge=merge)[0])


def test_a_base_that_changed_is_refused_by_name_and_hash(built, tmp_path):
    folder = checkpoint.save(*built, tmp_path / "model")
    path = tmp_path / "bases/llama/model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["model.norm.weight"] += 1
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    trained_on = read_bases(folder)["decoder"].sha256[:12]
    with pytest.raises(
        MllmError, match=rf"llama: model\.safetensors has sha256 \w{{12}}…, and .* trained on {trained_on}…"
    ):
        checkpoint.load(folder)
    path.rename(path.with_suffix(".lost"))
    with pytest.raises(MllmError, match=r"the base .*llama has no model\.safetensors: put the one back"):
        checkpoint.load(folder)
    path.parent.rename(tmp_path / "moved")
    with pytest.raises(MllmError, match=r"the base .*llama is not there: put the one back"):
        checkpoint.load(folder)


def test_damage_is_named_in_one_line(built, tmp_path):
    folder = checkpoint.save(*built, tmp_path / "model")
    good = (folder / DELTAS).read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(MllmError, match=match) as caught:
            checkpoint.load(folder)
        assert "\n" not in str(caught.value)

    (folder / DELTAS).write_bytes(good[:-100])
    refused(r"deltas\.safetensors is cut or damaged")
    (folder / DELTAS).unlink()
    refused(r"deltas\.safetensors is missing")
    weights = safetensors.torch.load(good)
    lost = {name: tensor for name, tensor in weights.items() if name != "model.audio_qformer.queries"}
    safetensors.torch.save_file(lost, folder / DELTAS)
    refused(r"1 weights are missing, model\.audio_qformer\.queries for one: deltas\.safetensors is damaged")
    safetensors.torch.save_file(weights | {"model.foreign": torch.zeros(1)}, folder / DELTAS)
    refused(r"1 weights are of no part of the model, model\.foreign for one: deltas\.safetensors is damaged")
    safetensors.torch.save_file(weights | {EMBEDDINGS + "#rows": torch.tensor([9999])}, folder / DELTAS)
    refused(r"model cannot be read \((IndexError|RuntimeError)")
    (folder / DELTAS).write_bytes(good)
    text = (folder / "bases.json").read_text()
    for damaged in ("{}", "[]", '{"decoder": {}}', text.replace('"decoder"', '"head"'), text[:-9]):
        (folder / "bases.json").write_text(damaged)
        refused(r"bases\.json is damaged")


def test_a_base_without_safetensors_is_no_base(built, tmp_path):
    from tests.families import decoder_folder

    folder = decoder_folder("smollm2", tmp_path / "pickled")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model, processor = built_from_bases(tmp_path / "others", decoder=str(folder))
    assert "decoder" not in model.bases
    saved = checkpoint.save(model, processor, tmp_path / "model")
    assert EMBEDDINGS in own(saved)
    assert json.loads((saved / "bases.json").read_text()).keys() == {"video", "audio", "text"}
