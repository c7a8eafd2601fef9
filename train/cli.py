"""`mllm train`: the stages of an experiment, one by one or all in order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mllm.experiment import Experiment

app = typer.Typer(
    no_args_is_help=True, help="Train: stage by stage, or all in order. Stopped runs go on where they were."
)

Config = Annotated[Path, typer.Argument(help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it, such as instruct.lr=1e-3.", show_default=False)
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw the stage's run folder away and begin again.")
]

TOKENIZER_SCENES = 3000  # whose texts a new tokenizer is trained on


@app.command()
def text(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
    """Stage 0: a decoder that starts from nothing learns to tell and to answer, from text."""
    _run(config, overrides, restart, ["text"])


@app.command()
def contrastive(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
    """Stage 1: adapters and shared space, by InfoNCE and a caption loss."""
    _run(config, overrides, restart, ["contrastive"])


@app.command()
def instruct(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
    """Stage 2: instruction tuning with LoRA."""
    _run(config, overrides, restart, ["instruct"])


@app.command(name="all")
def all_stages(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
    """Every stage with steps > 0 in order, skipping finished ones, with quick scores after each."""
    _run(config, overrides, restart, ["text", "contrastive", "instruct"], validate=True)


@app.command()
def classifier(
    config: Config,
    overrides: Overrides = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Random weights, not those of the experiment's start.")
    ] = False,
) -> None:
    """A plain classifier of sounds on the same data, as a yardstick: the audio tower and a linear layer."""
    _before_torch()
    import shutil

    import torch

    from mllm.experiment import load_experiment
    from mllm.models.towers import find_tower
    from train.classifier import train
    from train.run import stage_folder

    experiment = load_experiment(config, overrides or [])
    folder = stage_folder(experiment, "classifier-from-scratch" if from_scratch else "classifier")
    shutil.rmtree(folder, ignore_errors=True)  # it takes minutes, and does not go on where it was
    model, processor = starting_point(experiment, "text", folder)
    if from_scratch:
        tower = model.config.sides["audio"].tower
        model.model.audio_tower = find_tower(tower.model_type)(tower, model.config.window)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = train(experiment, model, processor, folder)
    print(
        f"{scores['accuracy']:.3f} of {scores['recordings']} recordings right (majority "
        f"{scores['majority']:.3f}), {len(scores['labels'])} labels, {scores['seconds']:.0f} s of training; "
        f"{folder / 'metrics.json'}"
    )


@app.command(name="probe")
def probe_command(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint or run folder.")],
    train: Annotated[str, typer.Option(help="Source to fit the probe on.")] = "world:train",
    val: Annotated[str, typer.Option(help="Source to score it on.")] = "world:val",
    clips: Annotated[
        int, typer.Option(help="Single-shape clips to fit on; a quarter as many to score.")
    ] = 1000,
) -> None:
    """What a linear map can read from the Q-Former's outputs: colour, shape, motion."""
    from mllm.models.checkpoint import load
    from mllm.records.source import open_source
    from train.probe import probe

    model, processor = load(checkpoint)
    for name, (accuracy, majority) in probe(
        model, processor, open_source(train), open_source(val), clips
    ).items():
        print(f"{name:8} {accuracy:.3f}   majority {majority:.3f}")


@app.command(name="views")
def views_command(
    config: Annotated[Path, typer.Argument(help="Experiment whose data.augment is drawn.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=value")] = None,
    out: Annotated[Path, typer.Option(help="Where the picture goes (PNG).")] = Path("views.png"),
    scene: Annotated[int, typer.Option(min=0, help="Which scene of data.train.")] = 0,
) -> None:
    """Draw a recording of data.train before and after each augmentation, at its strongest."""
    from mllm.errors import ConfigError
    from mllm.experiment import Augment, load_experiment
    from mllm.models.build import window_spec
    from mllm.models.checkpoint import load_processor
    from mllm.records.source import open_source
    from train.augment_sheet import draw_views, open_scene

    experiment = load_experiment(config, overrides or [])
    settings, start = experiment.data.augment, experiment.start
    if settings in (None, Augment()):
        raise ConfigError(f"{config}: data.augment is null: set some of it, data.augment.crop=0.2 for one")
    spec = window_spec(experiment.model) if start is None else load_processor(start).spec
    draw_views(open_scene(open_source(experiment.data.train), scene, spec), settings, out)
    print(out)


