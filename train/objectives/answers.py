"""Next-token losses of the decoder, on texts and on answers about recordings."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mllm.models.encoded import IGNORE
from mllm.models.model import MediaQueries, MllmForConditionalGeneration
from train.objectives.base import Objective


class NextTokenObjective(Objective):
    """The model's own next-token loss (Radford et al. 2018), on text or behind recordings."""

    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"  # for Trainer: the first token of a row is not predicted

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """input_ids, labels [rows, tokens] and whatever else the model takes -> {"loss"}."""
        return {"loss": self.model(**batch).loss}


def answer_loss(
    model: MllmForConditionalGeneration, queries: MediaQueries, labels: Tensor, **inputs: Tensor
) -> Tensor:
    """Mean next-token loss of the decoder over the trained positions: BLIP-2's and CoCa's caption loss.

    Args:
        queries: Q-Former outputs of the batch; {} for text only.
        labels: [rows, tokens], IGNORE at positions that are not trained.
        inputs: input_ids [rows, tokens], attention_mask and position_ids.
    """
    hidden = model.model(media_queries=queries, use_cache=False, **inputs).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORE
    return functional.cross_entropy(model.logits(hidden[:, :-1][trained]).float(), targets[trained])
