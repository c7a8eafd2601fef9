"""Stage 1: the shared space, a caption loss and a word loss together.

InfoNCE alone matches clips and captions without learning colours or shapes; the caption loss supervises every
attribute (BLIP-2, Li et al. 2023; CoCa, Yu et al. 2022). The towers run
once a step: the same Q-Former outputs go to the shared space and, projected, to the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mllm.models.encoded import take_media
from mllm.models.model import MllmForConditionalGeneration
from train.objectives.answers import answer_loss
from train.objectives.base import Objective
from train.objectives.media import media_shares
from train.objectives.space import space_losses, weighted
from train.objectives.words import words_of_captions

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
            losses["word_loss"] = words_of_captions(self.model.model, queries, space)
            total = total + self.settings.word_weight * losses["word_loss"]
        if labels is not None and self.settings.caption_weight:
            losses["caption_loss"] = answer_loss(self.model, queries, labels, **inputs)
            total = total + self.settings.caption_weight * losses["caption_loss"]
        if text is not None:
            losses["text_loss"] = answer_loss(self.model, {}, **text)
            total = total + losses["text_loss"]
        self.note(losses | media_shares(self.model.model, queries))
        return {"loss": total}
