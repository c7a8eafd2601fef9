"""Embeds queries in the shared space without torch, for `mllm search`.

Loading torch and transformers takes seconds, for a text tower that runs in milliseconds. This computes the
same as `Embedder` with numpy (a test compares the two), and the same fingerprint of the checkpoint, so that
an index is only searched with vectors of the model that filled it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mllm.models.sides import SIDES, cut_settings, sides_of_processor
from mllm.records.chat_form import escape

_log = logging.getLogger(__name__)

MADE_BY = ("TokenizersBackend", "PreTrainedTokenizerFast")  # tokenizers fully described by tokenizer.json
OF_VECTORS = (*(f"{side}_{part}." for side in SIDES for part in ("tower", "qformer")), "space.")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


def model_fingerprint(settings: bytes, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """sha256 of all that decides a vector: weights of towers, Q-Formers and space, and how media is cut.

    Args:
        settings: see `sides.cut_settings`.
        weights: (name within `model`, values) of weights whose names begin with OF_VECTORS, sorted by name.
    """
    digest = hashlib.sha256(settings)
    for name, values in weights:
        digest.update(f"{name} {list(values.shape)}".encode())
        digest.update(np.ascontiguousarray(values, np.float32).data)
    return digest.hexdigest()


class TextEmbedder:
    """The text side of a checkpoint folder; replaces an `Embedder` if an index is only searched."""

    def __init__(self, folder: Path, config: dict[str, Any], name: str):
        from tokenizers import Tokenizer

        self.name = name
        self.dim: int = config["embedding_dim"]
        self._folder, self._config, self._bert = folder, config, config["space_config"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        written = _read(folder / "tokenizer_config.json")
        added = self._tokenizer.get_added_tokens_decoder().values()
        named = (value for key, value in written.items() if key.endswith("_token"))
        self._special = {token.content for token in added if token.special}
        self._special |= {token for token in named if isinstance(token, str)}
        self._special |= set(written.get("extra_special_tokens") or ())
        self._pad = self._tokenizer.token_to_id(written["pad_token"]) or 0
        self._weights = dict(_weights(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextEmbedder | None:
        """The text side of a checkpoint folder, or None if queries need the whole model; logs the reason."""
        folder = Path(folder)
        try:
            reason = _needs_whole_model(folder)
            if reason is None:
                embedder = cls(folder, _read(folder / "config.json"), str(folder.resolve()))
                embedder.fingerprint()  # reads every file that a query needs
                return embedder
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = (
                f"it is damaged ({type(error).__name__}: {error})"  # loading all of it says what is wrong
            )
        _log.info("queries need the whole model of %s: %s", folder, reason)
        return None

    @cached_property
    def _fingerprint(self) -> str:
        weights = ((name, self._value(name)) for name in sorted(self._weights) if name.startswith(OF_VECTORS))
        values = _read(self._folder / "processor_config.json")
        settings = cut_settings(
            sides_of_processor(values),
            values["window_seconds"],
            values["frames_per_window"],
            self._tokenizer.get_vocab().items(),
        )
        return model_fingerprint(settings, weights)

    def fingerprint(self) -> str:
        """The same as `Embedder.fingerprint`."""
        return self._fingerprint

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> unit float32 [texts, dim]."""
        return np.stack([self._embed(text) for text in texts])

    def _embed(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(escape(text, self._special), add_special_tokens=False).ids
        ids = ids[: self._bert["max_position_embeddings"]] or [self._pad]
        states = self._bert_states(np.array(ids))
        vector = self._linear("space.text_head", states.mean(0))
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _bert_states(self, ids: np.ndarray) -> np.ndarray:
        """[tokens] -> [tokens, width]: `transformers.BertModel` (Devlin et al., 2019) on one text."""
        root = "space.text_tower.encoder."
        tables = [
            self._value(f"{root}embeddings.{name}_embeddings.weight")
            for name in ("word", "position", "token_type")
        ]
        states = tables[0][ids] + tables[1][: len(ids)] + tables[2][0]
        states = self._norm(f"{root}embeddings.LayerNorm", states)
        for number in range(self._bert["num_hidden_layers"]):
            layer = f"{root}encoder.layer.{number}."
            heard = self._attention(f"{layer}attention.self.", states)
            heard = self._linear(f"{layer}attention.output.dense", heard)
            states = self._norm(f"{layer}attention.output.LayerNorm", states + heard)
            inner = self._linear(f"{layer}intermediate.dense", states)
            inner = self._linear(f"{layer}output.dense", _gelu(inner))
            states = self._norm(f"{layer}output.LayerNorm", states + inner)
        return states

    def _attention(self, name: str, states: np.ndarray) -> np.ndarray:
        heads = self._bert["num_attention_heads"]
        query, key, value = (
            self._linear(name + part, states).reshape(len(states), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).transpose(1, 0, 2).reshape(len(states), -1)

    def _linear(self, name: str, states: np.ndarray) -> np.ndarray:
        return states @ self._value(f"{name}.weight").T + self._value(f"{name}.bias")

    def _norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self._bert["layer_norm_eps"])
        return scaled * self._value(f"{name}.weight") + self._value(f"{name}.bias")

    def _value(self, name: str) -> np.ndarray:
        return _values(self._weights[name])


def _needs_whole_model(folder: Path) -> str | None:
    """Why queries of this checkpoint need the whole model, or None if the text side suffices."""
    if (folder / "adapter").exists():
        return "it is made of a base and an adapter"
    if not (folder / "model.safetensors").is_file():
        return "it is no folder with model.safetensors"
    config = _read(folder / "config.json")
    if config.get("space_tokenizer"):
        return "its text tower has its own tokenizer"
    text_tower = config.get("space_config") or {}
    if (text_tower.get("model_type"), text_tower.get("hidden_act")) != ("bert", "gelu"):
        found = f"{text_tower.get('model_type')} with {text_tower.get('hidden_act')}"
        return f"its text tower is {found}, not bert with gelu"
    tokenizer = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    if tokenizer not in MADE_BY:
        return f"its tokenizer is {tokenizer}, not one of {', '.join(MADE_BY)}"
    return None


def _gelu(values: np.ndarray) -> np.ndarray:
    error = np.fromiter(map(math.erf, (values / math.sqrt(2)).ravel()), np.float32, values.size)
    return values * (1 + error.reshape(values.shape)) / 2


def _weights(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name within `model`, stored values) of model.safetensors, memory-mapped."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is damaged")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, stored in header.items():
        if name.startswith("model."):
            begin, end = stored["data_offsets"]
            values = data[begin:end].view(_DTYPES[stored["dtype"]]).reshape(stored["shape"])
            yield name.removeprefix("model."), values


def _values(stored: np.ndarray) -> np.ndarray:
    """Stored values as float32; uint16 holds bfloat16, the upper half of a float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
