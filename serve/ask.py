"""`mllm ask`: finds the moments of an index that fit a question best, asks about them, and names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.errors import MediaError, MllmError
from serve.library import DEFAULT_INDEX, FilterOption, IndexOption, ModelOption, clock, open_to_search, short

if TYPE_CHECKING:
    from mllm.search.index import Index
    from mllm.search.moments import Moment

FRAME_RATE = 8.0  # of the pieces that go to a server
LONGEST = 30.0  # s of a moment that are looked at


def ask(
    question: Annotated[str, typer.Argument(help="About your recordings, in words.", show_default=False)],
    where: FilterOption = None,
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    url: Annotated[str | None, typer.Option(help="Let this OpenAI-compatible server answer.")] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name at --url. Default: its first.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many moments are looked at.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
) -> None:
    """Ask about the recordings in an index: the moments that fit the question best, found by search.

    The model that filled the index answers, or --url. It gets the moments and what is said in them, if the
    index has that (mllm index add --transcribe). They are listed after the answer.
    """
    from rich.console import Console

    from mllm.records.answers import Generation
    from mllm.search.expressions import parse_filters
    from mllm.search.index import filled_by
    from mllm.search.query import Query
    from serve.chat import make_backend, print_answer

    if not question.strip():
        raise MllmError("nothing is asked: give a question in words")
    opened = open_to_search(model, index)
    found = opened.moments(Query(question, filters=parse_filters(where or [])), top)
    if not found:
        raise MllmError(f"nothing in index {index} that could answer: mllm index add DIR --index {index}")
    moments = [_shortened(moment) for moment in found]
    content = [part for moment in moments for part in _parts(opened, moment, whole=url is None)]
    checkpoint = None if url else model or filled_by(index)
    backend = make_backend(checkpoint, url, served_model, Generation(max_tokens=max_tokens))
    print_answer(backend, [{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
    console = Console(highlight=False)
    for line in sources(moments):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def sources(moments: Sequence[Moment]) -> list[str]:
    """One line a moment: [clips/talk.mp4 01:02–01:04]."""
    return [
        f"[{short(moment.item.shown)}]"
        if moment.is_still
        else f"[{short(moment.item.shown)} {clock(moment.start)}–{clock(moment.end, up=True)}]"
        for moment in moments
    ]


def _shortened(moment: Moment) -> Moment:
    """A moment, or what of a long one is around its best match."""
    best = moment.matches[0]
    start = max(moment.start, min((best.start + best.end - LONGEST) / 2, moment.end - LONGEST))
    if moment.end - moment.start <= LONGEST:
        return moment
    return replace(moment, start=start, end=min(moment.end, start + LONGEST))


def _parts(index: Index, moment: Moment, whole: bool) -> list[dict[str, Any]]:
    """A moment as parts of a message: the recording, and what is said in it.

    Args:
        whole: name the file and the times, for an answerer in this process; else hold the moment alone.

    Raises:
        MediaError: if its file is gone, or cannot be read.
    """
    from mllm.records.templates import subtitle_block

    path, start, end = moment.item.path, moment.start, moment.end
    if path is None or not path.exists():
        raise MediaError(
            f"{moment.item.shown} is in the index but not there: mllm index add --prune its folder"
        )
    kind = index.kind(moment)
    if kind == "image":
        return [{"type": kind, kind: str(path)}]
    if whole:
        media = {"type": kind, kind: str(path), "start": start, "end": end}
    else:
        media = {"type": kind, kind: cut(path, start, end, kind == "video")}
    said = subtitle_block(
        {"text": line.text, "start": max(0.0, line.start - start)} for line in index.said(moment)
    )
    return [media, {"type": "text", "text": said}] if said else [media]


def cut(path: Path, start: float, end: float, picture: bool = True) -> bytes:
    """A piece of a recording as an mp4 file, with what it has of picture and sound.

    Raises:
        MediaError: if it cannot be read.
    """
    import numpy as np

    from mllm.media.recording import load_clip
    from serve.mp4 import write_mp4

    def frames(duration: float) -> np.ndarray:
        return np.arange(0, max(duration, 1 / FRAME_RATE), 1 / FRAME_RATE)

    clip = load_clip(path, start=start, end=end, choose=frames, want_video=picture, isolated=True)
    return write_mp4(clip.frames, FRAME_RATE, clip.waveform)
