"""Stage 2: instruction tuning (Ouyang et al. 2022) that preserves the shared space.

The contrastive loss on captioned clips preserves the shared space, which tuning on questions alone would
distort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import ModelOutput

from mllm.models.encoded import IGNORE, take_media
from mllm.models.model import MllmForConditionalGeneration
from train.lora import plain_model
from train.objectives.base import Objective
from train.objectives.media import media_shares
from train.objectives.space import space_losses, weighted
from train.objectives.words import words_of_captions


@dataclass
class TokenLosses(ModelOutput):
    """What the decoder predicts at trained positions; each [rows, tokens - 1], zero elsewhere.

    Attributes:
        log_probs: of the labels.
        entropy: of the predictions.
        is_top1: whether the label is the likeliest token.
        label_mask: the trained positions.
        aux_loss: the loss of the shared space, a scalar.
    """

    log_probs: Tensor
    entropy: Tensor = None  # type: ignore[assignment]  # always given; ModelOutput wants a default
    is_top1: Tensor = None  # type: ignore[assignment]
    label_mask: Tensor = None  # type: ignore[assignment]
    aux_loss: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """Mean over the trained positions."""
        return -self.log_probs.sum() / self.label_mask.sum().clamp(min=1)


class InstructObjective(Objective):
    """The tokens' losses for TRL, with the loss of the shared space as `aux_loss` if the batch has captions.

    Args:
        model: the model or, with LoRA, the PeftModel around it.
        video_audio_weight, word_weight: as in stage 1, whose losses keep what it trained.
        distill_chat: rows without a recording learn what the decoder predicts without LoRA, at each trained
            token the odds of the whole vocabulary (Hinton et al. 2015, arXiv:1503.02531).
    """

    def __init__(
        self,
        model: MllmForConditionalGeneration | PeftModel,
        video_audio_weight: float,
        word_weight: float = 0.0,
        distill_chat: bool = False,
    ):
        super().__init__(model)
        self.video_audio_weight, self.word_weight = video_audio_weight, word_weight
        self.distill_chat = distill_chat

    @property
    def base(self) -> MllmForConditionalGeneration:
        """The model inside the PeftModel."""
        return plain_model(self.model)

    def forward(
        self,
        labels: Tensor,
        space: dict[str, Tensor] | None = None,
        output_router_logits: bool = False,
        fused_lm_head: bool = True,
        **inputs: Any,
    ) -> TokenLosses:
        """A batch of `QuestionCollator` -> what TRL makes the loss of.

        Args:
            labels: [rows, tokens], IGNORE at positions that are not trained.
            space: from `pairs.space_batch`; None skips the loss of the shared space.
            output_router_logits: set by TRL to request an `aux_loss`; ignored.
            fused_lm_head: set by TRL; ignored.
        """
        queries = self.base.model.query_outputs(**take_media(inputs))
        self.note(media_shares(self.base.model, queries))
        teacher = self._without_lora(labels, **inputs) if self.distill_chat else None
        outputs = token_losses(self.base, labels, teacher, media_queries=queries, **inputs)
        if space is not None:
            losses = space_losses(self.base.model, queries, space)
            outputs.aux_loss = weighted(losses, self.video_audio_weight)
            if self.word_weight:
                losses["word_loss"] = words_of_captions(self.base.model, queries, space)
                outputs.aux_loss = outputs.aux_loss + self.word_weight * losses["word_loss"]
            self.note(losses | {"answer_loss": outputs.loss})
        return outputs

    @torch.no_grad()
    def _without_lora(self, labels: Tensor, input_ids: Tensor, **inputs: Any) -> Teacher | None:
        """What the decoder without LoRA predicts in the rows without a recording; None if there are none."""
        assert isinstance(self.model, PeftModel)
        config = self.base.config
        media = torch.tensor(
            [config.video_token_id, config.audio_token_id, config.image_token_id], device=input_ids.device
        )
        rows = ~torch.isin(input_ids, media).any(1)
        if not rows.any():
            return None
        with self.model.disable_adapter():
            asked = {
                name: value[rows] if isinstance(value, Tensor) else value for name, value in inputs.items()
            }
            hidden = self.base.model(input_ids=input_ids[rows], **asked).last_hidden_state[:, :-1]
            logits = self.base.logits(hidden[labels[rows, 1:] != IGNORE])
        return Teacher(rows, logits.float().softmax(-1))


class Teacher(NamedTuple):
    """Predictions to learn from in some rows of a batch.

    Attributes:
        rows: boolean [rows].
        probabilities: [trained tokens of these rows, vocabulary].
    """

    rows: Tensor
    probabilities: Tensor


def token_losses(
    model: MllmForConditionalGeneration, labels: Tensor, teacher: Teacher | None = None, **inputs: Any
) -> TokenLosses:
    """Projects the trained positions alone, since a large vocabulary is expensive.

    Without Triton, TRL's own head (`trl.trainer.utils.add_fused_lm_head`) projects all.

    Args:
        teacher: in its rows, the log-probability of a label is the mean over its predictions.
    """
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    trained = targets != IGNORE
    predicted = model.logits(hidden[trained]).float().log_softmax(-1)
    chosen = targets[trained]
    with torch.no_grad():
        entropy = -(predicted.exp() * predicted).sum(-1)
        right = (predicted.argmax(-1) == chosen).float()
    log_probs = predicted.gather(-1, chosen[:, None])[:, 0]
    if teacher is not None:
        taught = teacher.rows[trained.nonzero()[:, 0]]
        soft = (teacher.probabilities * predicted[taught]).sum(-1)
        log_probs = log_probs.masked_scatter(taught, soft)

    def placed(values: Tensor) -> Tensor:
        return values.new_zeros(trained.shape).masked_scatter(trained, values)

    return TokenLosses(
        log_probs=placed(log_probs),
        entropy=placed(entropy),
        is_top1=placed(right),
        label_mask=trained,
    )
