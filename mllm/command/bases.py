"""`mllm bases`: the pretrained models that checkpoints stand on."""

from __future__ import annotations

from typing import Annotated

import typer

from mllm.errors import ConfigError, MllmError
from mllm.models.bases import BASES, check, fetch, locate, unknown

app = typer.Typer(add_completion=False)

Names = Annotated[list[str] | None, typer.Argument(help="Bases; all of them if none is named.")]


@app.command("list")
def list_() -> None:
    """List the bases, and which of them are there."""
    rows = [("NAME", "STATE", "DOWNLOAD", "LICENCE", "WHAT")]
    for name, base in BASES.items():
        rows.append((name, _state(name), f"{base.download / 1e6:.0f} MB", base.licence, base.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _state(name: str) -> str:
    folder = locate(name)
    if folder is None:
        return "not there"
    try:
        check(name, folder)
    except MllmError:
        return "damaged"
    return "there"


@app.command("fetch")
def fetch_(names: Names = None) -> None:
    """Fetch bases that are not there, and damaged ones again."""
    for name in _known(names):
        print(f"{name}  {fetch(name)}")


@app.command()
def verify(names: Names = None) -> None:
    """Hash the files of the bases that are there, and compare."""
    problems = []
    for name in _known(names):
        folder = locate(name)
        if folder is None:
            if names:
                problems.append(f"the base {name} is not there: run `mllm bases fetch {name}`")
            continue
        try:
            check(name, folder)
        except MllmError as error:
            problems.append(str(error))
        else:
            print(f"{name}  {folder}  as converted")
    if problems:
        raise MllmError("; ".join(problems))


def _known(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in BASES:
            raise ConfigError(unknown(name))
    return names or list(BASES)
