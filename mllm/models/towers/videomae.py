"""VideoMAE: a masked autoencoder over the frames of one window."""

from __future__ import annotations

from transformers import PreTrainedConfig, VideoMAEConfig, VideoMAEModel

from mllm.models.towers.base import FrameTower, WindowSize


class VideoMAETower(FrameTower):
    """Joint attention over tubelets, patches of two consecutive frames (Tong et al., 2022)."""

    config_class = VideoMAEConfig
    encoder_class = VideoMAEModel

    @classmethod
    def check(cls, config: PreTrainedConfig, window: WindowSize) -> None:
        super().check(config, window)
        if window.frames % config.tubelet_size:
            raise ValueError(
                f"frames_per_window is {window.frames}, and VideoMAE reads {config.tubelet_size} frames at a "
                "time: take a multiple"
            )

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        return window.frames // config.tubelet_size * (config.image_size // config.patch_size) ** 2
