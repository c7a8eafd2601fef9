"""Stage 1: adapters and the shared space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.sections import Contrastive
from train.stage import Scores, Stage
from train.stages.text import text_scores

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from mllm.records.source import DataSource
    from train.data import Collator
    from train.objectives.base import Objective
    from train.run import Run


class ContrastiveStage(Stage):
    """Stage 1: adapters and shared space, by InfoNCE and a caption loss."""

    name = "contrastive"
    position = 1
    section = "contrastive"

    def objective(self, run: Run, model: MllmForConditionalGeneration) -> Objective:
        from train.objectives.contrastive import ContrastiveObjective

        model.model.match_projectors()  # to the word embeddings after stage 0
        return ContrastiveObjective(model, run.experiment.section(Contrastive))

    def collator(self, run: Run, objective: Objective, processor: MllmProcessor) -> Collator:
        from mllm.records.source import open_source
        from train.data import PairCollator, easy_start
        from train.objectives.space import longest_caption

        settings, data = run.experiment.section(Contrastive), run.experiment.data
        return PairCollator(
            open_source(data.train),
            processor,
            run.experiment.seed,
            longest_caption(objective.config),
            *easy_start(settings.curriculum, settings.batch),
            settings.text_batch,
            data.augment,
            answers=settings.caption_weight > 0,
            weights=settings.weights,
        )

    def scores(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource
    ) -> Scores:
        return text_scores(model, processor, source) | space_scores(model, processor, source)


def space_scores(model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource) -> Scores:
    """Retrieval in the shared space, if the model has one and the source has captions."""
    from train import validate

    if model.config.space_config is None:
        return {}
    found = validate.retrieval(model, processor, source)
    return {"R@1 of 256": found} if found else {}
