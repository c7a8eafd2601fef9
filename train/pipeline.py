"""The way through an experiment's stages: where each starts, how it runs, what is reported of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mllm.command.cli import before_torch
from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from train.stage import Scores, Stage, before

if TYPE_CHECKING:
    from mllm.experiment import Experiment
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor
    from mllm.records.source import DataSource

TOKENIZER_SCENES = 3000  # whose texts a new tokenizer is trained on


def train_stages(
    config: Path,
    overrides: Sequence[str] | None,
    stages: Sequence[Stage],
    restart: bool = False,
    validate: bool = False,
) -> None:
    """Runs the stages that have steps, in the order given; Ctrl-C ends the process with status 130."""
    before_torch()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data workers are forked
    experiment = load_experiment(config, overrides or [])
    try:
        for stage in stages:
            if stage.settings(experiment).steps:
                run_stage(experiment, stage, restart, validate)
            elif len(stages) == 1:
                print(f"{stage.name}: nothing to do, {stage.section}.steps is 0")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None


def run_stage(experiment: Experiment, stage: Stage, restart: bool = False, validate: bool = False) -> None:
    """Runs one stage to its end, or leaves it if it has finished.

    Args:
        restart: throw its run folder away first.
        validate: score its result, too.

    Raises:
        ConfigError: if its run folder was made with other settings.
    """
    import torch

    if threads := stage.settings(experiment).num_threads:
        torch.set_num_threads(threads)
    first, turn = _first_process()
    with turn():
        run = stage.open(experiment, restart and first)
        if run.finished:
            print(f"{stage.name}: finished already, {run.final}")
            return
        if first:
            for line in run.passed_over:
                print(f"{stage.name}: {line}, so it is passed over")
            if run.resume:
                print(f"{stage.name}: goes on from {run.resume.name}")
            elif run.passed_over:
                print(f"{stage.name}: no checkpoint is whole, so it begins again")
        model, processor = starting_point(experiment, stage, run.folder)
    began = time.monotonic()
    result = stage.trainer(run, model, processor).run_stage()
    if first:
        print(f"{stage.name}: {result} after {(time.monotonic() - began) / 60:.1f} minutes")
        if validate:
            report(experiment, stage, run.folder)


def _first_process() -> tuple[bool, Callable[[], AbstractContextManager[None]]]:
    """Whether this process writes, and a context in which it goes first; torchrun starts several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True, nullcontext
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.is_main_process, state.main_process_first


def starting_point(
    experiment: Experiment, stage: Stage, folder: Path
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """The result of the stage before; where every one before is switched off, `start` or a new model.

    Raises:
        ConfigError: if the stage before has not finished.
    """
    from transformers import set_seed

    from mllm.models.checkpoint import build_model, load, save
    from mllm.records.source import open_source
    from train.run import stage_folder

    set_seed(experiment.seed)
    for earlier in reversed(before(stage)):
        final = stage_folder(experiment, earlier.name) / "final"
        if final.is_dir():
            return load(final)
        if earlier.settings(experiment).steps:
            raise ConfigError(
                f"the stage {earlier.name} comes before {stage.name} and has not finished ({final} is "
                f"missing): run `mllm train {earlier.name}`, or leave it out with {earlier.section}.steps=0"
            )
    if experiment.start is not None:
        return load(experiment.start)
    start = folder / "start"
    if start.is_dir():
        return load(start)
    texts = None
    if not isinstance(experiment.model.decoder, str):
        texts = list(source_texts(open_source(experiment.data.train), TOKENIZER_SCENES))
    model, processor = build_model(experiment.model, texts)
    if texts is not None:
        save(model, processor, start)  # a resumed run needs this very tokenizer and these very weights
    return model, processor


def source_texts(source: DataSource, scenes: int) -> Iterator[str]:
    """Every text of the first scenes, without the media."""
    for index in range(min(len(source), scenes)):
        for messages in source.text(index):
            for message in messages:
                content = message["content"]
                yield (
                    content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                )


def report(experiment: Experiment, stage: Stage, folder: Path) -> Scores:
    """Quick scores of a finished stage on the `val` source, printed and written to validation.json."""
    from mllm.files import write_atomically
    from mllm.models.checkpoint import load
    from mllm.records.shards import require_windows
    from mllm.records.source import open_source

    model, processor = load(folder / "final")
    source = open_source(experiment.data.val)
    require_windows(source, processor.spec)
    scores = stage.scores(model, processor, source)
    for title, values in scores.items():
        print(f"{stage.name}: {title}: " + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    write_atomically(folder / "validation.json", json.dumps(scores, indent=1))
    return scores
