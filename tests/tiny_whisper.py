"""A Whisper model of a few thousand random weights, whose tokenizer knows single bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = [
    "endoftext",
    "startoftranscript",
    "en",
    "de",
    "translate",
    "transcribe",
    "nospeech",
    "notimestamps",
]


def save_tiny_whisper(folder: Path) -> Path:
    """Writes it to a folder in transformers' form."""
    torch.manual_seed(0)
    letters = {letter: id for id, letter in enumerate(bytes_to_unicode().values())}
    ids = {f"<|{name}|>": len(letters) + id for id, name in enumerate(SPECIAL)}
    tokenizer = WhisperTokenizer(vocab=letters | ids, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(ids)})
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
    shared = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(vocab_size=len(letters) + len(ids), d_model=8, **sizes, **shared)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **shared,
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": ids[f"<|{name}|>"] for name in ("en", "de")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
    )
    for part in (model, tokenizer, WhisperFeatureExtractor()):
        part.save_pretrained(folder)
    return folder


SIZES = {"layers": 1, "attention_heads": 1, "ffn_dim": 8}
