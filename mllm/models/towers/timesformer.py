"""TimeSformer: space-time attention over the frames of one window."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch.nn import functional
from transformers import PreTrainedConfig, TimesformerConfig, TimesformerModel
from transformers import initialization as init

from mllm.models.towers.base import FrameTower, WindowSize


class TimesformerTower(FrameTower):
    """Divided space-time attention (Bertasius et al., 2021, arXiv:2102.05095)."""

    config_class = TimesformerConfig
    encoder_class = TimesformerModel
    own_fields = MappingProxyType({"image_mean": [0.45, 0.45, 0.45], "image_std": [0.225, 0.225, 0.225]})

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__(config, window)
        # transformers initialises these near zero: next to the pixels, position and time are then too faint
        # for a tower trained from scratch to see which way a thing moves. Pretrained weights overwrite both.
        init.normal_(self.encoder.embeddings.position_embeddings, std=1.0)
        init.normal_(self.encoder.embeddings.time_embeddings, std=1.0)

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        return 1 + config.num_frames * (config.image_size // config.patch_size) ** 2

    @classmethod
    def fit(cls, key: str, value: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
        """Interpolates time embeddings to another number of frames."""
        if value.shape == wanted or not key.endswith("time_embeddings"):
            return value
        return functional.interpolate(value.transpose(1, 2), wanted[1], mode="linear").transpose(1, 2)