def _before_torch() -> None:
    """Settings that are read once, when torch is first imported."""
    import os

    from mllm.command.cli import before_torch

    before_torch()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data workers are forked


def _run(
    config: Path, overrides: list[str] | None, restart: bool, stages: list[str], validate: bool = False
) -> None:
    _before_torch()
    from mllm.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    try:
        for stage in stages:
            if getattr(experiment, stage).steps:
                run_stage(experiment, stage, restart, validate)
            elif len(stages) == 1:
                print(f"{stage}: nothing to do, {stage}.steps is 0")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None


def run_stage(experiment: Experiment, stage: str, restart: bool = False, validate: bool = False) -> Path:
    """One stage to its end; returns the folder of its result.

    Raises:
        ConfigError: if its run folder was made with other settings.
    """
    import importlib

    import torch

    from train.run import open_run

    threads = getattr(experiment, stage).num_threads
    if threads:
        torch.set_num_threads(threads)
    first, turn = _first_process()
    with turn():
        run = open_run(experiment, stage, restart and first)
        if run.finished:
            print(f"{stage}: finished already, {run.final}")
            return run.final
        if first:
            for line in run.passed_over:
                print(f"{stage}: {line}, so it is passed over")
            if run.resume:
                print(f"{stage}: goes on from {run.resume.name}")
            elif run.passed_over:
                print(f"{stage}: no checkpoint is whole, so it begins again")
        model, processor = starting_point(experiment, stage, run.folder)
    began = time.monotonic()
    final = importlib.import_module(f"train.{stage}").train(run, model, processor)
    if first:
        print(f"{stage}: {final} after {(time.monotonic() - began) / 60:.1f} minutes")
        if validate:
            report(experiment, stage, run.folder)
    return final


def _first_process() -> tuple[bool, Any]:
    """Whether this process writes, and a context in which it goes first; torchrun starts several."""
    import os
    from contextlib import nullcontext

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True, nullcontext
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.is_main_process, state.main_process_first


def starting_point(experiment: Experiment, stage: str, folder: Path) -> tuple[Any, Any]:
    """The previous stage's result; where every stage before is switched off, `start` or a new model.

    Raises:
        ConfigError: if the stage before has not finished.
    """
    from transformers import set_seed

    from mllm.errors import ConfigError
    from mllm.models.checkpoint import build_model, load, save
    from mllm.records.source import open_source
    from train.run import STAGES, stage_folder

    set_seed(experiment.seed)
    for earlier in reversed(STAGES[: STAGES.index(stage)]):
        final = stage_folder(experiment, earlier) / "final"
        if final.is_dir():
            return load(final)
        if getattr(experiment, earlier).steps:
            raise ConfigError(
                f"the stage {earlier} comes before {stage} and has not finished ({final} is missing): run "
                f"`mllm train {earlier}`, or leave it out with {earlier}.steps=0"
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


def source_texts(source: Any, scenes: int):
    """Every text of the first scenes, without the media."""
    for index in range(min(len(source), scenes)):
        for messages in source.text(index):
            for message in messages:
                content = message["content"]
                yield (
                    content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                )


def report(experiment: Experiment, stage: str, folder: Path) -> dict[str, Any]:
    """Quick scores of a finished stage on the `val` source, printed and written to validation.json."""
    from mllm.files import write_atomically
    from mllm.models.checkpoint import load
    from mllm.records.shards import require_windows
    from mllm.records.source import open_source
    from train import validate

    model, processor = load(folder / "final")
    source = open_source(experiment.data.val)
    require_windows(source, processor.spec)
    scores: dict[str, Any] = {}
    if stage != "instruct" and (told := validate.text_answers(model, processor, source)):
        scores["answers of 64 scenes told as text"] = told
    if stage != "text" and model.config.space_config is not None:
        scores["R@1 of 256"] = validate.retrieval(model, processor, source)
    if stage == "instruct":
        scores["answers of 64 clips"] = validate.answers(model, processor, source)
    for title, values in scores.items():
        print(f"{stage}: {title}: " + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    write_atomically(folder / "validation.json", json.dumps(scores, indent=1))
    return scores
