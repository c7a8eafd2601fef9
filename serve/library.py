"""`mllm index`: index recordings, so that `mllm search` finds them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.status import Status

    from mllm.models.transcriber import Transcriber
    from mllm.search.embedder import Embedder
    from mllm.search.index import Index

index_app = typer.Typer(no_args_is_help=True, help="Index recordings for search.")

# mllm.search.index.DEFAULT_FOLDER, without loading the store for `--help`
DEFAULT_INDEX = Path(".mllm/index")

IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Checkpoint folder or hub id. Default: the model that filled the index, or ours."
    ),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only recordings with this attribute, duration or modality, and moments by start and end; with "
        "!=, <, <=, >, >=, in (…), and, or, brackets; or OpenAI's filter in JSON. Repeatable: all must hold.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@index_app.command("add")
def add(
    paths: Annotated[list[Path], typer.Argument(help="Media files, or folders of them.", show_default=False)],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    rebuild: Annotated[
        bool, typer.Option(help="Empty the index first and stamp it with this model.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Remove what is gone from these folders.")] = False,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Attribute of all of them; repeatable.")
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            help="Table (.jsonl or .csv): columns `file`, `name`, `description` (optional), and any others."
        ),
    ] = None,
    transcribe: Annotated[
        bool, typer.Option("--transcribe", help="Listen to what is said, where no subtitles say it.")
    ] = False,
    transcriber: Annotated[
        str, typer.Option(help="A base, a hub id or a folder of Whisper, for --transcribe.")
    ] = "whisper-base",
    features: Annotated[
        Path | None, typer.Option(help="Folder that keeps features of the towers, shared with training.")
    ] = None,
) -> None:
    """Add recordings; what is in the index already, unchanged, is skipped, also if it has moved.

    Attributes are what `mllm search --filter` filters by. Given ones replace those a recording had; added
    again without any, it keeps its own. Names and descriptions are found by their words, and so are subtitles
    beside a recording (talk.srt, talk.vtt, talk.en.srt) and, with --transcribe, what is said in the others.

    A file that cannot be read costs one line and no more; the exit status is 1 only if every file failed.
    """
    from rich.console import Console
    from rich.markup import escape

    from mllm.search.index import Index
    from serve.attributes import Attributes

    console = Console()
    table = Attributes(attributes, attribute or [])
    opened = Index.open(index, load_embedder(model, None if rebuild else index, features), rebuild=rebuild)
    with console.status("reading") as status:
        listener = _transcriber(transcriber) if transcribe else None
        report = opened.add(paths, prune, shown_in(console, status), table.item, listener)
    for file in table.unused():
        line = f"[yellow]passed over[/] {escape(f'{attributes}: {file} is not among what was added')}"
        console.print(line, soft_wrap=True)
    console.print(f"{report.line()} in {index}", soft_wrap=True, highlight=False)
    if not (report.added or report.unchanged or report.updated or report.failed or report.pruned):
        console.print("no media file found there")
    elif report.added:
        flag = "" if index == DEFAULT_INDEX else f" --index {index}"
        console.print(f'next: mllm search "what you look for"{flag}', highlight=False, soft_wrap=True)
    if report.failed and not (report.added or report.unchanged or report.updated):
        raise typer.Exit(1)


def shown_in(console: Console, status: Status) -> Callable[[str, str], None]:
    """A `progress` of `Index.add` that shows what is done, and prints a line for what goes wrong."""
    from rich.markup import escape

    def progress(name: str, became: str) -> None:
        what, _, cause = became.partition(": ")
        if what == "failed":
            console.print(f"[red]failed[/] {escape(cause)}", soft_wrap=True)
        elif what == "passed over":
            console.print(f"[yellow]passed over[/] {escape(f'{name}: {cause}')}", soft_wrap=True)
        status.update(f"{became} {escape(name)}")

    return progress


@index_app.command("stats")
@index_app.command("info", hidden=True)
def info(index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False) -> None:
    """What an index holds and which model filled it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mllm.search.index import describe

    found = describe(index)
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str))
        return
    table = Table(show_header=False, box=None)
    attributes = ", ".join(f"{key} ({' or '.join(kinds)})" for key, kinds in found.attributes.items())
    said = ", ".join(f"{count} by {source or 'nobody'}" for source, count in sorted(found.said.items()))
    texts = ", ".join(f"{count} {modality}" for modality, count in found.texts.items() if count) or "none"
    rows = ", ".join(f"{count} {modality}" for modality, count in found.rows.items() if count) or "none"
    for name, value in (
        ("folder", str(found.folder)),
        ("model", f"{found.model} ({found.stamp[:12]})"),
        ("created", found.created),
        ("recordings", f"{found.recordings}, {found.seconds:.0f} s in all"),
        ("rows", f"{rows}; {found.dim} numbers each"),
        ("texts", f"{texts}; heard {said}" if said else texts),
        ("attributes", attributes or "none"),
    ):
        table.add_row(f"[bold]{name}", Text(value))
    Console().print(table)


def clock(seconds: float, up: bool = False) -> str:
    """Formats seconds as mm:ss, rounded down, or up for the end of a span."""
    whole = int(-(-seconds // 1)) if up else int(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def load_embedder(model: str | None, index: Path | None, features: Path | None = None) -> Embedder:
    """Loads the given model, or else the one that filled the index, or else the shipped one."""
    from mllm.search.embedder import Embedder
    from mllm.search.index import exists, filled_by

    if model is None and index is not None and exists(index):
        model = filled_by(index)
    return Embedder.from_pretrained(model, features=features)


def _transcriber(name: str) -> Transcriber:
    from mllm.models.transcriber import Transcriber

    return Transcriber.from_pretrained(name)


def open_to_search(model: str | None, index: Path, whole: bool = False) -> Index:
    """Opens the index with just the text encoder of its model if possible, since torch is slow to import.

    Args:
        whole: the query has recordings or pictures, which need the whole model.
    """
    from mllm.errors import ConfigError
    from mllm.search.index import Index, filled_by
    from mllm.search.text_embedder import TextEmbedder

    found = filled_by(index)  # raises if there is no index, before a model is loaded
    if whole:
        return Index.open(index, load_embedder(model, index), create=False)
    folder = model or found
    if folder is None:
        from mllm.models.checkpoint import find_shipped

        folder = str(find_shipped())
    text_embedder = TextEmbedder.from_pretrained(folder)
    if text_embedder is not None:
        with suppress(ConfigError):  # on a mismatch the full model decides
            return Index.open(index, cast("Embedder", text_embedder), create=False)  # embeds text only
    return Index.open(index, load_embedder(model, index), create=False)


def short(path: str) -> str:
    """A path relative to the working folder if it is below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
