"""HuBERT: convolutions and attention over the waveform of one window."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, PreTrainedConfig

from mllm.media.recording import SAMPLE_RATE
from mllm.models.towers.base import SoundInputs, SoundTower, WindowSize


@dataclass(frozen=True)
class WaveformInputs(SoundInputs):
    """The waveform itself, [chunks, samples].

    Attributes:
        do_normalize: scale each chunk's sound to mean 0 and variance 1.
    """

    do_normalize: bool

    def prepare(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Normalises like Wav2Vec2FeatureExtractor, which pads with zeros afterwards."""
        if not self.do_normalize:
            return samples
        sound = torch.arange(samples.shape[1]) < lengths.unsqueeze(1)
        count = lengths.clamp(min=1).unsqueeze(1)
        mean = (samples * sound).sum(1, keepdim=True) / count
        variance = ((samples - mean).square() * sound).sum(1, keepdim=True) / count
        return (samples - mean) / (variance + 1e-7).sqrt() * sound


class HubertTower(SoundTower):
    """HuBERT (Hsu et al., 2021, arXiv:2106.07447). It has no native length, so a window is a chunk."""

    config_class = HubertConfig
    encoder_class = HubertModel
    inputs_class = WaveformInputs
    own_fields = MappingProxyType({"do_normalize": True})
    unused = ("masked_spec_embed",)

    @classmethod
    def decided_fields(cls, window: WindowSize) -> dict[str, Any]:
        # Masking belongs to its pretraining; here `data.augment` varies recordings.
        return {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}

    @classmethod
    def inputs(cls, config: PreTrainedConfig, window: WindowSize) -> WaveformInputs:
        return WaveformInputs(window.seconds, config.do_normalize)

    @classmethod
    def check(cls, config: PreTrainedConfig, window: WindowSize) -> None:
        if cls.tokens_in_window(config, window) < 1:
            raise ValueError(f"window_seconds is {window.seconds}: too short for a single token of HuBERT")

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        length = round(window.seconds * SAMPLE_RATE)
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            length = (length - kernel) // stride + 1
        return length
