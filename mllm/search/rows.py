"""The rows of an item: its windows, what is said in it, and what its owner wrote about it.

Private to `index`. A row of words has the vector of its text in the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mllm.errors import MediaError
from mllm.records.transcript import Segment
from mllm.search.items import SAID, WRITTEN, Item

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

Row = dict[str, Any]


def window_rows(embedder: Embedder, item: Item) -> list[Row]:
    """Decodes and embeds an item.

    Raises:
        MediaError: if it cannot be read, or has neither picture nor sound.
    """
    media = item.path if item.content is None else item.content
    vectors = list(embedder.windows(media, isolated=True))
    if not vectors:
        raise MediaError(f"{item.shown} has neither picture nor sound to index")
    both = {vector.start for vector in vectors if vector.modality == "both"}
    return [
        {
            "id": f"{item.id}:{vector.modality}:{round(vector.start * 1000)}",
            "modality": vector.modality,
            "start": vector.start,
            "end": vector.end,
            "fullest": vector.modality == "both" or vector.start not in both,
            "vector": vector.vector,
        }
        for vector in vectors
    ]


def said_rows(embedder: Embedder, item: Item, segments: Sequence[Segment]) -> list[Row]:
    """A row for each segment of a transcript or line of subtitles."""
    return [
        {
            "id": f"{item.id}:{SAID}:{number}",
            "modality": SAID,
            "start": segment.start,
            "end": segment.end,
            "fullest": False,
            "vector": vector,
            "text": segment.text,
            "words": [word._asdict() for word in segment.words],
        }
        for number, (segment, vector) in enumerate(zip(segments, _embedded(embedder, segments), strict=True))
    ]


def written_rows(embedder: Embedder, item: Item, duration: float) -> list[Row]:
    """One row with an item's title and description, or none if it has neither."""
    if item.name is None and item.description is None:
        return []
    whole = Segment(0.0, duration, f"{item.name or ''}\n{item.description or ''}")
    row = {
        "id": f"{item.id}:{WRITTEN}:0",
        "modality": WRITTEN,
        "start": whole.start,
        "end": whole.end,
        "fullest": False,
        "vector": _embedded(embedder, [whole])[0],
        "text": whole.text,
    }
    return [row]


def description_of(name: str | None, text: str) -> str | None:
    """The description in the text of a written row."""
    return text[len(name or "") + 1 :] or None


def _embedded(embedder: Embedder, segments: Sequence[Segment]) -> Sequence[Any]:
    return list(embedder.embed_text([segment.text.strip() for segment in segments])) if segments else []
