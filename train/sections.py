"""The sections of an experiment that belong to training: one for each stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mllm.experiment import Positive, Rate, Section, Weight

# What a stage can train, by the model's parts; everything else stays frozen.
Group = Literal["video_tower", "audio_tower", "qformers", "projectors", "space", "embeddings", "decoder"]


class StageSection(Section):
    """What all stages share: AdamW, or Muon and AdamW, with warm-up, then cosine."""

    steps: int = Field(default=1000, ge=0)  # 0 skips the stage
    batch: Positive = 32
    lr: Rate = 2e-3
    muon_lr: Rate | None = None  # of the matrices inside layers, by Muon; null: AdamW trains them, too
    warmup: int = Field(default=100, ge=0)
    save_every: Positive = 200
    log_every: Positive = 10
    bf16: bool = False
    gradient_checkpointing: bool = False
    num_threads: Positive | None = None  # of torch; null: as many as there are cores
    compile: bool = False  # the decoder, by torch.compile: a slow first step, then faster ones


class Text(StageSection):
    """Stage 0, nano only: the decoder as a language model of told scenes and answers."""

    batch: Positive = 64
    lr: Rate = 3e-3


class Curriculum(Section):
    """A source to begin with: an easier one (clips with a single object), or one of what is too rare."""

    source: str
    steps: Positive  # how long, before the stage turns to data.train


class Contrastive(StageSection):
    """Stage 1: adapters and the shared space; InfoNCE and a caption loss together."""

    batch: Positive = 64
    contrastive_weight: Weight = 1.0
    caption_weight: Weight = 1.0
    video_audio_weight: Weight = 0.3
    text_batch: int = Field(default=0, ge=0)  # scenes of stage 0 in every step, for the decoder to keep
    curriculum: Curriculum | None = None
    decoder_lr: Rate | None = None  # null: as lr; scales muon_lr for the decoder likewise
    train: list[Group] = ["video_tower", "audio_tower", "qformers", "projectors", "space", "decoder"]


class Lora(Section):
    """LoRA on the decoder's linear layers."""

    rank: Positive = 16
    alpha: Rate = 32.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # A regular expression over module names. Not lm_head: TRL's loss goes past an adapter there.
    target: str = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"


class Instruct(StageSection):
    """Stage 2: instruction tuning."""

    tower_lr: Rate | None = None  # null: as lr; scales muon_lr for the towers likewise
    lora: Lora | None = Lora()  # null: the whole decoder, if "decoder" is in train
    train: list[Group] = ["qformers", "projectors"]
    curriculum: Curriculum | None = None
    contrastive_weight: Weight = 0.1  # keeps the shared space while the model learns to answer
