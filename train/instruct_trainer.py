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
    """Adds the loss of the shared space to TRL's token loss.

    Args:
        contrastive_weight: of the loss of the shared space; 0 if the collator provides no captions.
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
        # TRL patches its loss into a transformers model; the objective is what is wrapped and trained.
        super().__init__(run, objective, processor, collator, model=objective.model, args=settings, **options)
        self.model = self.model_wrapped = objective
        # TRL's names for an auxiliary loss in the outputs, meant for mixtures of experts.
        self.aux_loss_enabled = contrastive_weight > 0
        self.router_aux_loss_coef = contrastive_weight

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Disables TRL's model card, since `mllm export` writes ours."""
