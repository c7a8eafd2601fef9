"""Stage 1: adapters and the shared space, by InfoNCE and a caption loss together.

InfoNCE alone learns which clip belongs to which caption without learning colour or shape; words that the
decoder has to say supervise every attribute (BLIP-2, Li et al. 2023; CoCa, Yu et al. 2022). The towers run
once a step: the same Q-Former outputs go to the shared space and, projected, to the decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainingArguments

from mllm.errors import ConfigError
from mllm.models.model import MediaQueries, MllmForConditionalGeneration, MllmModel
from mllm.models.processor import IGNORE, take_media
from mllm.search.embedder import longest_text
from train.conversations import CAPTION_REQUESTS
from train.data import PROCESSES, PairCollator, number_dataset
from train.losses import info_nce
from train.run import Run, StageTrainer, prepare_model, set_trainable, trainer_arguments

VIDEO, AUDIO, BOTH = range(len(CAPTION_REQUESTS))


def space_losses(model: MllmModel, queries: MediaQueries, space: dict[str, Tensor]) -> dict[str, Tensor]:
    """InfoNCE of every pair of modalities, from Q-Former outputs and `data.space_batch`.

    Returns:
        video_text_loss, audio_text_loss, fused_text_loss, video_audio_loss: scalars.
    """
    captions, ids = space["captions"], space["caption_ids"]
    video_windows, image_windows, audio_windows = (
        space[f"{name}_windows"] for name in ("video", "image", "audio")
    )
    clips = len(captions)
    texts = model.space.text(space["text_ids"], space["text_mask"])
    text = texts[captions.clamp(min=0)]  # [clips, 3, dim]
    video = texts.new_zeros(clips, texts.shape[1])
    audio = texts.new_zeros(clips, texts.shape[1])
    if "video" in queries:
        video = video + model.embed("video", queries["video"], video_windows)
    if "image" in queries:
        video = video + model.embed("video", queries["image"], image_windows)
    if "audio" in queries:
        audio = audio + model.embed("audio", queries["audio"], audio_windows)
    seen, heard = (video_windows + image_windows) > 0, audio_windows > 0
    told = captions >= 0
    shuffled = None
    if "permuted_pixels" in space:
        shuffled = torch.zeros_like(video)
        if len(space["permuted_pixels"]):
            permuted = model.side_queries("video", space["permuted_pixels"])
            shuffled = model.embed("video", permuted, space["permuted_windows"])
    scale = model.space.logit_scale.exp().clamp(max=100)

    def pair(
        left: Tensor, right: Tensor, columns: list[int], present: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        return info_nce(left, right, scale, ids[:, columns], present, negatives)

    return {
        "video_text_loss": pair(video, text[:, VIDEO], [VIDEO], seen & told[:, VIDEO], shuffled),
        "audio_text_loss": pair(audio, text[:, AUDIO], [AUDIO], heard & told[:, AUDIO]),
        "fused_text_loss": pair(
            functional.normalize(video + audio, dim=-1), text[:, BOTH], [BOTH], seen & heard & told[:, BOTH]
        ),
        # Another clip with the same picture or the same sound would be as right an answer.
        "video_audio_loss": pair(video, audio, [VIDEO, AUDIO], seen & heard),
    }


def weighted(losses: dict[str, Tensor], video_audio_weight: float) -> Tensor:
    """The shared space's losses as one number: three of equal weight, video–audio with its own."""
    texts = losses["video_text_loss"] + losses["audio_text_loss"] + losses["fused_text_loss"]
    return texts / 3 + video_audio_weight * losses["video_audio_loss"]


def answer_loss(
    model: MllmForConditionalGeneration, queries: MediaQueries, labels: Tensor, **inputs
) -> Tensor:
    """Mean next-token loss of the decoder; only positions that are trained reach the head."""
    hidden = model.model(media_queries=queries, use_cache=False, **inputs).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORE
    return functional.cross_entropy(model.logits(hidden[:, :-1][trained]).float(), targets[trained])


class ContrastiveObjective(nn.Module):
    """The model with stage 1's losses as its forward pass: distributed wrappers then see what is used."""

    accepts_loss_kwargs = False

    def __init__(self, model: MllmForConditionalGeneration, settings: Any):
        super().__init__()
        self.mllm = model
        self.config = model.config
        self.settings = settings

    def forward(
        self,
        space: dict[str, Tensor],
        labels: Tensor,
        text: dict[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """A batch of `data.PairCollator` -> {"loss": total, and every component by name}."""
        queries = self.mllm.model.query_outputs(**take_media(inputs))
        losses = space_losses(self.mllm.model, queries, space)
        total = self.settings.contrastive_weight * weighted(losses, self.settings.video_audio_weight)
        if self.settings.caption_weight:
            losses["caption_loss"] = answer_loss(self.mllm, queries, labels, **inputs)
            total = total + self.settings.caption_weight * losses["caption_loss"]
        if text is not None:
            losses["text_loss"] = answer_loss(self.mllm, {}, **text)
            total = total + losses["text_loss"]
        return losses | {"loss": total}


class ContrastiveTrainer(StageTrainer):
    """A transformers Trainer whose model returns its loss in parts."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = dict(model(**inputs))
        total = losses.pop("loss")
        self.add_parts(losses)
        return (total, losses) if return_outputs else total


def longest_caption(model: MllmForConditionalGeneration) -> int:
    """Tokens that the text tower of the shared space reads.

    Raises:
        ConfigError: if the model has no shared space.
    """
    if model.config.space_config is None:
        raise ConfigError("model.text is null, so there is no shared space to train: give it a text tower")
    return longest_text(model.config)


def train(run: Run, model: MllmForConditionalGeneration, processor: Any) -> Path:
    """Stage 1, resumed where it stopped; returns the folder of its result."""
    from mllm.records.source import open_source

    settings = run.settings
    set_trainable(model, settings.train)
    model.model.match_projectors()  # to the words as stage 0 has left them
    prepare_model(model, run)
    objective = ContrastiveObjective(model, settings)
    torch.manual_seed(run.experiment.seed)
    trainer = ContrastiveTrainer(
        run=run,
        model=objective,
        args=TrainingArguments(ddp_find_unused_parameters=True, **trainer_arguments(run)),
        train_dataset=number_dataset(settings.steps, settings.batch),
        data_collator=PairCollator(
            open_source(run.experiment.data.train),
            processor,
            run.experiment.seed,
            longest_caption(model),
            open_source(settings.curriculum.source) if settings.curriculum else None,
            settings.curriculum.steps * settings.batch * PROCESSES if settings.curriculum else 0,
            settings.text_batch,
            run.experiment.data.augment,
        ),
    )
    return trainer.run_stage(model, processor)
