"""What an index holds, read without a model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm.errors import ConfigError
from mllm.search.items import BY_SUBTITLES, KINDS, SAID, WRITTEN, kind
from mllm.search.store import open_table, read_columns, read_stamp

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder


@dataclass(frozen=True)
class IndexInfo:
    """A summary of an index.

    Attributes:
        model: name of the model that filled it; `stamp` is its `Embedder.fingerprint()`.
        recordings: number of items.
        rows: number of vectors of windows by modality.
        texts: number of texts, "said" and "written".
        said: number of items by where what is said in them comes from: "transcript …", "subtitles", or "".
        seconds: total length of all recordings.
        attributes: types of value ("string", "number", "boolean") by name of attribute.
    """

    folder: Path
    model: str
    stamp: str
    dim: int
    created: str
    recordings: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    attributes: dict[str, list[str]] = field(default_factory=dict)


def describe(folder: str | Path) -> IndexInfo:
    """Summarises the index in `folder`, without loading a model.

    Raises:
        ConfigError: if there is none, or it is damaged.
    """
    folder = Path(folder)
    table = open_table(folder)
    stamp = read_stamp(table, folder)
    rows = read_columns(table, ["item_id", "modality", "start", "end", "fullest", "said_by"], folder)
    counts = Counter(rows["modality"].to_pylist())
    fullest = rows.filter(rows["fullest"])
    seconds = float(np.sum(fullest["end"].to_numpy() - fullest["start"].to_numpy()))
    sources = rows.group_by(["item_id", "said_by"]).aggregate([])["said_by"].to_pylist()
    attributes = {key: sorted(kinds) for key, kinds in sorted(attribute_kinds(table, folder).items())}
    return IndexInfo(
        folder,
        recordings=len(sources),
        rows={modality: counts[modality] for modality in KINDS},
        texts={modality: counts[modality] for modality in (SAID, WRITTEN)},
        said=dict(Counter(map(_short_source, sources))),
        seconds=seconds,
        attributes=attributes,
        **stamp,
    )


def filled_by(folder: str | Path) -> str | None:
    """The model that filled the index, for `Embedder.from_pretrained`.

    None if that was a folder that no longer exists: it may have been moved, and may be the model that ships;
    opening the index compares their fingerprints.

    Raises:
        ConfigError: if there is no index, or it is damaged.
    """
    model = read_stamp(open_table(Path(folder)), Path(folder))["model"]
    return model if Path(model).exists() or not Path(model).is_absolute() else None


def check_model(stamp: dict[str, Any], embedder: Embedder, folder: Path) -> None:
    """Raises ConfigError if the index in `folder`, which has this stamp, was filled by another model."""
    if stamp["stamp"] == embedder.fingerprint():
        return
    theirs, ours = f"{stamp['model']} ({stamp['stamp'][:12]})", f"({embedder.fingerprint()[:12]})"
    rebuild = f"fill it again with mllm index add DIR --index {folder} --rebuild"
    if stamp["model"] == embedder.name:
        reason = f"before its weights changed {ours}, and their vectors don't compare: {rebuild}"
    else:
        choice = f"use --model {stamp['model']}, or {rebuild}"
        reason = f"not by {embedder.name} {ours}, and their vectors don't compare: {choice}"
    raise ConfigError(f"index {folder} was filled by model {theirs}, {reason}")


def _short_source(said_by: str | None) -> str:
    return BY_SUBTITLES if (said_by or "").startswith(BY_SUBTITLES) else said_by or ""


def attribute_kinds(table: Any, folder: Path) -> dict[str, set[str]]:
    """Types of value by name of attribute, over all items."""
    kinds: dict[str, set[str]] = {}
    for text in read_columns(table, ["attributes"], folder)["attributes"].unique().to_pylist():
        for key, value in json.loads(text or "{}").items():
            kinds.setdefault(key, set()).add(kind(value))
    return kinds
