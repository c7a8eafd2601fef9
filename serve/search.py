"""`mllm search`: finds moments of recordings by words, pictures, sounds, clips, and any of them together."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mllm.errors import ConfigError
from mllm.files import open_ordinary
from serve.library import (
    DEFAULT_INDEX,
    FilterOption,
    IndexOption,
    JsonOption,
    ModelOption,
    clock,
    open_to_search,
    short,
)

if TYPE_CHECKING:
    from rich.text import Text

    from mllm.search.fusion import Fusion
    from mllm.search.index import Index
    from mllm.search.moments import Hit, Moment
    from mllm.search.query import Query

SHOWN = 3  # moments of a recording
WIDEST = 60  # characters of a text

WithoutOption = Annotated[
    list[str] | None, typer.Option("--not", metavar="TEXT", help="What is not meant; repeatable.")
]
LikeOption = Annotated[
    str | None,
    typer.Option(metavar="NAME[@MM:SS]", help="More like a recording of the index, or like this moment."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="text=1,image=0.5,said=2",
        help="Of parts that are given, of --not (without=0.5), and of channels.",
    ),
]
ChannelsOption = Annotated[
    str | None,
    typer.Option("--in", metavar="seen,heard,said,written", help="Where to look. Default: everywhere."),
]
FusionOption = Annotated[
    str, typer.Option("--fuse", help="Order moments of all channels by evidence, or by ranks.")
]
ModalityOption = Annotated[
    str | None, typer.Option(help="Compare with video, audio, both or image rows alone.")
]
ThresholdOption = Annotated[
    float | None, typer.Option(help="Least score of what is seen and heard, -1 to 1.")
]


def search(
    text: Annotated[
        str | None, typer.Argument(help="What is seen, heard, said or written, in words.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(help="What it looks like.")] = None,
    audio: Annotated[Path | None, typer.Option(help="What it sounds like.")] = None,
    video: Annotated[Path | None, typer.Option(help="What it looks and sounds like.")] = None,
    like: LikeOption = None,
    without: WithoutOption = None,
    weights: WeightsOption = None,
    channels: ChannelsOption = None,
    fusion: FusionOption = "evidence",
    modality: ModalityOption = None,
    where: FilterOption = None,
    threshold: ThresholdOption = None,
    group: Annotated[bool, typer.Option(help="By recording; else moments, best first.")] = True,
    k: Annotated[int, typer.Option("-k", min=1, help="How many recordings, or moments.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Leave out this many of the best.")] = 0,
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find moments of recordings by words, a picture, a sound, a clip, or any of them together.

    Words are compared with what is seen and heard, and with the words that are said and written. Moments are
    ordered by how far they stand out in any of these. The score is that of what is seen and heard.
    """
    from rich.console import Console

    from mllm.search.expressions import parse_filters
    from mllm.search.query import CHANNELS, Query, check_modality

    check_modality(modality)
    asked = functools.partial(
        Query,
        text,
        image,
        audio,
        video,
        without=tuple(without or ()),
        weights=_weights(weights),
        channels=tuple(channels.replace(" ", "").split(",")) if channels else CHANNELS,
        fusion=cast("Fusion", fusion),
        modality=modality,
        filters=parse_filters(where or []),
        threshold=threshold,
    )
    media = [path for path in (image, audio, video) if path is not None]
    for path in media:
        open_ordinary(path).close()  # before a model is loaded
    query = asked() if like is None else None  # likewise
    opened = open_to_search(model, index, whole=bool(media))
    query = query or asked(**_alike(opened, str(like)))
    found = opened.recordings(query, k, offset) if group else _alone(opened.moments(query, k, offset))
    if as_json:
        typer.echo(json.dumps([as_row(one) for moments in found for one in moments], ensure_ascii=False))
    elif found:
        Console().print(_table(found))
    else:
        typer.echo(_nothing(query, offset, index))


