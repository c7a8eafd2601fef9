"""A model and clips so small that a test takes milliseconds."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch

from mllm.experiment import Model
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE
from mllm.models.checkpoint import build_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXTS = ("a red star moves left while a bell rings.", "three beeps. what colour is the star?", "[00:02]") * 20
SETTINGS: dict[str, Any] = {
    "decoder": {"type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": True, **SMALL},
    "tokenizer_vocab": 320,
    "video": {"type": "timesformer", "image_size": 32, "patch_size": 16, "num_frames": 2, **SMALL},
    "audio": {
        "type": "whisper",
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    },
    "text": {
        "type": "bert",
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **SMALL,
    },
    "video_queries": 3,
    "audio_queries": 2,
    "qformer": {"width": 32, "layers": 1, "heads": 2},
    "frames_per_window": 2,
    "max_windows": 4,
    "embedding_dim": 16,
}


@cache
def _built(changes: tuple[tuple[str, Any], ...]) -> tuple[dict[str, torch.Tensor], Any, Any]:
    torch.manual_seed(0)
    model, processor = build_model(Model.model_validate(SETTINGS | dict(changes)), list(TEXTS))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config, processor


def tiny(**changes: Any) -> tuple[Any, Any]:
    """(model, processor), the same random weights each time; `changes` replace model settings."""
    from mllm.models.model import MllmForConditionalGeneration

    weights, config, processor = _built(tuple(changes.items()))
    model = MllmForConditionalGeneration(deepcopy(config))  # merging an adapter may change it
    model.load_state_dict(weights)
    model.tie_weights()
    return model.eval(), processor


def clip(seconds: float = 4.0, seed: int = 0, picture: bool = True, sound: bool = True) -> Clip:
    """Noise to see (four frames a second) and to hear."""
    rng = np.random.default_rng(seed)
    times = np.arange(max(1, int(seconds * 4))) / 4
    return Clip(
        frames=rng.integers(0, 256, (len(times), 32, 32, 3), np.uint8) if picture else None,
        frame_times=times if picture else np.zeros(0),
        waveform=rng.normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32) if sound else None,
        duration=seconds,
        source=f"noise {seed}",
    )


def still(seed: int = 0) -> Clip:
    """A single image of noise."""
    frames = np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8)
    return Clip(frames, np.zeros(1), None, 0.0, f"image {seed}", is_image=True)


def ask(*content: Any, answer: str | None = None) -> list[dict]:
    """A user's message of clips and texts, and the assistant's answer if there is one."""
    parts = []
    for item in content:
        if isinstance(item, str):
            parts.append({"type": "text", "text": item})
        elif item.is_image:
            parts.append({"type": "image", "image": item})
        else:
            kind = "video" if item.frames is not None else "audio"
            parts.append({"type": kind, kind: item})
    messages: list[dict] = [{"role": "user", "content": parts}]
    return [*messages, {"role": "assistant", "content": answer}] if answer else messages
