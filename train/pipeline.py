"""Runs an experiment's stages: the starting point, training and scores of each."""

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

TOKENIZER_SCENES = 3000  # on whose texts a new tokenizer is trained


def train_stages(
    config: Path,
    overrides: Sequence[str] | None,
    stages: Sequence[Stage],
    restart: bool = False,
    validate: bool = False,
) -> None:
    """Runs the given stages in order, except those without steps; Ctrl-C exits with status 130."""
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
    """Runs one stage to its end, unless it has finished already.

    Args:
        restart: delete its run folder first.
        validate: also score its result.

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
    """Whether this is the main process, and a context in which the main process runs first."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True, nullcontext
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.is_main_process, state.main_process_first


def starting_point(
    experiment: Experiment, stage: Stage, folder: Path
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """Loads the result of the stage before; if all stages before are switched off, `start` or a new model.

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
        return load(experiment.start, merge=not stage.keeps_lora)
    start = folder / "start"
    if start.is_dir():
        return load(start)
    texts = None
    if not isinstance(experiment.model.decoder, str):
        texts = list(source_texts(open_source(experiment.data.train), TOKENIZER_SCENES))
    model, processor = build_model(experiment.model, texts)
    if texts is not None:
        save(model, processor, start)  # a resumed run needs the same tokenizer and weights
    return model, processor


def source_texts(source: DataSource, scenes: int) -> Iterator[str]:
    """Yields the texts of the first scenes, without media."""
    for index in range(min(len(source), scenes)):
        for messages in source.text(index):
            for message in messages:
                content = message["content"]
                yield (
                    content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                )


def report(experiment: Experiment, stage: Stage, folder: Path) -> Scores:
    """Prints quick scores of a finished stage on the `val` source and writes them to validation.json."""
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
