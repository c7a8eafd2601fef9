"""TRL's trainer (von Werra et al., https://github.com/huggingface/trl) for stage 2."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from mllm.models.processor import MllmProcessor
from train.data import Collator
from train.objectives.base import Objective
from train.run import Run, trainer_arguments
from train.trainer import StageTrainer


class InstructTrainer(StageTrainer, SFTTrainer):
    """Token loss by TRL, and beside it the shared space's.

    Args:
        contrastive_weight: of the shared space's loss; 0 where the collator makes none.
    """

    def __init__(
        self,
        run: Run,
        objective: Objective,
        processor: MllmProcessor,
        collator: Collator,
        contrastive_weight: float,
        **options: Any,
    ):
        settings = SFTConfig(
            max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **trainer_arguments(run)
        )
        # TRL wants a transformers model to put its loss into; what is wrapped and trained is the objective.
        super().__init__(run, objective, processor, collator, model=objective.model, args=settings, **options)
        self.model = self.model_wrapped = objective
        # TRL's own terms for a second loss that comes with the outputs: elsewhere, a mixture of experts'.
        self.aux_loss_enabled = contrastive_weight > 0
        self.router_aux_loss_coef = contrastive_weight

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not TRL's: `mllm export` writes ours."""
