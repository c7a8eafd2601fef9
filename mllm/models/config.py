"""The architecture of a model, without how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from mllm.experiment import TimeMarks
from mllm.media.windows import WindowSpec
from mllm.models.sides import SIDES, Described, sides_of_config
from mllm.models.towers import TextTower, WindowSize, config_from, find_tower
from mllm.models.towers.base import described

OF_EARLIER_VERSIONS = (
    *(f"{side}_{name}" for side in SIDES for name in ("config", "queries")),
    "image_mean",
    "image_std",
)


@dataclass
class Side:
    """One input side: a tower and the Q-Former that reads it.

    Attributes:
        tower: config of the tower; its `model_type` names the class in `mllm.models.towers`.
        queries: number of learned queries, which is the decoder's token cost per window.
    """

    tower: PreTrainedConfig
    queries: int

    @classmethod
    def read(cls, values: Mapping[str, Any] | Side) -> Side:
        """A side from JSON values.

        Raises:
            ConfigError: if there is no tower of that `model_type`.
        """
        if isinstance(values, Side):
            return values
        tower = values["tower"]
        return cls(tower if isinstance(tower, PreTrainedConfig) else config_from(tower), values["queries"])

    def to_dict(self) -> dict[str, Any]:
        tower = self.tower.to_dict()
        tower.pop("transformers_version", None)
        return {"queries": self.queries, "tower": tower}


class MllmConfig(PreTrainedConfig):
    """Sides with a tower and a Q-Former each, one decoder and one shared space.

    Attributes:
        text_config: the decoder.
        sides: `video` and `audio`, or one of them; each a `Side`.
        space_config: the text tower of the shared space; None for a model that answers but cannot search.
        space_tokenizer: whether the text tower has its own tokenizer; otherwise it reads the decoder's ids.
        space_prefix: what the text tower's own tokenizer reads before every text, such as "query: ".
        qformer_width, qformer_layers, qformer_heads: size of every Q-Former.
        window_seconds, frames_per_window, max_windows: how a recording is cut (see `windows.py`).
        time_marks: the form of the text before each window (see `windows.time_mark`).
        embedding_dim: size of the shared space.
        video_token_id, audio_token_id, image_token_id: the placeholders that features replace.
        new_token_ids: tokens added to a pretrained decoder's vocabulary; their embeddings always train.
    """

    model_type = "mllm"
    sub_configs = {"text_config": AutoConfig, "space_config": AutoConfig}

    # Each may be given as a dict, a transformers config or None, and is a config after construction.
    text_config: Any = None
    space_config: Any = None
    sides: Any = None
    space_tokenizer: bool = False
    space_prefix: str = ""
    qformer_width: int = 768
    qformer_layers: int = 2
    qformer_heads: int = 12
    window_seconds: float = 2.0
    frames_per_window: int = 8
    max_windows: int = 32
    time_marks: TimeMarks = "clock"
    embedding_dim: int = 256
    video_token_id: int | None = None
    audio_token_id: int | None = None
    image_token_id: int | None = None
    new_token_ids: list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        earlier = {name: kwargs.pop(name) for name in OF_EARLIER_VERSIONS if name in kwargs}
        self.text_config = _sub_config(self.text_config, "llama")
        given = sides_of_config({"sides": self.sides} | earlier)
        self.sides = {name: Side.read(side) for name, side in given.items()}
        if not self.sides:
            raise ValueError(f"the model has no side: give it one of {', '.join(SIDES)}")
        for name, side in self.sides.items():
            tower = find_tower(side.tower.model_type)
            if tower.reads != SIDES[name]:
                raise ValueError(f"the side {name} has a {side.tower.model_type}, which reads {tower.reads}")
            tower.check(side.tower, self.window)
        if isinstance(self.space_config, dict):
            self.space_config = config_from({"model_type": "bert"} | self.space_config, TextTower)
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @property
    def window(self) -> WindowSize:
        return WindowSize(self.window_seconds, self.frames_per_window)

    def inputs(self, side: str) -> Any:
        """How recordings are prepared for a side's tower: `PixelInputs` or `SoundInputs`."""
        tower = self.sides[side].tower
        return find_tower(tower.model_type).inputs(tower, self.window)

    @property
    def image_size(self) -> int:
        """Height and width of the video tower's input in pixels; 1 without a video tower."""
        return self.inputs("video").image_size if "video" in self.sides else 1

    @property
    def window_spec(self) -> WindowSpec:
        return WindowSpec(self.window_seconds, self.frames_per_window, self.max_windows, self.image_size)

    def described_sides(self) -> Described:
        """The sides as processor_config.json describes them (see `sides`)."""
        return {
            name: {"queries": side.queries, "type": side.tower.model_type, **described(self.inputs(name))}
            for name, side in self.sides.items()
        }

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"sides": {name: side.to_dict() for name, side in self.sides.items()}}


def _sub_config(value: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or {})
    return CONFIG_MAPPING[values.pop("model_type", default_type)](**values)


AutoConfig.register("mllm", MllmConfig, exist_ok=True)
