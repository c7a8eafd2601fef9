"""The retrieval index: items and the vectors of their windows in a LanceDB table, stamped with the model.

A window with picture and sound has three rows, "video", "audio" and "both"; one with only picture or sound
has that row; a still image has the row "image". Without a modality, a search compares with the fullest row of
every window ("both" if there is one), so that a query about picture and sound together ("a red star and three
beeps") and a query about one of them are compared with every window exactly once.

Vectors have length 1 and the score is their dot product, the cosine. For a "both" row that is the sum of the
picture's and the sound's cosines divided by the length of the sum of their vectors: the fused score that
training aligns with captions.

Every row holds the id, name, source and attributes of its item, so an item is written in one transaction and
a filter is part of the search: a process killed at any moment leaves whole items, and adding again continues
where it stopped. The search compares with every row that passes the filter, so it is exact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm.errors import ConfigError
from mllm.search.expressions import Filters
from mllm.search.filters import to_sql
from mllm.search.items import BY_SUBTITLES, ITEM_COLUMNS, KINDS, SAID, WRITTEN, Item, item_of, kind
from mllm.search.store import (
    create_table,
    delete_items,
    exists,
    migrate,
    open_table,
    quoted,
    read_columns,
    read_stamp,
    store_errors,
    stored_as,
)

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder
    from mllm.search.fill import AddReport, Transcriber

DEFAULT_FOLDER = Path(".mllm/index")


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


@dataclass(frozen=True)
class Hit:
    """A window that a search found.

    Attributes:
        id: unique id of the row in the index.
        item: the item that the window belongs to.
        modality: "video", "audio", "both" or "image", of the row.
        start, end: in seconds.
        score: the cosine, -1 to 1.
    """

    id: str
    item: Item
    modality: str
    start: float
    end: float
    score: float


class Index:
    """An open index: `Index.open(folder).add([...])`, `.search("a dog barks")`."""

    def __init__(self, folder: Path, table: Any, embedder: Embedder):
        self.folder = folder
        self.table = table
        self.embedder = embedder
        self._kinds_at: tuple[int, dict[str, set[str]]] = (-1, {})

    @classmethod
    def open(
        cls,
        folder: str | Path = DEFAULT_FOLDER,
        embedder: Embedder | None = None,
        rebuild: bool = False,
        create: bool = True,
    ) -> Index:
        """Opens the index in `folder`, or creates it.

        Args:
            embedder: None loads the model that filled the index or, for a new one, the model that ships with
                mllm.
            rebuild: empty the index, whatever state it is in, and stamp it with this embedder.
            create: if False, a missing index is an error.

        Raises:
            ConfigError: if another model filled it, if it is damaged or cannot be created, or if there is
                none and `create` is False.
        """
        folder = Path(folder)
        begin = rebuild or (create and not exists(folder))
        table = None if begin else open_table(folder)
        if embedder is None:
            from mllm.search.embedder import Embedder

            embedder = Embedder.from_pretrained(None if begin else filled_by(folder))
        if table is None:
            stamp = {
                "model": embedder.name,
                "stamp": embedder.fingerprint(),
                "dim": embedder.dim,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            table = create_table(folder, stamp, rebuild)
        _check_model(read_stamp(table, folder), embedder, folder)  # another process may have been first
        return cls(folder, table, embedder)

    # --- fill -----------------------------------------------------------------------------------------------

    def add(
        self,
        items: Iterable[Item | str | Path],
        prune: bool = False,
        progress: Callable[[str, str], None] | None = None,
        make_item: Callable[[Path], Item] = Item,
        transcriber: Transcriber | None = None,
    ) -> AddReport:
        """Indexes recordings and pictures. Content that is already indexed is not read again.

        Files with the same content are one item, also if one was moved since it was indexed; items that are
        given as such are kept apart. Subtitles beside a file (talk.srt, talk.vtt, talk.en.srt) say what is
        said in it.

        Args:
            items: items; or paths of files (taken whatever their suffix) and folders (walked for files with a
                suffix of `MEDIA_SUFFIXES`), which become items by `make_item`.
            prune: also remove items whose files were under these paths and no longer exist.
            progress: called with every item's name and its outcome: "added", "unchanged", "updated" or
                "failed: …"; and with folders that are skipped: "passed over: …".
            make_item: makes an item, with name and attributes, from a file.
            transcriber: writes down what is said in items without subtitles, also in those that are in the
                index already.

        Raises:
            MllmError: if a path does not exist.
            ConfigError: if the index cannot be written.
        """
        from mllm.search.fill import Filling  # a search does not need the libraries that read media

        filling = Filling(self.table, self.folder, self.embedder, progress, transcriber)
        return filling.run(items, prune, make_item)

    def remove(self, ids: Iterable[str]) -> None:
        """Deletes the items with these ids.

        Raises:
            ConfigError: if the index cannot be written.
        """
        migrate(self.table, self.folder)
        delete_items(self.table, self.folder, list(ids))

    def items(self) -> list[Item]:
        """Every item in the index, by name."""
        from mllm.search.fill import read_items

        indexed = read_items(self.table, self.folder).values()
        return sorted((one.item for one in indexed), key=lambda item: item.shown)

    # --- search ---------------------------------------------------------------------------------------------

    def search(
        self,
        query: str | np.ndarray,
        k: int = 10,
        modality: str | None = None,
        filters: Filters | None = None,
    ) -> list[Hit]:
        """The k best windows, best first; ties are sorted by name and time.

        Args:
            query: text, or a unit vector float32 [dim] of the shared space (search by example).
            modality: compare only with rows of this modality; None with the fullest row of every window.
            filters: a filter object in OpenAI's format over attributes (see `mllm.search.filters`); only the
                windows of items that pass it are compared.

        Raises:
            ConfigError: for an unknown modality, or a filter that no item could pass.
        """
        check_modality(modality)
        where = f"modality = {quoted(modality)}" if modality else "fullest"
        if filters is not None:
            where += f" AND {to_sql(filters, self._kinds())}"
        vector = self._vector(query)
        names = ["id", *ITEM_COLUMNS, "modality", "start", "end"]
        with store_errors(self.folder):
            found = (
                self.table.search(vector, vector_column_name="vector")
                .distance_type("dot")
                .bypass_vector_index()
                .where(where, prefilter=True)
                .select(stored_as(self.table, names) | {"_distance": "_distance"})
                .limit(k)
                .to_arrow()
            )
        hits = [
            Hit(
                id=row["id"],
                item=item_of(row),
                modality=row["modality"],
                start=row["start"],
                end=row["end"],
                score=1.0 - row["_distance"],
            )
            for row in found.to_pylist()
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.item.shown, hit.start))

    def find(
        self,
        query: str | np.ndarray,
        k: int = 10,
        modality: str | None = None,
        filters: Filters | None = None,
    ) -> dict[str, list[Hit]]:
        """The k best items, best first: id -> its windows among the best, best first. See `search`."""
        vector = self._vector(query)
        with store_errors(self.folder):
            rows = self.table.count_rows()
        limit = max(4 * k, 32)
        while True:
            found: dict[str, list[Hit]] = {}
            for hit in self.search(vector, limit, modality, filters):
                found.setdefault(str(hit.item.id), []).append(hit)
            if len(found) >= k or limit >= rows:
                return dict(list(found.items())[:k])
            limit *= 4

    def _vector(self, query: str | np.ndarray) -> np.ndarray:
        return (
            self.embedder.embed_text([query])[0] if isinstance(query, str) else np.asarray(query, np.float32)
        )

    def _kinds(self) -> dict[str, set[str]]:
        """`_attribute_kinds` of the current version of the table, cached."""
        with store_errors(self.folder):
            version = self.table.version
        if self._kinds_at[0] != version:
            self._kinds_at = (version, _attribute_kinds(self.table, self.folder))
        return self._kinds_at[1]

    def info(self) -> IndexInfo:
        """Model, size and contents."""
        return describe(self.folder)


def check_modality(modality: str | None) -> None:
    """Raises ConfigError for a modality that no row can have; None means the fullest row."""
    if modality is not None and modality not in KINDS:
        raise ConfigError(f"no modality '{modality}' in an index: choose from {', '.join(KINDS)}")


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
    attributes = {key: sorted(kinds) for key, kinds in sorted(_attribute_kinds(table, folder).items())}
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


def _check_model(stamp: dict[str, Any], embedder: Embedder, folder: Path) -> None:
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


def _attribute_kinds(table: Any, folder: Path) -> dict[str, set[str]]:
    """Types of value by name of attribute, over all items."""
    kinds: dict[str, set[str]] = {}
    for text in read_columns(table, ["attributes"], folder)["attributes"].unique().to_pylist():
        for key, value in json.loads(text or "{}").items():
            kinds.setdefault(key, set()).add(kind(value))
    return kinds
