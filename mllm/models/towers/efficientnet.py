"""EfficientNet-Lite over each frame of a window, then divided space-time attention over all of them."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, TimesformerConfig, TimesformerModel
from transformers import initialization as init

from mllm.models.towers.base import FrameTower, WindowSize

# EfficientNet-B0's stages: blocks, kernel, stride, expansion, channels before and after.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
HEAD = 64  # width of an attention head of the mixer


class EfficientNetLiteConfig(PreTrainedConfig):
    """An EfficientNet-Lite and the mixer on top of it.

    Attributes:
        width_multiplier, depth_multiplier: of the channels and blocks of Lite0; the first and the last stage
            keep their number of blocks.
        hidden_size: channels of the last feature map.
        image_size: pixels.
        num_frames: frames of a window.
        grid: cells of a frame in each direction; features are averaged over a cell.
        mixer_width, mixer_layers: of the divided space-time attention.
    """

    model_type = "efficientnet_lite"

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    hidden_size: int = 1280
    image_size: int = 224
    num_frames: int = 4
    grid: int = 3
    mixer_width: int = 256
    mixer_layers: int = 2


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, whose odd pixel goes to the right and the bottom."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True):
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        return super().forward(functional.pad(input, pads))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (Sandler et al., 2018), with batch norms folded into weights."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        self.expand = SameConv(before, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, after, 1)
        self.skips = stride == 1 and before == after

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = maps if self.expand is None else functional.relu6(self.expand(maps))
        outer = self.project(functional.relu6(self.depthwise(inner)))
        return maps + outer if self.skips else outer


class EfficientNetLite(PreTrainedModel):
    """EfficientNet (Tan & Le, 2019, arXiv:1905.11946) in its Lite form: relu6, no squeeze-and-excitation."""

    config_class = EfficientNetLiteConfig
    _no_split_modules = ["InvertedResidual"]
    _keys_to_ignore_on_load_unexpected = [r"^classes\."]  # ImageNet's classifier

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        for number, (blocks, kernel, stride, expansion, before, after) in enumerate(STAGES):
            before = 32 if number == 0 else scaled(before, config.width_multiplier)
            after = scaled(after, config.width_multiplier)
            if number not in (0, len(STAGES) - 1):
                blocks = math.ceil(blocks * config.depth_multiplier)
            self.blocks.append(InvertedResidual(before, after, kernel, stride, expansion))
            self.blocks.extend(
                InvertedResidual(after, after, kernel, 1, expansion) for _ in range(blocks - 1)
            )
        self.top = SameConv(after, config.hidden_size, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # without batch norms, smaller weights would let nothing through
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[images, 3, height, width] -> [images, hidden_size, height / 32, width / 32]"""
        maps = functional.relu6(self.stem(pixels))
        for block in self.blocks:
            maps = block(maps)
        return functional.relu6(self.top(maps))


def scaled(channels: int, multiplier: float) -> int:
    """Their product as a multiple of 8, at least 90 % of it."""
    wanted = channels * multiplier
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


class DividedAttention(TimesformerModel):
    """A TimeSformer (Bertasius et al., 2021, arXiv:2102.05095) whose patches are cells of frames."""

    def __init__(self, config: EfficientNetLiteConfig):
        width = config.mixer_width
        super().__init__(
            TimesformerConfig(
                num_channels=config.hidden_size,
                image_size=config.grid,
                patch_size=1,
                num_frames=config.num_frames,
                hidden_size=width,
                num_hidden_layers=config.mixer_layers,
                num_attention_heads=max(1, width // HEAD),
                intermediate_size=2 * width,
            )
        )
        # As for the TimeSformer tower, transformers' values are too faint for a model trained from scratch.
        init.normal_(self.embeddings.position_embeddings, std=0.5)
        init.normal_(self.embeddings.time_embeddings, std=0.5)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """[windows, frames * grid², hidden_size] -> [windows, 1 + num_frames * grid², mixer_width]

        A window of a single frame is read as one of `num_frames` equal frames.
        """
        grid = self.config.image_size
        maps = encoded.unflatten(1, (-1, grid, grid)).permute(0, 1, 4, 2, 3)
        if maps.shape[1] == 1:
            maps = maps.expand(-1, self.config.num_frames, -1, -1, -1)
        return super().forward(maps).last_hidden_state


class EfficientNetLiteTower(FrameTower):
    """An image network over each frame, and attention over space and time as the mixer."""

    config_class = EfficientNetLiteConfig
    encoder_class = EfficientNetLite
    own_fields = MappingProxyType({"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3})

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__(config, window)
        self.mixer = DividedAttention(config)
        self._no_split_modules = [*self.encoder._no_split_modules, *self.mixer._no_split_modules]
        self.width = config.mixer_width

    @classmethod
    def decided_fields(cls, window: WindowSize) -> dict[str, Any]:
        return super().decided_fields(window) | {"num_labels": 0}  # of a base's classifier, which is left out

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        return 1 + config.num_frames * config.grid**2

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [windows, frames, channels, height, width] -> [windows, *encoded_shape]."""
        # Twice as fast on some CPUs.
        frames = values.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps = self.encoder(frames)
        cells = functional.adaptive_avg_pool2d(maps, self.encoder.config.grid)
        return cells.flatten(2).mT.reshape(len(values), *self.encoded_shape(values))

    def encoded_shape(self, values: torch.Tensor) -> tuple[int, int]:
        config = self.encoder.config
        return values.shape[1] * config.grid**2, config.hidden_size

    def images(self, values: torch.Tensor, frames: int) -> torch.Tensor:
        """See `FrameTower.images`; the image network sees each image once."""
        return self.windows(values.unsqueeze(1))
