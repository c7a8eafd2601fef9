"""Towers: pretrained or random encoders behind one contract.

A tower is built from its transformers config and has
    width               size of a token
    tokens_per_window   tokens it gives for one window
    forward(batch)      -> [batch, tokens, width]
To add one, write the class and name it in ENCODERS under its config's `model_type`: see docs/adding.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import BertModel, PreTrainedConfig, PreTrainedModel, TimesformerModel
from transformers import initialization as init
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class Tower(nn.Module):
    """The contract.

    `features` is what the model calls: `forward`, or what `mllm.models.feature_cache` has kept of it.
    """

    encoder: PreTrainedModel
    width: int
    tokens_per_window: int
    kept: Callable[[torch.Tensor], torch.Tensor] | None = None

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch) if self.kept is None else self.kept(batch)


class TimesformerTower(Tower):
    """Space-time attention over the frames of one window (Bertasius et al., 2021, arXiv:2102.05095)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.encoder = TimesformerModel(config)
        # transformers starts these near zero, where a tower that begins from nothing can't tell which way a
        # thing moves: next to the pixels, place and time are too faint. Pretrained weights overwrite both.
        init.normal_(self.encoder.embeddings.position_embeddings, std=1.0)
        init.normal_(self.encoder.embeddings.time_embeddings, std=1.0)
        self.frames = config.num_frames
        self.width = config.hidden_size
        self.tokens_per_window = 1 + config.num_frames * (config.image_size // config.patch_size) ** 2

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values [windows, frames, channels, height, width], normalised -> [windows, tokens, width]."""
        if pixel_values.shape[1] != self.frames:
            raise ValueError(
                f"the video tower takes {self.frames} frames a window, got {pixel_values.shape[1]}"
            )
        return self.encoder(pixel_values).last_hidden_state


class WhisperTower(Tower):
    """Whisper's encoder over one native chunk of sound (Radford et al., 2022, arXiv:2212.04356)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.width = config.d_model
        self.tokens_per_window = config.max_source_positions

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """input_features [chunks, mel bins, mel frames] (log-mel) -> [chunks, tokens, width]."""
        return self.encoder(input_features).last_hidden_state


class BertTower(Tower):
    """The text side of the shared space; reads the decoder's own token ids."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.width = config.hidden_size
        self.tokens_per_window = 0  # a caption stands outside the windows

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask [texts, tokens] -> [texts, tokens, width]."""
        return self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state


ENCODERS: dict[str, type[Tower]] = {
    "timesformer": TimesformerTower,
    "whisper": WhisperTower,
    "bert": BertTower,
}


def build_encoder(config: PreTrainedConfig) -> Tower:
    """The tower for a transformers config, with random weights.

    Raises:
        ValueError: for a `model_type` that has no tower.
    """
    if config.model_type not in ENCODERS:
        raise ValueError(f"no tower for '{config.model_type}': choose from {', '.join(sorted(ENCODERS))}")
    return ENCODERS[config.model_type](config)  # type: ignore[call-arg]
