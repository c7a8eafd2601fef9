"""The language models that can be the decoder, and how each family transforms its logits.

Our model combines the family's decoder with a head of its own, so whatever the family's ForCausalLM does to
the logits is repeated here. A family is listed once tests/models/test_decoders.py finds its logits equal to
those of transformers, before and after saving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mllm.errors import ConfigError

Behind = Callable[[torch.Tensor, Any], torch.Tensor]  # logits, config -> logits


def _as_they_are(logits: torch.Tensor, config: Any) -> torch.Tensor:
    return logits


def _divided(logits: torch.Tensor, config: Any) -> torch.Tensor:
    return logits / config.logits_scaling


def _multiplied(logits: torch.Tensor, config: Any) -> torch.Tensor:
    return logits * config.logit_scale


def _capped(logits: torch.Tensor, config: Any) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


# By `model_type` of the decoder's config.
DECODERS: dict[str, Behind] = {
    "apertus": _as_they_are,
    "arcee": _as_they_are,
    "cohere": _multiplied,
    "cohere2": _multiplied,
    "ernie4_5": _as_they_are,
    "exaone4": _as_they_are,
    "gemma": _as_they_are,
    "gemma2": _capped,
    "gemma3_text": _capped,
    "glm": _as_they_are,
    "glm4": _as_they_are,
    "granite": _divided,
    "helium": _as_they_are,
    "hunyuan_v1_dense": _as_they_are,
    "llama": _as_they_are,
    "ministral": _as_they_are,
    "mistral": _as_they_are,
    "nemotron": _as_they_are,
    "olmo": _as_they_are,
    "olmo2": _as_they_are,
    "olmo3": _as_they_are,
    "phi3": _as_they_are,
    "qwen2": _as_they_are,
    "qwen3": _as_they_are,
    "seed_oss": _as_they_are,
    "smollm3": _as_they_are,
    "stablelm": _as_they_are,
    "starcoder2": _as_they_are,
    "vaultgemma": _capped,
}


def require_decoder(config: Any) -> None:
    """Raises ConfigError for a family whose logits are not tested."""
    if config.model_type not in DECODERS:
        raise ConfigError(
            f"the decoder is a '{config.model_type}', a family that is not tested: choose from "
            f"{', '.join(DECODERS)}, or add it to mllm/models/decoders.py with its test"
        )


def attention_of(config: Any) -> dict[str, str]:
    """Options for `from_config`: eager attention for Gemma 2, whose cap PyTorch's fused kernel ignores."""
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}


def behind_head(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Transforms the plain head's logits as the decoder's family does; config is the decoder's."""
    return DECODERS[config.model_type](logits, config)
