"""Data sources: records by index, opened by name.

`open_source("world:train")` finds the generated world through the entry point group `mllm.sources`;
`open_source("data/train.jsonl")` opens a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from mllm.errors import MllmError, RecordError
from mllm.records.chat import Message
from mllm.records.jsonl import JsonlSource
from mllm.records.record import Outline, PairRecord, Record

SOURCES = "mllm.sources"  # entry point group


@runtime_checkable
class DataSource(Protocol):
    """Scenes by index, each with the conversations, captions and texts about it."""

    name: str

    def __len__(self) -> int:
        """Number of scenes."""
        ...

    def records(self, index: int) -> list[Record]:
        """All records of one scene; their media parts are equal (in memory: the identical Clip)."""
        ...

    def conversations(self, index: int) -> list[Record]:
        """The records of one scene that have an answer to train on."""
        ...

    def pair(self, index: int) -> PairRecord:
        """`{"clip": Clip or path, "captions": {"video", "audio", "both": str or None}, "labels": {…}}`.

        A `part` key holds the media part that the clip came from, where there is one, and `paraphrases` all
        captions by kind. `index` may run on past the end: each further round over the scenes gives their next
        captions, where they have several.
        """
        ...

    def text(self, index: int) -> Sequence[Sequence[Message]]:
        """Conversations without media, for stage 0, which trains a decoder on text."""
        ...


@runtime_checkable
class Outlined(DataSource, Protocol):
    """A source that knows what its records are about without reading them."""

    def outlines(self, index: int) -> Sequence[Outline]:
        """The outlines of `records` of one scene."""
        ...


def open_source(name: str, media_must_exist: bool = True) -> DataSource:
    """Opens a data source by name: `world:train`, `world:train,seed=3`, a JSONL file, or a folder of shards.

    Args:
        media_must_exist: whether a row of a JSONL file may name a recording that is not there.

    Raises:
        RecordError: if there is no such source, it cannot be imported or refuses its options, or a row of the
            file is invalid.
    """
    kind, _, rest = name.partition(":")
    known = {entry.name: entry for entry in entry_points(group=SOURCES)}
    if kind in known:
        return _call(known[kind], rest)
    if os.path.exists(name) and not os.path.isdir(name):
        return JsonlSource(name, media_must_exist)
    if Path(name, "build.json").is_file():
        from mllm.records.shards import ShardSource

        return ShardSource(name)
    near = get_close_matches(kind, known, n=1)
    meant = f"did you mean '{near[0]}:{rest}'? " if near and rest else ""
    raise RecordError(
        f"no data source {name!r}: {meant}give a JSONL file, a folder of shards, or one of "
        + ", ".join(f"{key}:…" for key in sorted(known))
    )


def _call(entry: EntryPoint, options: str) -> DataSource:
    try:
        opener = entry.load()
    except Exception as error:  # another package's import may fail in any way
        owner = entry.dist.name if entry.dist else "another package"
        raise RecordError(
            f"the data source {entry.name!r} of {owner} cannot be imported: {type(error).__name__}: {error}: "
            "mend or uninstall that package"
        ) from error
    try:
        return opener(options)
    except MllmError:
        raise
    except ValueError as error:
        raise RecordError(
            f"data source '{entry.name}:{options}': {error}: mend what follows the colon"
        ) from None
