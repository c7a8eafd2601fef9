"""Stage 0, for decoders with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.stage import Scores, Stage

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from mllm.records.source import DataSource
    from train.data import Collator
    from train.objectives.base import Objective
    from train.run import Run
    from train.sections import StageSection


class TextStage(Stage):
    """Stage 0: a decoder that starts from nothing learns to tell and to answer, from text."""

    name = "text"
    position = 0
    section = "text"

    def trained_groups(self, settings: StageSection) -> list[str]:
        return ["decoder"]

    def objective(self, run: Run, model: MllmForConditionalGeneration) -> Objective:
        from train.objectives.answers import NextTokenObjective

        return NextTokenObjective(model)

    def collator(self, run: Run, objective: Objective, processor: MllmProcessor) -> Collator:
        from mllm.records.source import open_source
        from train.data import TextCollator

        return TextCollator(open_source(run.experiment.data.train), processor, run.experiment.seed)

    def scores(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource
    ) -> Scores:
        return text_scores(model, processor, source)


def text_scores(model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource) -> Scores:
    """Answers about scenes described in text: whether the decoder can answer at all; {} if there are none."""
    from train import validate

    answers = validate.text_answers(model, processor, source)
    return {"answers of 64 scenes told as text": answers} if answers else {}
