"""Stage 1: the shared space, a caption loss and a word loss together.

InfoNCE alone matches clips and captions without learning colours or shapes; the caption loss supervises every
attribute (BLIP-2, Li et al. 2023; CoCa, Yu et al. 2022). The towers run
once a step: the same Q-Former outputs go to the shared space and, projected, to the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mllm.models.encoded import take_media
from mllm.models.model import SIDE_OF, MediaQueries, MllmForConditionalGeneration
from train.objectives.answers import answer_loss
from train.objectives.base import Objective
from train.objectives.media import media_shares
from train.objectives.space import AUDIO, VIDEO, space_losses, weighted
from train.objectives.words import word_loss

if TYPE_CHECKING:
    from train.sections import Contrastive


class ContrastiveObjective(Objective):
    """InfoNCE, a caption loss and, if the batch has text, the loss of stage 0, weighted by the settings."""

    model: MllmForConditionalGeneration

    def __init__(self, model: MllmForConditionalGeneration, settings: Contrastive):
        super().__init__(model)
        self.settings = settings

    def forward(
        self,
        space: dict[str, Tensor],
        labels: Tensor | None = None,
        text: dict[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """A batch of `PairCollator` -> {"loss"}.

        Args:
            space: from `pairs.space_batch`.
            labels: [clips, tokens], the captions as answers; None without a caption loss.
            text: a batch of `TextCollator`.
        """
        queries = self.model.model.query_outputs(**take_media(inputs))
        losses = space_losses(self.model.model, queries, space)
        total = self.settings.contrastive_weight * weighted(losses, self.settings.video_audio_weight)
        if self.settings.word_weight:
            losses["word_loss"] = self.words(queries, space)
            total = total + self.settings.word_weight * losses["word_loss"]
        if labels is not None and self.settings.caption_weight:
            losses["caption_loss"] = answer_loss(self.model, queries, labels, **inputs)
            total = total + self.settings.caption_weight * losses["caption_loss"]
        if text is not None:
            losses["text_loss"] = answer_loss(self.model, {}, **text)
            total = total + losses["text_loss"]
        self.note(losses | media_shares(self.model.model, queries))
        return {"loss": total}

    def words(self, queries: MediaQueries, space: dict[str, Tensor]) -> Tensor:
        """`word_loss` of pictures and of sounds: the mean of those that the batch has."""
        model = self.model.model
        losses = []
        for side, column in (("video", VIDEO), ("audio", AUDIO)):
            rows = space["captions"][:, column]
            words = torch.where((rows >= 0)[:, None], space["words"][rows.clamp(min=0)], -1)
            there = [(kind, found) for kind, found in queries.items() if SIDE_OF[kind] == side]
            if not there or not (words >= 0).any():
                continue
            tokens = model.projector(side)(torch.cat([cast(Tensor, found) for _, found in there]))
            clips = [torch.repeat_interleave(space[f"{kind}_windows"]) for kind, _ in there]
            of_token = torch.cat(clips).repeat_interleave(tokens.shape[1])
            losses.append(word_loss(tokens.flatten(0, 1), of_token, words, model.word_embeddings()))
        return torch.stack(losses).mean() if losses else space["captions"].new_zeros((), dtype=torch.float32)
