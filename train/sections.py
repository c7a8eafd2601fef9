"""The sections of an experiment that belong to training: one for each stage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mllm.experiment import Positive, Rate, Section, Share, Weight

# The parts of the model that a stage can train; everything else stays frozen.
Group = Literal[
    "video_tower",
    "audio_tower",
    "mixers",  # what a tower trains on top of a frozen base
    "qformers",
    "projectors",
    "space",
    "heads",  # the shared space without its text tower
    "embeddings",
    "decoder",
]


class StageSection(Section):
    """Settings of all stages: AdamW, or Muon and AdamW, with linear warm-up and cosine decay."""

    steps: int = Field(default=1000, ge=0)  # 0 skips the stage
    batch: Positive = 32
    lr: Rate = 2e-3
    muon_lr: Rate | None = None  # Muon's, for the matrices inside layers; null: AdamW for all
    warmup: int = Field(default=100, ge=0)
    save_every: Positive = 200
    log_every: Positive = 10
    bf16: bool = False
    # Holds frozen weights of the decoder in bfloat16, and so what passes between its layers, which is faster
    # on a CPU. Exact for a base that comes in bfloat16; others are rounded.
    bf16_base: bool = False
    gradient_checkpointing: bool = False
    num_threads: Positive | None = None  # of torch; null: one per core
    compile: bool = False  # torch.compile for the decoder: a slow first step, then faster ones
    # Stops a run whose media tokens, in three logs after the warm-up, differ less than this between
    # recordings, as a share of their energy: the decoder hears and sees nothing. 0: never; .3 is healthy.
    guard: Share = 0.0

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.bf16_base and not self.bf16:
            raise ValueError("bf16_base needs bf16: true, so that the rest is computed in bfloat16 too")
        return self


class Text(StageSection):
    """Stage 0, nano only: the decoder as a language model of scene descriptions and answers."""

    batch: Positive = 64
    lr: Rate = 3e-3


class Curriculum(Section):
    """A source to start with, such as an easier one (clips with a single object)."""

    source: str
    steps: Positive  # before the stage switches to data.train


class Contrastive(StageSection):
    """Stage 1: adapters and the shared space; InfoNCE and a caption loss together."""

    batch: Positive = 64
    contrastive_weight: Weight = 1.0
    caption_weight: Weight = 1.0
    video_audio_weight: Weight = 0.3
    word_weight: Weight = 0.0  # of a loss that brings media tokens close to the words of captions
    text_batch: int = Field(
        default=0, ge=0
    )  # stage-0 scenes in every step, so that the decoder does not forget
    curriculum: Curriculum | None = None
    decoder_lr: Rate | None = None  # null: as lr; scales muon_lr for the decoder likewise
    # How often recordings are drawn, by the `task` or `source` of their captions, as a multiple.
    weights: dict[str, Weight] = {}
    train: list[Group] = ["video_tower", "audio_tower", "qformers", "projectors", "space", "decoder"]


class Lora(Section):
    """LoRA on the decoder's linear layers."""

    rank: Positive = 16
    alpha: Rate = 32.0
    lr: Rate | None = None  # null: as lr of the stage
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Regular expression over module names.
    target: str = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"


class Chat(Section):
    """Conversations mixed into instruction tuning, so that the decoder still talks as it did."""

    source: str
    share: Share = 0.15  # of the examples
    # Rows without a recording learn all that the decoder without LoRA predicts, not the answers alone.
    distill: bool = False


class Instruct(StageSection):
    """Stage 2: instruction tuning."""

    tower_lr: Rate | None = None  # null: as lr; scales muon_lr for the towers likewise
    lora: Lora | None = Lora()  # null: the whole decoder, if "decoder" is in train
    train: list[Group] = ["qformers", "projectors"]
    curriculum: Curriculum | None = None
    contrastive_weight: Weight = 0.1  # of the losses of stage 1, which keep what it trained
    chat: Chat | None = None
    # How often records are drawn, by their `task` or `source`, as a multiple: {transcript: 2, pictures: 0.5}.
    weights: dict[str, Weight] = {}
    validate_every: int = Field(default=0, ge=0)  # steps between answers about data.val; 0: none
    validate_rows: Positive = 96

    @model_validator(mode="after")
    def _something_to_distill(self) -> Self:
        if self.chat is not None and self.chat.distill and self.lora is None:
            raise ValueError("chat.distill learns from the decoder without LoRA, and lora is null: drop one")
        return self
