"""Stage 2: instruction tuning (Ouyang et al. 2022) that preserves the shared space.

TRL computes the token loss from the decoder's hidden states itself, equal to that of `forward` (tested). The
contrastive loss on captioned clips preserves the shared space, which tuning on questions alone would distort.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers.utils import ModelOutput

from mllm.models.encoded import take_media
from mllm.models.model import MllmForConditionalGeneration
from train.objectives.base import Objective
from train.objectives.space import space_losses, weighted


class InstructObjective(Objective):
    """The model's outputs for TRL, with the loss of the shared space as `aux_loss` if the batch has captions.

    Args:
        model: the model or, with LoRA, the PeftModel around it.
        video_audio_weight: as in stage 1, which trained the shared space.
    """

    def __init__(self, model: MllmForConditionalGeneration | PeftModel, video_audio_weight: float):
        super().__init__(model)
        self.video_audio_weight = video_audio_weight

    @property
    def base(self) -> MllmForConditionalGeneration:
        """The model inside the PeftModel."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, space: dict[str, Tensor] | None = None, output_router_logits: bool = False, **inputs: Any
    ) -> ModelOutput:
        """A batch of `QuestionCollator` -> the model's outputs.

        Args:
            space: from `data.space_batch`; None skips the loss of the shared space.
            output_router_logits: set by TRL to request an `aux_loss`; ignored.
        """
        if space is None:
            return self.model(**inputs)
        queries = self.base.model.query_outputs(**take_media(inputs))
        outputs = self.model(media_queries=queries, **inputs)
        losses = space_losses(self.base.model, queries, space)
        self.note(losses | {"answer_loss": outputs.loss})
        outputs.aux_loss = weighted(losses, self.video_audio_weight)
        return outputs
