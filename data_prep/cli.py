"""`mllm data …`: makes and shows data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.show import show
from mllm.errors import MllmError

app = typer.Typer(help="Make and look at data.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Make and look at data."""


app.command()(show)


@app.command()
def world(
    out: Annotated[
        Path | None, typer.Option(help="New folder for clips/, records.jsonl and pairs.jsonl.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 1000,
    split: Annotated[str, typer.Option(help="train, val or comp (combinations never trained).")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    questions: Annotated[int, typer.Option(min=1, help="Most questions about a scene.")] = 4,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core unless given.")
    ] = None,
    array_speed: Annotated[
        bool, typer.Option("--array-speed", help="Only measure clips per second.")
    ] = False,
    balance: Annotated[bool, typer.Option("--balance", help="Only count questions and answers.")] = False,
) -> None:
    """Write a generated world of moving shapes and sounds, with questions about it, as media files."""
    from data_prep.world.source import WorldSource

    source = WorldSource(split, seed=seed, clips=clips, questions_per_clip=questions)
    if array_speed:
        _print_speed(source)
    if balance:
        _print_balance(source)
    if out is not None:
        _write(source, out, workers)
    elif not (array_speed or balance):
        raise MllmError("no folder to write to: add --out DIR")


def _write(source, out: Path, workers: int | None) -> None:
    from rich.progress import track

    from data_prep.world.write import write_world

    def progress(scenes):
        return track(scenes, description=f"Writing {source.name}", total=len(source))

    written = write_world(out, source, workers=workers, progress=progress)
    typer.echo(f"{written.recordings} recordings and {written.records} questions in {out}")


def _print_speed(source) -> None:
    """Clips per second as arrays, in one process, after a first pass that fills the voice bank."""
    import time

    clips = range(len(source))
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        for index in clips:
            source.conversations(index)
        rates.append(len(clips) / (time.perf_counter() - start))
    typer.echo(f"{rates[1]:.0f} clips/s as arrays in one process ({rates[0]:.0f} while the voices were made)")


def _print_balance(source) -> None:
    from rich.console import Console
    from rich.table import Table

    from data_prep.world.balance import balance_table

    table = Table("type", "questions", "share", "answers", "majority", "limit", "commonest answer")
    for row in balance_table(source):
        limit = "" if row.limit is None else f"{row.limit:.3f}"
        cells = (f"{row.questions}", f"{row.share:.3f}", f"{row.answers}", f"{row.majority:.3f}", limit)
        table.add_row(row.type, *cells, row.commonest)
    Console(width=None).print(table)
