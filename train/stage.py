"""The contract of a training stage, and the lookup of installed stages, in order.

A stage is a class of the entry-point group `mllm.stages` (docs/adding.md); `mllm train NAME` runs it. Their
order is defined by `position` alone. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from mllm.errors import ConfigError

if TYPE_CHECKING:
    from mllm.experiment import Experiment
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from mllm.records.source import DataSource
    from train.data import Collator
    from train.objectives.base import Objective
    from train.run import Run
    from train.sections import StageSection
    from train.trainer import StageTrainer

STAGES = "mllm.stages"  # entry point group

Config = Annotated[Path, typer.Argument(help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it, such as instruct.lr=1e-3.", show_default=False)
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw the stage's run folder away and begin again.")
]

Scores = dict[str, dict[str, float]]  # title -> name -> score


class Stage(ABC):
    """One stage of training; the first line of a subclass's docstring is the help of `mllm train NAME`.

    Attributes:
        name: of the command and of the run folder, `<output>/<experiment>/<name>`.
        position: sort key in `mllm train all`, where each stage starts from the result of the one before.
            None excludes the stage; it starts where the first stage does.
        section: key of its settings in the experiment, a `train.sections.StageSection`.
        keeps_lora: whether `objective` takes a PeftModel, if the start of the experiment has LoRA;
            otherwise LoRA is merged into the weights.
    """

    name: str
    position: ClassVar[float | None] = None
    section: ClassVar[str]
    keeps_lora: ClassVar[bool] = False

    @property
    def summary(self) -> str:
        """A one-line description."""
        return " ".join((inspect.getdoc(self) or self.name).partition("\n\n")[0].split())

    def open(self, experiment: Experiment, restart: bool = False) -> Run:
        """Creates or reopens its run folder; see `train.run.open_run`."""
        from train.run import open_run

        earlier = [stage.name for stage in before(self)]
        return open_run(experiment, self.name, self.section, earlier, restart)

    def settings(self, experiment: Experiment) -> StageSection:
        """Its section of the experiment."""
        return getattr(experiment, self.section)

    def trained_groups(self, settings: StageSection) -> list[str]:
        """The module groups to train, names in `run.MODULE_GROUPS`; the rest stays frozen."""
        return getattr(settings, "train", [])

    @abstractmethod
    def objective(self, run: Run, model: MllmForConditionalGeneration) -> Objective:
        """Wraps the model in the stage's losses.

        `requires_grad` is already set, and torch is seeded with the experiment's seed.
        """

    @abstractmethod
    def collator(self, run: Run, objective: Objective, processor: MllmProcessor) -> Collator:
        """Makes the batches for the objective."""

    def trainer(
        self, run: Run, model: MllmForConditionalGeneration, processor: MllmProcessor
    ) -> StageTrainer:
        """Builds the stage's trainer."""
        from train.trainer import StageTrainer

        objective = self.prepared(run, model)
        return StageTrainer(run, objective, processor, self.collator(run, objective, processor))

    def prepared(self, run: Run, model: MllmForConditionalGeneration) -> Objective:
        """Prepares the model (trained parameters, kernels and so on) and wraps it in the objective."""
        import torch

        from train.lora import plain_model
        from train.run import prepare_model, set_trainable

        set_trainable(plain_model(model), self.trained_groups(run.settings))
        torch.manual_seed(run.experiment.seed)
        objective = self.objective(run, model)
        prepare_model(plain_model(objective.model), run)
        return objective

    def scores(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource
    ) -> Scores:
        """Quick scores of the result on the `val` source, for `mllm train all`."""
        return {}

    def verb(self, train_stages: Callable[..., None]) -> Callable[..., None]:
        """The function behind `mllm train NAME`, with typer's annotations.

        Args:
            train_stages: `train.pipeline.train_stages`.
        """

        def verb(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
            train_stages(config, overrides, [self], restart)

        return verb


@cache
def stages() -> tuple[Stage, ...]:
    """All installed stages: those with a position in order, then the others by name.

    Raises:
        ConfigError: if one cannot be imported, is not a `Stage`, or shares its position with another.
    """
    found = [_load(entry) for entry in {entry.name: entry for entry in entry_points(group=STAGES)}.values()]
    found.sort(key=lambda stage: (stage.position is None, stage.position or 0.0, stage.name))
    for one, other in pairwise(found):
        if one.position is not None and one.position == other.position:
            raise ConfigError(
                f"the stages {one.name} and {other.name} both stand at position {one.position:g}: give one "
                "of them another number"
            )
    return tuple(found)


def route() -> tuple[Stage, ...]:
    """The stages of `mllm train all`, in order."""
    return tuple(stage for stage in stages() if stage.position is not None)


def before(stage: Stage) -> tuple[Stage, ...]:
    """The stages of `mllm train all` before this one; none for a stage without a position."""
    return tuple(
        other
        for other in route()
        if stage.position is not None and other.position is not None and other.position < stage.position
    )


def find_stage(name: str) -> Stage:
    """The installed stage of this name.

    Raises:
        ConfigError: if there is none.
    """
    for stage in stages():
        if stage.name == name:
            return stage
    raise ConfigError(f"no stage is called '{name}': choose from {', '.join(each.name for each in stages())}")


def _load(entry: EntryPoint) -> Stage:
    package = entry.dist.name if entry.dist else "another package"
    try:
        kind: Any = entry.load()
    except Exception as error:
        raise ConfigError(
            f"the stage '{entry.name}' of {package} cannot be imported: {type(error).__name__}: {error}: "
            "mend or uninstall it"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        raise ConfigError(
            f"the stage '{entry.name}' of {package} is {entry.value}, which is not a subclass of "
            "train.stage.Stage: make it one"
        )
    return kind()
