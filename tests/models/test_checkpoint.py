"""Checkpoint folders: the same logits back, adapters beside or merged, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model

from mllm.command.export import export
from mllm.errors import ConfigError, MllmError
from mllm.experiment import Model
from mllm.media.clip import Clip
from mllm.models import checkpoint
from mllm.records import chat
from tests.tiny import SETTINGS, tiny

TEXTS = [
    f"what colour is the {shape}? the {shape} is {colour}."
    for shape in ("star", "square")
    for colour in "rgb"
]


@pytest.fixture
def built():
    torch.manual_seed(0)
    model, processor = checkpoint.build_model(Model(**SETTINGS), TEXTS)
    for parameter in model.parameters():  # far from the tiny initial values, whose answers never change
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval(), processor


@pytest.fixture
def inputs(built):
    """Three questions about a clip with picture and sound, a clip without sound, and none."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 32, 32, 3), np.uint8)
    times = np.array([0.25, 0.75, 2.5, 3.5])
    sound = rng.normal(0, 0.1, 64000).astype(np.float32)
    clips = [Clip(frames, times, sound, 4.0, "one"), Clip(frames[:2], times[:2], None, 1.0, "two")]
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "video", "video": clip}, {"type": "text", "text": "what colour?"}],
            }
        ]
        for clip in clips
    ]
    return built[1].batch([*conversations, [{"role": "user", "content": "what colour is the star?"}]])


def add_lora(model, std: float = 0.3):
    target = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target, task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return tuned.eval()


def greedy(model, inputs) -> list[list[int]]:
    return model.generate(**inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :].tolist()


def test_a_new_tokenizer_spells_anything_and_keeps_its_size(built):
    _, processor = built
    tokenizer = processor.tokenizer
    assert len(tokenizer) <= 400
    assert len({tokenizer.convert_tokens_to_ids(token) for token in chat.SPECIAL_TOKENS}) == len(
        chat.SPECIAL_TOKENS
    )
    text = "Ünïcödé 😀 [00:02] star\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("what colour is the star", add_special_tokens=False)) <= 6


