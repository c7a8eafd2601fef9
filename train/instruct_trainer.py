"""TRL's trainer (von Werra et al., https://github.com/huggingface/trl) for stage 2."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from mllm.models.processor import MllmProcessor
from mllm.records.shards import require_windows
from mllm.records.source import open_source
from train.answer_validation import AnswerValidation
from train.data import Collator
from train.objectives.instruct import InstructObjective
from train.run import Run, trainer_arguments
from train.sections import Instruct
from train.trainer import StageTrainer


class InstructTrainer(StageTrainer, SFTTrainer):
    """Adds the loss of the shared space to TRL's token loss, and validates answers on the way.

    Args:
        contrastive_weight: of the loss of the shared space; 0 if the collator provides no captions.
    """

    def __init__(
        self,
        run: Run,
        objective: InstructObjective,
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
        self.base = objective.base
        # TRL's names for an auxiliary loss in the outputs, meant for mixtures of experts.
        self.aux_loss_enabled = contrastive_weight > 0
        self.router_aux_loss_coef = contrastive_weight
        self.instruct = run.experiment.section(Instruct)
        self.validation: AnswerValidation | None = None
        if self.instruct.validate_every:
            source = open_source(run.experiment.data.val)
            require_windows(source, processor.spec)
            self.validation = AnswerValidation(
                source, processor, self.instruct.validate_rows, run.experiment.seed
            )

    def validated(self) -> dict[str, float]:
        if self.validation is None or self.state.global_step % self.instruct.validate_every:
            return {}
        return self.validation.scores(self.base, self.instruct.bf16)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Disables TRL's model card, since `mllm export` writes ours."""
