"""`mllm train`: runs the stages of an experiment, one or all in order, and inspects their data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from train.stage import Config, Overrides, Restart, route, stages

app = typer.Typer(
    no_args_is_help=True, help="Train: stage by stage, or all in order. Stopped runs go on where they were."
)


def _train(*arguments: Any, **options: Any) -> None:
    from train.pipeline import train_stages

    train_stages(*arguments, **options)


for _stage in route():
    app.command(_stage.name, help=_stage.summary)(_stage.verb(_train))


@app.command(name="all")
def all_stages(config: Config, overrides: Overrides = None, restart: Restart = False) -> None:
    """Every stage with steps > 0 in order, skipping finished ones, with quick scores after each."""
    _train(config, overrides, route(), restart, validate=True)


for _stage in stages():
    if _stage.position is None:
        app.command(_stage.name, help=_stage.summary)(_stage.verb(_train))


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
