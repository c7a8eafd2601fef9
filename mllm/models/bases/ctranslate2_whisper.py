"""Whisper in CTranslate2's format, as WhisperForConditionalGeneration.

The file, `model.bin` of binary version 6 (CTranslate2's python/ctranslate2/specs/model_spec.py), is a flat
list of variables (name, shape, dtype, bytes), followed by aliases. Projections of one input are one matrix.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
Variables = dict[str, np.ndarray]


def convert(files: Sequence[Path], folder: Path) -> None:
    """Writes a transformers folder from the parts of model.bin, config.json and tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer

    parts = sorted(file for file in files if file.name.startswith("model.bin"))
    others = {file.name: file for file in files if file not in parts}
    variables = read_variables(b"".join(part.read_bytes() for part in parts))
    state = whisper_state(variables)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    layers, heads = _layers(variables), int(variables["encoder/num_heads"])
    WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=len(state["model.encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(state["model.decoder.layers.0.fc1.weight"]),
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]),
        dtype=torch.float16,
    ).save_pretrained(folder)
    tokens = Tokenizer.from_file(str(others["tokenizer.json"]))
    facts = json.loads(others["config.json"].read_text(encoding="utf-8"))
    GenerationConfig(**generation_fields(tokens.get_vocab(), facts)).save_pretrained(folder)
    WhisperTokenizer(tokenizer_object=tokens).save_pretrained(folder)
    WhisperFeatureExtractor(state["model.encoder.conv1.weight"].shape[1]).save_pretrained(folder)


def read_variables(data: bytes) -> Variables:
    """All variables of a model.bin by name, aliases among them.

    Raises:
        ValueError: if the file is of another version, or holds more or less than it says.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        value = data[at : at + length - 1].decode()  # a NUL ends it
        at += length
        return value

    if (version := number("I")) != 6:
        raise ValueError(f"model.bin is of version {version}, not 6")
    text(), number("I")  # the kind of model, and its revision
    variables: Variables = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        variables[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    for _ in range(number("I")):
        alias, name = text(), text()
        variables[alias] = variables[name]
    if at != len(data):
        raise ValueError(f"model.bin holds {len(data)} bytes, and its list {at}")
    return variables


def _layers(variables: Variables) -> int:
    return 1 + max(int(m[1]) for name in variables if (m := re.match(r"encoder/layer_(\d+)/", name)))


def whisper_state(variables: Variables) -> dict[str, torch.Tensor]:
    """The weights under transformers' names; `proj_out` is tied and not among them."""
    state: dict[str, torch.Tensor] = {}

    def put(to: str, name: str) -> None:
        state[to] = torch.from_numpy(variables[name].copy())

    def norm(to: str, name: str) -> None:
        put(f"{to}.weight", f"{name}/gamma")
        put(f"{to}.bias", f"{name}/beta")

    def linear(name: str, *tos: str) -> None:
        weights, biases = (np.split(variables[f"{name}/{kind}"], len(tos)) for kind in ("weight", "bias"))
        for to, weight, bias in zip(tos, weights, biases, strict=True):
            state[f"{to}.weight"] = torch.from_numpy(weight.copy())
            if not to.endswith("k_proj"):  # Whisper's keys have no bias: here it is zeros
                state[f"{to}.bias"] = torch.from_numpy(bias.copy())

    for part in ("encoder", "decoder"):
        put(f"model.{part}.embed_positions.weight", f"{part}/position_encodings/encodings")
        norm(f"model.{part}.layer_norm", f"{part}/layer_norm")
        for n in range(_layers(variables)):
            to, name = f"model.{part}.layers.{n}", f"{part}/layer_{n}"
            q, k, v, out = (f"{to}.self_attn.{which}_proj" for which in ("q", "k", "v", "out"))
            norm(f"{to}.self_attn_layer_norm", f"{name}/self_attention/layer_norm")
            linear(f"{name}/self_attention/linear_0", q, k, v)
            linear(f"{name}/self_attention/linear_1", out)
            if part == "decoder":
                q, k, v, out = (f"{to}.encoder_attn.{which}_proj" for which in ("q", "k", "v", "out"))
                norm(f"{to}.encoder_attn_layer_norm", f"{name}/attention/layer_norm")
                linear(f"{name}/attention/linear_0", q)
                linear(f"{name}/attention/linear_1", k, v)
                linear(f"{name}/attention/linear_2", out)
            norm(f"{to}.final_layer_norm", f"{name}/ffn/layer_norm")
            linear(f"{name}/ffn/linear_0", f"{to}.fc1")
            linear(f"{name}/ffn/linear_1", f"{to}.fc2")
    for conv in ("conv1", "conv2"):
        put(f"model.encoder.{conv}.weight", f"encoder/{conv}/weight")
        put(f"model.encoder.{conv}.bias", f"encoder/{conv}/bias")
    put("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    return state


def generation_fields(vocabulary: Mapping[str, int], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` needs for any language, translation and the times of words.

    Args:
        vocabulary: token to id.
        facts: CTranslate2's config.json.
    """
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    names = {id: token for token, id in vocabulary.items()}
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "prev_sot_token_id": vocabulary["<|startofprev|>"],
        "no_timestamps_token_id": vocabulary["<|notimestamps|>"],
        "is_multilingual": True,
        "lang_to_id": {names[id]: id for id in facts["lang_ids"]},
        "task": "transcribe",  # without it, a text whose language is detected begins without a task
        "task_to_id": {task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "suppress_tokens": facts["suppress_ids"],
        "begin_suppress_tokens": facts["suppress_ids_begin"],
        "alignment_heads": facts["alignment_heads"],
        "max_initial_timestamp_index": 50,  # speech begins within the first second, as in OpenAI's own code
        "max_length": 448,
        "return_timestamps": False,
    }
