"""A baseline: a classifier of recordings by their sound.

The audio tower starts from the experiment's weights or from random ones, and trains on the same records, in
the same order and views, with the steps, optimizer and schedule of the stage `instruct`. Unlike a model that
answers in words, it knows the closed set of answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from train.sections import StageSection
from train.stage import Config, Overrides, Stage

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from train.classifier import ClassifierTrainer, LabelCollator
    from train.objectives.base import Objective
    from train.objectives.classifier import ClassifierObjective
    from train.run import Run


class ClassifierStage(Stage):
    """A plain classifier of sounds on the same data, as a yardstick: the audio tower and a linear layer."""

    name = "classifier"
    section = "instruct"

    def __init__(self, from_scratch: bool = False):
        self.from_scratch = from_scratch
        if from_scratch:
            self.name = "classifier-from-scratch"

    def trained_groups(self, settings: StageSection) -> list[str]:
        return [group for group in super().trained_groups(settings) if group == "audio_tower"]

    def objective(self, run: Run, model: MllmForConditionalGeneration) -> ClassifierObjective:
        from mllm.errors import ConfigError
        from mllm.records.source import open_source
        from train.classifier import answers_of
        from train.objectives.classifier import ClassifierObjective

        if "audio" not in model.config.sides:
            raise ConfigError("the classifier hears, and this model has no audio side: set model.audio")
        conversations = answers_of(open_source(run.experiment.data.train))
        return ClassifierObjective(model, sorted({conversation[-1].text for conversation in conversations}))

    def collator(self, run: Run, objective: Objective, processor: MllmProcessor) -> LabelCollator:
        from mllm.records.source import open_source
        from train.classifier import LabelCollator
        from train.objectives.classifier import ClassifierObjective

        assert isinstance(objective, ClassifierObjective)
        experiment = run.experiment
        source = open_source(experiment.data.train)
        return LabelCollator(source, processor, experiment.seed, objective.labels, experiment.data.augment)

    def trainer(
        self, run: Run, model: MllmForConditionalGeneration, processor: MllmProcessor
    ) -> ClassifierTrainer:
        from train.classifier import ClassifierTrainer, renew_tower
        from train.objectives.classifier import ClassifierObjective

        if self.from_scratch:
            renew_tower(model)
        objective = self.prepared(run, model)
        assert isinstance(objective, ClassifierObjective)
        return ClassifierTrainer(run, objective, processor, self.collator(run, objective, processor))

    def verb(self, train_stages: Callable[..., None]) -> Callable[..., None]:
        def verb(
            config: Config,
            overrides: Overrides = None,
            from_scratch: Annotated[
                bool,
                typer.Option("--from-scratch", help="Random weights, not those of the experiment's start."),
            ] = False,
        ) -> None:
            # It takes minutes and does not resume.
            train_stages(config, overrides, [ClassifierStage(from_scratch)], restart=True)

        return verb