def test_saved_and_loaded_it_computes_the_same(built, inputs, tmp_path):
    model, processor = built
    checkpoint.save(model, processor, tmp_path / "model", {"metrics.json": "{}"})
    loaded, its_processor = checkpoint.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert its_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert its_processor.spec == processor.spec
    assert its_processor.chat_template == processor.chat_template
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= names
    assert {"generation_config.json", "tokenizer.json", "metrics.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".tmp")) for name in names)
    served = json.loads((tmp_path / "model/generation_config.json").read_text())
    end = processor.tokenizer.convert_tokens_to_ids(chat.END_TOKEN)
    assert (served["eos_token_id"], served["temperature"], served["do_sample"]) == (end, 0.0, False)
    assert os.access(tmp_path / "model/model.safetensors", os.R_OK)
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_transformers_loads_the_folder_without_us(built, inputs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoProcessor

    model, processor = built
    checkpoint.save(model, processor, tmp_path / "model")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(**inputs).logits
        assert torch.equal(again, model(**inputs).logits)
    assert AutoProcessor.from_pretrained(tmp_path / "model").special_tokens == processor.special_tokens


def test_an_adapter_answers_the_same_beside_the_base_and_merged(built, inputs, tmp_path):
    model, processor = built
    plain = greedy(model, inputs)
    before = model.model.video_projector.linear_in.weight.clone()
    tuned = add_lora(model)
    with torch.no_grad():  # something outside LoRA was trained too
        model.model.video_projector.linear_in.weight.add_(0.1)
    expected = greedy(tuned, inputs)
    assert expected != plain
    folder = checkpoint.save(tuned, processor, tmp_path / "tuned")
    beside, _ = checkpoint.load(folder, merge=False)
    merged, _ = checkpoint.load(folder)
    by_adapter, _ = checkpoint.load(folder / "adapter")
    assert greedy(beside, inputs) == greedy(merged, inputs) == greedy(by_adapter, inputs) == expected
    assert type(merged).__name__ == "MllmForConditionalGeneration"
    assert not torch.equal(merged.model.video_projector.linear_in.weight, before)
    # The trained PeftModel itself is untouched by having been saved.
    assert greedy(tuned, inputs) == expected
    # The adapter is one that vLLM takes: LoRA on the decoder alone, no modules_to_save.
    from safetensors.torch import load_file

    names = load_file(folder / "adapter/adapter_model.safetensors").keys()
    assert names
    assert all("language_model.layers" in name and ".lora_" in name for name in names)
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == ".."


def test_export_merges_or_keeps_the_adapter_and_rounds_once(built, inputs, tmp_path):
    model, processor = built
    tuned = add_lora(model)
    expected = greedy(tuned, inputs)
    run = tmp_path / "runs/small"
    checkpoint.save(tuned, processor, run / "instruct/final", {"experiment.yaml": "name: small\n"})
    merged = export(run, tmp_path / "merged", "float32")
    assert greedy(checkpoint.load(merged)[0], inputs) == expected
    assert not (merged / "adapter").exists()
    assert (merged / "experiment.yaml").read_text() == "name: small\n"
    beside = export(run, tmp_path / "beside", torch.bfloat16, adapter="beside")
    config = json.loads((beside / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["use_cache"] is True
    half = (beside / "model.safetensors").stat().st_size
    assert half < 0.6 * (merged / "model.safetensors").stat().st_size
    loaded, _ = checkpoint.load(beside, "bfloat16")
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(MllmError, match="choose merged or beside"):
        export(run, tmp_path / "x", adapter="inside")
    with pytest.raises(MllmError, match="choose bfloat16"):
        export(run, tmp_path / "x", dtype="int8")


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(built, tmp_path, monkeypatch):
    model, processor = built
    folder = checkpoint.save(model, processor, tmp_path / "model", {"note.txt": "first"})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(processor), "save_pretrained", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(MllmError, match="cannot write .*No space left"):
            checkpoint.save(model, processor, target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "note.txt").read_text() == "first"


def test_a_folder_is_replaced_whole(built, tmp_path):
    model, processor = built
    checkpoint.save(model, processor, tmp_path / "model", {"old.txt": "old"})
    checkpoint.save(model, processor, tmp_path / "model", {"new.txt": "new"})
    assert (tmp_path / "model/new.txt").exists()
    assert not (tmp_path / "model/old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_checkpoint_is_named(tmp_path, monkeypatch):
    with pytest.raises(MllmError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "missing")
    with pytest.raises(MllmError, match="no config.json"):
        checkpoint.load(tmp_path)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    for named, name in ((None, checkpoint.DEFAULT), ("nano", "nano")):
        with pytest.raises(MllmError, match=rf"mllm train all configs/{name}\.yaml"):
            checkpoint.load(named)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
    with pytest.raises(MllmError, match="names the base 'gone'"):
        checkpoint.load(adapter)
    assert checkpoint.resolve("owner/name") == ("owner/name", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"video": SETTINGS["video"] | {"hiden_size": 3}},
            r"model\.video has no field 'hiden_size': did you mean hidden",
        ),
        (
            {"video": SETTINGS["video"] | {"num_frames": 5}},
            r"model\.video\.num_frames is 5, but the rest of the model needs 2",
        ),
        ({"decoder": {"type": "lama"}}, r"model\.decoder\.type is 'lama'"),
        ({"window_seconds": 3.0}, "model: window_seconds is 3.0"),
        ({"qformer": {"width": 30, "layers": 1, "heads": 4}}, "model: qformer width 30"),
    ],
)
def test_a_wrong_model_section_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint.build_model(Model(**SETTINGS | change), TEXTS)


def test_a_decoder_from_nothing_needs_texts():
    with pytest.raises(ConfigError, match="texts"):
        checkpoint.build_model(Model(**SETTINGS))


def test_a_model_without_search_has_no_space(inputs):
    model, _ = checkpoint.build_model(Model(**SETTINGS | {"text": None}), TEXTS)
    assert not hasattr(model.model, "space")


def test_towers_come_with_their_weights_and_stretch_to_more_frames(tmp_path):
    from transformers import TimesformerConfig, TimesformerModel, WhisperConfig, WhisperModel

    fields = {key: value for key, value in SETTINGS["video"].items() if key != "type"}
    video = TimesformerModel(TimesformerConfig(**fields | {"num_frames": 4}))
    torch.nn.init.normal_(video.embeddings.time_embeddings)
    video.save_pretrained(tmp_path / "video")
    fields = {key: value for key, value in SETTINGS["audio"].items() if key != "type"}
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    audio = WhisperModel(WhisperConfig(**fields, **sizes, **tokens))
    audio.save_pretrained(tmp_path / "audio")
    paths = {"video": str(tmp_path / "video"), "audio": str(tmp_path / "audio")}
    model, _ = checkpoint.build_model(Model(**SETTINGS | paths), TEXTS)
    tower = model.model.video_tower.encoder
    assert torch.equal(
        tower.encoder.layer[0].intermediate.dense.weight, video.encoder.layer[0].intermediate.dense.weight
    )
    assert tower.embeddings.time_embeddings.shape[1] == 2
    assert torch.equal(model.model.audio_tower.encoder.conv1.weight, audio.encoder.conv1.weight)
    with pytest.raises(ConfigError, match=r"lacks \d+ weights of a TimesformerModel"):
        model.model.video_tower.load_pretrained(str(tmp_path / "audio"))


def test_a_pretrained_decoder_still_speaks_as_before(real_data: Path, tmp_path):
    """stories260k as decoder: text goes through it as through the plain LlamaForCausalLM."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = str(real_data / "stories260k")
    model, processor = checkpoint.build_model(Model(**SETTINGS | {"decoder": folder}))
    plain, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time, there was a little girl", return_tensors="pt").input_ids
    assert torch.equal(
        ids, processor.tokenizer("Once upon a time, there was a little girl", return_tensors="pt").input_ids
    )
    told = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **told)
    model.eval()
    assert torch.equal(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **told), expected)
    checkpoint.save(model, processor, tmp_path / "model")
    loaded, _ = checkpoint.load(tmp_path / "model")
    assert torch.equal(loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **told), expected)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[..., : plain.config.vocab_size]
        torch.testing.assert_close(logits, plain(ids).logits)


def test_a_checkpoint_without_some_weights_is_refused_not_filled_with_chance(tmp_path):
    folder = checkpoint.save(*tiny(), tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.video_projector.norm.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MllmError, match="1 weights are missing, model.video_projector.norm.weight for one"):
        checkpoint.load(folder)


def test_nano_is_one_that_ships_unless_a_folder_here_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve("nano") == (str(checkpoint.SHIPPED / "nano"), None)
    (tmp_path / "nano").mkdir()
    with pytest.raises(MllmError, match="nano holds no checkpoint"):
        checkpoint.resolve("nano")
