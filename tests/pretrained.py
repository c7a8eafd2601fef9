"""Tiny pretrained models in folders, for models that are built from bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    TimesformerConfig,
    TimesformerModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mllm.experiment import Model
from mllm.models.checkpoint import build_model
from tests.families import decoder_folder
from tests.tiny import SETTINGS, SMALL

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star", "bell", "rings", "##s", "."]


def base_folders(folder: Path) -> dict[str, Any]:
    """A decoder, two towers and a sentence encoder with its own tokenizer, as settings of a model."""
    decoder_folder("smollm2", folder / "llama")
    fields = {key: value for key, value in SETTINGS["video"].items() if key != "type"}
    TimesformerModel(TimesformerConfig(**fields)).save_pretrained(folder / "timesformer")
    fields = {key: value for key, value in SETTINGS["audio"].items() if key != "type"}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 64}
    # Twice as long as our chunks, and in half precision, as Whisper comes.
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(**fields | {"max_source_positions": 200}, **decoder, **tokens)
    )
    whisper.half().save_pretrained(folder / "whisper")
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SMALL)).save_pretrained(
        folder / "bert"
    )
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    return {
        "decoder": str(folder / "llama"),
        "video": str(folder / "timesformer"),
        "audio": {"from": str(folder / "whisper"), "max_source_positions": 100},
        "text": str(folder / "bert"),
    }


def built_from_bases(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """(model, processor) with fresh adapters; the bases are saved in `folder` first."""
    torch.manual_seed(0)
    model, processor = build_model(Model.model_validate(SETTINGS | base_folders(folder) | changes))
    return model.eval(), processor
