"""Embeds queries in the shared space without torch, for `mllm search`.

Loading torch and transformers takes seconds, for a text tower that runs in milliseconds. This computes the
same as `Embedder` with numpy (a test compares the two), and the same fingerprint of the checkpoint, so that
an index is only searched with vectors of the model that filled it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import MllmError
from mllm.models.checkpoint import resolve
from mllm.models.checkpoint_check import DELTAS, WEIGHTS
from mllm.models.deltas import ROWS, VALUES, is_delta, read_bases, stored_in
from mllm.models.sides import SPACE_TOKENIZER, cut_settings, sides_of_processor
from mllm.records.chat_form import escape
from mllm.search.fingerprint import (
    OF_VECTORS,
    as_float32,
    delta_fingerprint,
    model_fingerprint,
    stored_weights,
    tunes_vectors,
)

_log = logging.getLogger(__name__)

# Classes of tokenizers that tokenizer.json fully describes.
MADE_BY = ("TokenizersBackend", "PreTrainedTokenizerFast")
OWN_MADE_BY = (*MADE_BY, "BertTokenizer", "BertTokenizerFast")
TEXT = "model.space."  # names of the weights that a query needs


class TextEmbedder:
    """The text side of a checkpoint folder; replaces an `Embedder` if an index is only searched."""

    def __init__(self, folder: Path, config: dict[str, Any], name: str):
        from tokenizers import Tokenizer

        self.name = name
        self.dim: int = config["embedding_dim"]
        self._folder, self._bert = folder, config["space_config"]
        self._own_tokenizer: bool = bool(config.get("space_tokenizer"))
        home = folder / SPACE_TOKENIZER if self._own_tokenizer else folder
        self._tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        written = _read(home / "tokenizer_config.json")
        if self._own_tokenizer:
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self._bert["max_position_embeddings"])
            self._prefix: str = config.get("space_prefix", "")
        added = self._tokenizer.get_added_tokens_decoder().values()
        named = (value for key, value in written.items() if key.endswith("_token"))
        self._special = {token.content for token in added if token.special}
        self._special |= {token for token in named if isinstance(token, str)}
        self._special |= set(written.get("extra_special_tokens") or ())
        self._pad = self._tokenizer.token_to_id(written["pad_token"]) or 0
        self._weights = _text_weights(folder)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> TextEmbedder | None:
        """The text side of a checkpoint, or None if queries need the whole model; logs the reason."""
        try:
            folder, adapter = resolve(name)
            reason = _needs_whole_model(Path(folder), adapter)
            if reason is None:
                known_as = str(Path(name).resolve()) if Path(name).exists() else str(name)
                embedder = cls(Path(folder), _read(Path(folder) / "config.json"), known_as)
                embedder.fingerprint()  # reads every file that a query needs
                return embedder
        except MllmError as error:
            reason = str(error)
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = (
                f"it is damaged ({type(error).__name__}: {error})"  # loading all of it says what is wrong
            )
        _log.info("queries need the whole model of %s: %s", name, reason)
        return None

    @cached_property
    def _fingerprint(self) -> str:
        values = _read(self._folder / "processor_config.json")
        settings = cut_settings(
            sides_of_processor(values),
            values["window_seconds"],
            values["frames_per_window"],
            self._tokenizer.get_vocab().items(),
        )
        if is_delta(self._folder):
            return delta_fingerprint(self._folder, settings)
        stored = stored_weights(self._folder / WEIGHTS)
        names = sorted(name for name in stored if name.removeprefix("model.").startswith(OF_VECTORS))
        return model_fingerprint(
            settings, ((name.removeprefix("model."), as_float32(stored[name])) for name in names)
        )

    def fingerprint(self) -> str:
        """The same as `Embedder.fingerprint`."""
        return self._fingerprint

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> unit float32 [texts, dim]."""
        return np.stack([self._embed(text) for text in texts])

    def _embed(self, text: str) -> np.ndarray:
        if self._own_tokenizer:
            ids = self._tokenizer.encode(self._prefix + text).ids
        else:
            ids = self._tokenizer.encode(escape(text, self._special), add_special_tokens=False).ids
        ids = ids[: self._bert["max_position_embeddings"]] or [self._pad]
        states = self._bert_states(np.array(ids))
        vector = self._linear("space.text_head", states.mean(0))
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _bert_states(self, ids: np.ndarray) -> np.ndarray:
        """[tokens] -> [tokens, width]: `transformers.BertModel` (Devlin et al., 2019) on one text."""
        root = "space.text_tower.encoder."
        table = f"{root}embeddings.%s_embeddings.weight"
        states = (
            as_float32(self._weights[table % "word"][ids])
            + as_float32(self._weights[table % "position"][: len(ids)])
            + as_float32(self._weights[table % "token_type"][0])
        )
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
        return as_float32(self._weights[name])


def _needs_whole_model(folder: Path, adapter: Path | None) -> str | None:
    """Why queries of this checkpoint need the whole model, or None if the text side suffices."""
    if adapter is not None and tunes_vectors(adapter):
        return "its adapter tunes more than the decoder"
    if not is_delta(folder) and not (folder / WEIGHTS).is_file():
        return f"it is no folder with {WEIGHTS}"
    config = _read(folder / "config.json")
    text_tower = config.get("space_config") or {}
    if (text_tower.get("model_type"), text_tower.get("hidden_act")) != ("bert", "gelu"):
        found = f"{text_tower.get('model_type')} with {text_tower.get('hidden_act')}"
        return f"its text tower is {found}, not bert with gelu"
    own = config.get("space_tokenizer")
    home, known = (folder / SPACE_TOKENIZER, OWN_MADE_BY) if own else (folder, MADE_BY)
    tokenizer = _read(home / "tokenizer_config.json").get("tokenizer_class")
    if tokenizer not in known:
        return f"its tokenizer is {tokenizer}, not one of {', '.join(known)}"
    return None


def _text_weights(folder: Path) -> dict[str, np.ndarray]:
    """The stored values of the shared space by name within `model`."""
    if not is_delta(folder):
        found = stored_weights(folder / WEIGHTS)
    else:
        text = {part: base for part, base in read_bases(folder).items() if part == "text"}
        stored = stored_in(text)
        files = {path: stored_weights(path) for path in {path for _, path, _ in stored.values()}}
        found = {name: files[path][key] for name, (_, path, key) in stored.items()}
        own = stored_weights(folder / DELTAS)
        for name in [name for name in own if name.startswith(TEXT) and name.endswith(ROWS)]:
            whole = as_float32(found[name.removesuffix(ROWS)])
            whole[own[name]] = as_float32(own[name.removesuffix(ROWS) + VALUES])
            own[name.removesuffix(ROWS)] = whole
        found |= own
    return {name.removeprefix("model."): values for name, values in found.items() if name.startswith(TEXT)}


def _gelu(values: np.ndarray) -> np.ndarray:
    error = np.fromiter(map(math.erf, (values / math.sqrt(2)).ravel()), np.float32, values.size)
    return values * (1 + error.reshape(values.shape)) / 2


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
