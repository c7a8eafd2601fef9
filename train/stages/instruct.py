"""Stage 2: several questions per media prefix, with LoRA on the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.sections import Contrastive, Instruct
from train.stage import Scores, Stage
from train.stages.contrastive import space_scores

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from mllm.records.source import DataSource
    from train.data import Collator
    from train.objectives.base import Objective
    from train.objectives.instruct import InstructObjective
    from train.run import Run
    from train.trainer import StageTrainer


class InstructStage(Stage):
    """Stage 2: instruction tuning with LoRA."""

    name = "instruct"
    position = 2
    section = "instruct"
    keeps_lora = True

    def objective(self, run: Run, model: MllmForConditionalGeneration) -> InstructObjective:
        from train.lora import add_lora
        from train.objectives.instruct import InstructObjective

        settings = run.experiment.section(Instruct)
        tuned = add_lora(model, settings.lora, run.stage)
        distill = settings.chat is not None and settings.chat.distill
        before = run.experiment.section(Contrastive)
        return InstructObjective(tuned, before.video_audio_weight, before.word_weight, distill)

    def collator(self, run: Run, objective: Objective, processor: MllmProcessor) -> Collator:
        from mllm.records.source import open_source
        from train.data import QuestionCollator, easy_start
        from train.objectives.space import longest_caption

        settings, data = run.experiment.section(Instruct), run.experiment.data
        return QuestionCollator(
            open_source(data.train),
            processor,
            run.experiment.seed,
            data.questions_per_clip,
            longest_caption(objective.config) if settings.contrastive_weight else None,
            data.augment,
            *easy_start(settings.curriculum, settings.batch),
            settings.weights,
            settings.chat,
        )

    def trainer(
        self, run: Run, model: MllmForConditionalGeneration, processor: MllmProcessor
    ) -> StageTrainer:
        from train.instruct_trainer import InstructTrainer
        from train.objectives.instruct import InstructObjective

        weight = run.experiment.section(Instruct).contrastive_weight
        objective = self.prepared(run, model)
        assert isinstance(objective, InstructObjective)
        return InstructTrainer(run, objective, processor, self.collator(run, objective, processor), weight)

    def scores(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource
    ) -> Scores:
        from train import validate

        answers = {"answers of 64 clips": validate.answers(model, processor, source)}
        return space_scores(model, processor, source) | answers
