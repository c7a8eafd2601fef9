"""`mllm ask`: finds the moments of an index that fit a question best, asks about them, and names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.errors import MediaError, MllmError
from serve.library import DEFAULT_INDEX, FilterOption, IndexOption, ModelOption, clock, open_to_search, short

if TYPE_CHECKING:
    from mllm.search.index import Hit

FRAME_RATE = 8.0  # of the pieces that go to a server


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

    They are listed after the answer. The model that filled the index answers, or --url.
    """
    from rich.console import Console

    from mllm.records.answers import Generation
    from mllm.search.expressions import parse_filters
    from mllm.search.index import filled_by
    from serve.chat import make_backend, print_answer

    if not question.strip():
        raise MllmError("nothing is asked: give a question in words")
    hits = open_to_search(model, index).search(question, top, filters=parse_filters(where or []))
    if not hits:
        raise MllmError(f"nothing in index {index} that could answer: mllm index add DIR --index {index}")
    content: list[dict[str, Any]] = [_part(hit, whole=url is None) for hit in hits]
    checkpoint = None if url else model or filled_by(index)
    backend = make_backend(checkpoint, url, served_model, Generation(max_tokens=max_tokens))
    print_answer(backend, [{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
    console = Console(highlight=False)
    for line in sources(hits):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def sources(hits: Sequence[Hit]) -> list[str]:
    """One line a moment: [clips/talk.mp4 01:02–01:04]."""
    return [
        f"[{short(hit.item.shown)}]"
        if hit.modality == "image"
        else f"[{short(hit.item.shown)} {clock(hit.start)}–{clock(hit.end, up=True)}]"
        for hit in hits
    ]


def _part(hit: Hit, whole: bool) -> dict[str, Any]:
    """A moment as part of a message.

    Args:
        whole: name the file and the times, for an answerer in this process; else hold the moment alone.

    Raises:
        MediaError: if its file is gone, or cannot be read.
    """
    kind = "video" if hit.modality == "both" else hit.modality
    path = hit.item.path
    if path is None or not path.exists():
        raise MediaError(f"{hit.item.shown} is in the index but not there: mllm index add --prune its folder")
    if kind == "image":
        return {"type": kind, kind: str(path)}
    if whole:
        return {"type": kind, kind: str(path), "start": hit.start, "end": hit.end}
    return {"type": kind, kind: cut(path, hit.start, hit.end, kind == "video")}


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
