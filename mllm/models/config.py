"""The architecture of one model: what it is built of, never how it was trained."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from mllm.media.windows import WindowSpec

MEL_FRAMES_PER_SECOND = 100  # Whisper: hop of 160 samples at 16 kHz
AUDIO_TOKENS_PER_SECOND = 50  # Whisper: the second convolution has stride 2


class MllmConfig(PreTrainedConfig):
    """Two towers, two Q-Formers, one decoder and one shared space.

    Attributes:
        text_config: the decoder (a LLaMA).
        video_config, audio_config: the towers; `model_type` picks the class in `encoders.ENCODERS`.
        space_config: the text tower of the shared space; None: a model that answers but does not search.
        video_queries, audio_queries: learned queries, so tokens a window costs the decoder, per modality.
        qformer_width, qformer_layers, qformer_heads: size of both Q-Formers.
        window_seconds, frames_per_window, max_windows: how a recording is cut (see `windows.py`).
        embedding_dim: size of the shared space.
        image_mean, image_std: normalisation of pixels in 0..1, per channel.
        video_token_id, audio_token_id, image_token_id: the placeholders that features replace.
    """

    model_type = "mllm"
    sub_configs = {
        "text_config": AutoConfig,
        "video_config": AutoConfig,
        "audio_config": AutoConfig,
        "space_config": AutoConfig,
    }

    # Each a dict, a transformers config or None; always a config after construction.
    text_config: Any = None
    video_config: Any = None
    audio_config: Any = None
    space_config: Any = None
    video_queries: int = 32
    audio_queries: int = 8
    qformer_width: int = 768
    qformer_layers: int = 2
    qformer_heads: int = 12
    window_seconds: float = 2.0
    frames_per_window: int = 8
    max_windows: int = 32
    embedding_dim: int = 256
    image_mean: list[float] | tuple[float, ...] = (0.45, 0.45, 0.45)
    image_std: list[float] | tuple[float, ...] = (0.225, 0.225, 0.225)
    video_token_id: int | None = None
    audio_token_id: int | None = None
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config(self.text_config, "llama")
        self.video_config = _sub_config(self.video_config, "timesformer")
        self.audio_config = _sub_config(self.audio_config, "whisper")
        if self.space_config is not None:
            self.space_config = _sub_config(self.space_config, "bert")
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        if self.video_config.num_frames != self.frames_per_window:
            # TimeSformer's divided attention regroups tokens wrongly, and silently, on any other count.
            raise ValueError(
                f"frames_per_window is {self.frames_per_window} but the video tower takes "
                f"{self.video_config.num_frames} frames: make them equal"
            )
        tokens = self.window_seconds * AUDIO_TOKENS_PER_SECOND
        if tokens != int(tokens) or self.windows_per_chunk < 1:
            raise ValueError(
                f"window_seconds is {self.window_seconds}: the audio tower hears {self.chunk_seconds} s at a "
                f"time in steps of 0.02 s, so take a multiple of 0.02 s, at most {self.chunk_seconds} s"
            )
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of what the video tower sees."""
        return self.video_config.image_size

    @property
    def window_spec(self) -> WindowSpec:
        return WindowSpec(self.window_seconds, self.frames_per_window, self.max_windows, self.image_size)

    @property
    def chunk_seconds(self) -> float:
        """Seconds of sound that the audio tower takes at once: 30 for Whisper."""
        return self.audio_config.max_source_positions / AUDIO_TOKENS_PER_SECOND

    @property
    def windows_per_chunk(self) -> int:
        return int(self.chunk_seconds / self.window_seconds + 1e-6)

    @property
    def audio_tokens_per_window(self) -> int:
        """Audio tower tokens (not queries) that belong to one window."""
        return round(self.window_seconds * AUDIO_TOKENS_PER_SECOND)


def _sub_config(value: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or {})
    return CONFIG_MAPPING[values.pop("model_type", default_type)](**values)


AutoConfig.register("mllm", MllmConfig, exist_ok=True)