def _alone(moments: Sequence[Moment]) -> list[list[Moment]]:
    return [[moment] for moment in moments]


def _nothing(query: Query, offset: int, index: Path) -> str:
    such = (f"with {query.modality} " if query.modality else "") + ("after these " if offset else "")
    such += "that the filter lets through " if query.filters else ""
    return f"nothing {such}in index {index}"


def _alike(index: Index, words: str) -> dict[str, Any]:
    """The parts of a query for more like an item that --like names, or like its windows around a time."""
    from mllm.search.expressions import parse_clock

    name, at, time = words.rpartition("@")
    seconds = parse_clock(time) if at else None
    if seconds is None:
        name = words
    item = index.item(name)
    span = () if seconds is None else (seconds, seconds)
    return {"like": index.vector_of(str(item.id), *span), "excluded": item.id}


def _weights(words: str | None) -> dict[str, float]:
    found = {}
    for word in filter(None, (words or "").split(",")):
        name, _, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"--weights '{word}' is no weight: write text=1,image=0.5") from None
    return found


def as_row(moment: Moment) -> dict[str, Any]:
    """A moment as JSON."""
    item = moment.item
    return {
        "item": item.id,
        "name": item.shown,
        "source": item.source,
        "attributes": item.attributes,
        "modality": moment.matches[0].modality,
        "start": moment.start,
        "end": moment.end,
        "score": moment.score,
        "relevance": moment.relevance,
        "confidence": moment.confidence,
        "matches": [_match(hit) for hit in moment.matches],
    }


def _match(hit: Hit) -> dict[str, Any]:
    found: dict[str, Any] = {
        "modality": hit.modality,
        "start": hit.start,
        "end": hit.end,
        "score": hit.score,
    }
    if hit.text:
        found |= {"text": hit.text, "words": [word._asdict() for word in hit.words]}
    return found


def _table(found: Sequence[Sequence[Moment]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    texts = any(hit.text for moments in found for moment in moments[:SHOWN] for hit in moment.matches)
    sure = any(moment.confidence is not None for moments in found for moment in moments)
    table = Table("file", "time", "found in", "score", box=None, header_style="bold")
    table.columns[3].justify = "right"
    if sure:
        table.add_column("sure", justify="right")
    if texts:
        table.add_column("words")
    for moments in found:
        for number, moment in enumerate(moments[:SHOWN]):
            time = "" if moment.is_still else f"{clock(moment.start)}–{clock(moment.end, up=True)}"
            cells: list[str | Text] = [Text(short(moment.item.shown) if number == 0 else ""), time]
            cells.append(_found_in(moment))
            cells.append("" if moment.score is None else f"{moment.score:.3f}")
            if sure:
                cells.append("" if moment.confidence is None else f"{moment.confidence:.0%}")
            if texts:
                cells.append(_excerpt(moment))
            table.add_row(*cells)
    return table


def _found_in(moment: Moment) -> str:
    """Where it was found: the windows that fit best, and the texts."""
    windows = [hit.modality for hit in moment.matches if not hit.text]
    found = [hit.modality for hit in moment.matches if hit.text or hit.modality == windows[0]]
    return ", ".join("video+audio" if one == "both" else one for one in found)


def _excerpt(moment: Moment) -> Text:
    """The text that was found, around its first word that was asked for, with those words in bold."""
    from rich.text import Text

    hit = next((hit for hit in moment.matches if hit.text), None)
    if hit is None:
        return Text()
    whole = " ".join(hit.text.split())
    words = list(dict.fromkeys(word.text for word in hit.words))
    first = max(0, whole.find(words[0])) if words else 0
    begin = 0 if first < WIDEST // 2 else whole.rfind(" ", 0, first - WIDEST // 4) + 1
    cut = whole[begin : begin + WIDEST]
    text = Text(("…" if begin else "") + cut + ("…" if begin + WIDEST < len(whole) else ""))
    text.highlight_words(words, "bold")
    return text
