"""More verbs of `mllm index`: list, delete, compact, rebuild, duplicates, calibrate."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.errors import MllmError
from serve.library import (
    DEFAULT_INDEX,
    FilterOption,
    IndexOption,
    JsonOption,
    ModelOption,
    clock,
    index_app,
    load_embedder,
    open_to_search,
    short,
    shown_in,
)

if TYPE_CHECKING:
    from mllm.search.items import Indexed

__all__ = ["index_app"]


@index_app.command("list")
def list_(
    where: FilterOption = None, index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False
) -> None:
    """The recordings in an index, by name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mllm.search.expressions import parse_filters
    from mllm.search.upkeep import list_items

    found = list_items(index, parse_filters(where or []))
    if as_json:
        typer.echo(json.dumps([_as_row(one) for one in found], ensure_ascii=False))
        return
    table = Table("file", "length", "kind", "said", "attributes", box=None, header_style="bold")
    for one in found:
        length = "" if one.duration is None or one.kind == "image" else clock(one.duration, up=True)
        attributes = ", ".join(f"{key}={value}" for key, value in (one.item.attributes or {}).items())
        said = (one.said_by or "").split(" ")[0]
        table.add_row(Text(short(one.item.shown)), length, one.kind or "", said, Text(attributes))
    Console().print(table)


def _as_row(one: Indexed) -> dict[str, Any]:
    item = one.item
    return {
        "item": item.id,
        "name": item.shown,
        "source": item.source,
        "description": item.description,
        "attributes": item.attributes,
        "kind": one.kind,
        "duration": one.duration,
        "said_by": one.said_by,
        "size": one.size,
        "digest": one.digest,
    }


@index_app.command("delete")
def delete(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, names or ids of recordings.", show_default=False),
    ] = None,
    where: FilterOption = None,
    index: IndexOption = DEFAULT_INDEX,
) -> None:
    """Take recordings out of an index; the files themselves stay where they are."""
    from mllm.search import upkeep
    from mllm.search.expressions import parse_filters

    filters = parse_filters(where or [])
    if not names and filters is None:
        raise MllmError("nothing to delete: name recordings, or give --filter")
    deleted = upkeep.delete(index, names or [], filters)
    typer.echo(f"{len(deleted)} recordings removed from {index}")


@index_app.command("compact")
def compact(index: IndexOption = DEFAULT_INDEX) -> None:
    """Join the small files of an index, and drop versions older than an hour."""
    from mllm.search.upkeep import compact_index

    before, after = compact_index(index)
    typer.echo(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after in {index}")


@index_app.command("rebuild")
def rebuild(
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Without recordings that cannot be read again.")
    ] = False,
    features: Annotated[
        Path | None, typer.Option(help="Folder that keeps features of the towers, shared with training.")
    ] = None,
) -> None:
    """Read all recordings of an index again, with this model; transcripts and attributes are kept.

    The index is searched as it was until all is done. What was interrupted goes on where it stopped.
    """
    from rich.console import Console

    from mllm.search.upkeep import list_items, renew

    console = Console()
    list_items(index)  # raises if there is no index, before a model is loaded
    embedder = load_embedder(model, index, features)
    with console.status("reading") as status:
        report = renew(index, embedder, leave_out, shown_in(console, status))
    left_out = f", {len(report.lost)} left out" if report.lost else ""
    console.print(
        f"{len(report.renewed)} recordings read again{left_out} in {index}", soft_wrap=True, highlight=False
    )


@index_app.command("duplicates")
def duplicates(
    index: IndexOption = DEFAULT_INDEX,
    alike: Annotated[float, typer.Option(min=-1, max=1, help="Least cosine of windows that agree.")] = 0.98,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the shorter recording that agrees.")
    ] = 0.6,
    listen: Annotated[
        bool, typer.Option("--listen", help="Read the files and compare their sound: finds any cut.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recordings that are the same: copied, encoded anew, or trimmed by whole windows.

    With --listen, recordings that are trimmed otherwise are found too, if they have sound, and those that are
    only alike to the model are left out.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mllm.search import duplicates as search

    found = search.duplicates(index, alike, share)
    if listen:
        found = search.same_sounds(index, found, share, _passed_over)
    if as_json:
        rows = [
            {
                "first": one.first.id,
                "first_name": one.first.shown,
                "second": one.second.id,
                "second_name": one.second.shown,
                "share": one.share,
                "score": one.score,
                "offset": one.offset,
                "by": one.by,
            }
            for one in found
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    if not found:
        remedy = "" if listen else ": --listen also finds what is trimmed by other than whole windows"
        typer.echo(f"no duplicates in {index}{remedy}")
        return
    table = Table("recording", "the same as", "begins", "share", "score", "by", box=None, header_style="bold")
    for one in found:
        begins = f"{one.offset:+.1f} s" if one.offset else ""
        names = (Text(short(item.shown)) for item in (one.second, one.first))
        table.add_row(*names, begins, f"{one.share:.0%}", f"{one.score:.3f}", one.by)
    Console().print(table)


def _passed_over(name: str, cause: str) -> None:
    typer.echo(f"passed over {short(name)}: {cause}", err=True)


@index_app.command("calibrate")
def calibrate(
    pairs: Annotated[
        Path,
        typer.Argument(help="Records with `captions` of recordings in the index.", show_default=False),
    ],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    picture: Annotated[Path | None, typer.Option(help="Draw reliability into this PNG.")] = None,
) -> None:
    """Measure how sure a search is: afterwards it gives each moment the probability that it is meant.

    The captions must be new to the model. Those of half of the recordings fit the formula, those of the other
    half measure its error.
    """
    from mllm.search import confidence

    opened = open_to_search(model, index)
    sources = {str(item.source) for item in opened.items()}
    captions = _captions(pairs, sources)
    ranked = confidence.ranked(opened.recordings, captions)
    found, bins = confidence.calibrate(ranked, opened.embedder.fingerprint())
    confidence.save_calibration(found, index)
    typer.echo(
        f"{found.queries} queries, {found.right:.1%} right at first; calibration error {found.error:.3f}"
    )
    typer.echo(
        f"confidence = 1 / (1 + exp(-({found.bias:.3f} {found.of_relevance:+.3f} relevance "
        f"{found.of_gap:+.3f} gap)))"
    )
    for mean, share, count in bins:
        typer.echo(f"  {mean:4.0%} sure: {share:4.0%} right of {count}")
    if picture is not None:
        _draw(bins, found.error, picture)
        typer.echo(f"{picture}")


def _captions(pairs: Path, sources: set[str]) -> dict[str, set[str]]:
    """The recordings of the index that each caption of a record file is about."""
    from mllm.records.record import read_records

    captions: dict[str, set[str]] = defaultdict(set)
    for record in read_records(pairs):
        for part in record["messages"].media:
            for texts in record.get("captions", {}).values() if str(part.source) in sources else ():
                for text in texts:
                    captions[text].add(str(part.source))
    if not captions:
        raise MllmError(
            f"{pairs}: no record has captions of a recording in the index: add its recordings first"
        )
    return captions


def _draw(bins: list[tuple[float, float, int]], error: float, path: Path) -> None:
    """A reliability diagram: share of right answers over confidence, dots as large as their bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    confidence, right, counts = zip(*bins, strict=True)
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.scatter(confidence, right, s=[200 * count / max(counts) for count in counts])
    axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1), title=f"error {error:.3f}")
    figure.savefig(path)
