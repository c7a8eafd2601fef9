"""The full-size experiments, each of its families at tiny size: built, trained, exported, asked, searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    TimesformerConfig,
    TimesformerForVideoClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from typer.testing import CliRunner

from mllm.answerer import Answerer
from mllm.command.export import export
from mllm.experiment import load_experiment
from mllm.models.checkpoint import build_model
from mllm.search.embedder import Embedder
from tests.families import family_tokenizer
from tests.models.test_towers import sentence_tokenizer
from tests.tiny import SMALL, ask, clip
from train import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PIXELS = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3, "size": {"shortest_edge": 32}}


def decoder(folder: Path, family: str, kind: type[PreTrainedModel], config: type) -> str:
    """A decoder with its family's tokenizer, chat form and special tokens."""
    tokenizer = family_tokenizer(family)
    sizes = SMALL | {"head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 2048}
    kind(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def whisper(folder: Path) -> str:
    """Whisper as the hub has it: encoder and decoder, chunks of 30 s, and its extractor's file."""
    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 16}
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48) | {"vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    WhisperForConditionalGeneration(WhisperConfig(**sizes, **tokens)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 16, "chunk_length": 30}))
    return str(folder)


def timesformer(folder: Path) -> str:
    """A TimeSformer with its classification head, and its processor's file."""
    config = TimesformerConfig(image_size=32, patch_size=16, num_frames=8, **SMALL)
    TimesformerForVideoClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return str(folder)


def text_tower(folder: Path, kind: type[PreTrainedModel], config: type) -> str:
    """A sentence encoder with its own tokenizer."""
    tokenizer = sentence_tokenizer()
    sizes = SMALL | {"max_position_embeddings": 40, "pad_token_id": tokenizer.pad_token_id}
    kind(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Folders in place of the hub ids, of the same families."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    towers = {"video": timesformer(root / "timesformer"), "audio.from": whisper(root / "whisper")}
    bert, roberta = (BertModel, BertConfig), (XLMRobertaModel, XLMRobertaConfig)
    return {
        "1b": towers
        | {"decoder": decoder(root / "llama", "llama3", LlamaForCausalLM, LlamaConfig)}
        | {"text": text_tower(root / "minilm", *bert)},
        "8b": towers
        | {"decoder": decoder(root / "qwen", "qwen3", Qwen3ForCausalLM, Qwen3Config)}
        | {"text.from": text_tower(root / "e5", *roberta)},
    }


def tiny_overrides(folders: dict[str, str], folder: Path) -> list[str]:
    """Overrides that leave of a full-size experiment its shape: parts, stages, and what they train."""
    return [
        *(f"model.{part}={path}" for part, path in folders.items()),
        "model.audio.layers=[1, 2]",
        "model.qformer={width: 32, layers: 1, heads: 2}",
        *(f"model.{side}_queries=3" for side in ("audio", "video")),
        *(f"data.{split}=world:{split},frames=8,size=32,window=4" for split in ("train", "val")),
        "data.workers=0",
        f"data.cache.folder={folder / 'features'}",
        f"output={folder / 'runs'}",
        *(
            f"{stage}.{key}"
            for stage in ("contrastive", "instruct")
            for key in ("steps=1", "batch=2", "warmup=0")
        ),
        *("instruct.validate_every=0", "instruct.chat=null", "instruct.lora.rank=2"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1b", "8b"])
def test_a_full_size_experiment_goes_from_parts_to_answers(name: str, parts, tmp_path: Path):
    overrides = tiny_overrides(parts[name], tmp_path)
    for stage in ("contrastive", "instruct"):
        result = CliRunner().invoke(cli.app, [stage, str(CONFIGS / f"{name}.yaml"), *overrides])
        assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / name
    served = export(run, tmp_path / "served", dtype="float32")
    question = ask(clip(6), "what is it?")
    answers = []
    for folder in (run, served):
        answerer = Answerer.from_pretrained(folder)
        (answer,) = answerer.answer([question])
        answers.append(answer)
        vectors = Embedder(answerer.model, answerer.processor).embed_text(["a red star", "a blue star moves"])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["1b", "8b"])
def test_it_keeps_the_chat_form_and_the_bases_of_its_parts(name: str, parts, tmp_path: Path):
    experiment = load_experiment(CONFIGS / f"{name}.yaml", tiny_overrides(parts[name], tmp_path))
    model, processor = build_model(experiment.model)
    family = {"1b": "<|start_header_id|>assistant<|end_header_id|>", "8b": "<|im_start|>assistant"}[name]
    prompt = processor.apply_chat_template(
        ask(clip(2), "what is it?"), tokenize=False, add_generation_prompt=True
    )
    assert family in prompt
    assert processor.inputs["audio"].chunk_seconds == 4.0
    assert processor.space_tokenizer is not None
    assert processor.inputs["video"].image_mean == [0.45] * 3
    assert set(model.model.towers) == {"video", "audio"}
