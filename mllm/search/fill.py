"""Filling an index: new items are read, changed ones replaced, missing ones removed.

Private to `index`, whose `Index.add` describes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MediaError, MllmError
from mllm.media.sources import MEDIA_SUFFIXES, open_ordinary, walk_folders
from mllm.search.items import ITEM_COLUMNS, Item, derived_id, item_of
from mllm.search.store import (
    compact,
    delete_items,
    migrate,
    quoted,
    read_columns,
    replace_item,
    require_writable,
)

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

_COMPACT_EVERY = 256  # items: the rows of each are a small file of the table until the table is compacted
_OF_WINDOW = ("id", "modality", "start", "end", "fullest", "vector")


@dataclass
class AddReport:
    """The outcome of `Index.add`, by the names of items; `failed` and `passed_over` hold (name, cause).

    `updated` items have the same content but a new name, attributes or source; `passed_over` are folders
    that were skipped; `windows` counts the added rows.
    """

    added: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    windows: int = 0

    def line(self) -> str:
        """The counts in one line."""
        parts = [
            f"{len(self.added)} recordings added ({self.windows} rows)",
            f"{len(self.unchanged)} unchanged",
        ]
        for what, names in (
            ("updated", self.updated),
            ("removed", self.pruned),
            ("failed", self.failed),
            ("passed over", self.passed_over),
        ):
            parts += [f"{len(names)} {what}"] if names else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Indexed:
    """An item in the index and the state of its content: size in bytes, last change in ns, SHA-256."""

    item: Item
    size: int
    modified: int
    digest: str


def read_items(table: Any, folder: Path) -> dict[str, Indexed]:
    """All items by id."""
    names = [*ITEM_COLUMNS, "size", "modified", "digest"]
    rows = read_columns(table, names, folder).group_by(names).aggregate([]).to_pylist()
    return {
        row["item_id"]: Indexed(item_of(row), row["size"], row["modified"], row["digest"]) for row in rows
    }


class Filling:
    """One call of `Index.add`."""

    def __init__(
        self, table: Any, folder: Path, embedder: Embedder, progress: Callable[[str, str], None] | None
    ):
        self.table = table
        self.folder = folder
        self.embedder = embedder
        self.progress = progress or (lambda name, status: None)
        self.report = AddReport()
        self.indexed: dict[str, Indexed] = {}
        self.ids: dict[str, str] = {}  # of items, by source

    def run(
        self, items: Iterable[Item | str | Path], prune: bool, make_item: Callable[[Path], Item]
    ) -> AddReport:
        """See `Index.add`."""
        given: list[Item] = []
        roots: list[Path] = []
        for one in items:
            if isinstance(one, Item):
                given.append(one)
            else:
                roots.append(Path(os.path.abspath(one)))
        for root in roots:
            if not root.exists() and not prune:
                raise MllmError(f"{root} does not exist: name a media file or a folder of them")
        migrate(self.table, self.folder)
        self.indexed = read_items(self.table, self.folder)
        self.ids = {str(one.item.source): key for key, one in self.indexed.items() if one.item.source}
        for item in given:  # first, since the files below may belong to them
            self._try(item)
        for path in dict.fromkeys(file for root in roots for file in walk(root, self._pass_over)):
            self._try(make_item(path))
        if prune:
            self._prune(roots)
        if self.report.added or self.report.updated or self.report.pruned:
            compact(self.table, self.folder)
        return self.report

    def _pass_over(self, path: Path, cause: str) -> None:
        self.report.passed_over.append((str(path), cause))
        self.progress(str(path), f"passed over: {cause}")

    def _try(self, item: Item) -> None:
        item = self._identified(item)
        try:
            status = self._add(item)
        except (MediaError, OSError, UnicodeError) as error:
            cause = " ".join(str(error).split())
            self.report.failed.append((item.shown, cause))
            status = f"failed: {cause}"
        self.progress(item.shown, status)

    def _identified(self, item: Item) -> Item:
        """The item with its source as text, and an id: its own, its source's in the index, or a new one."""
        source = None if item.source is None else str(item.path or item.source)
        item_id = item.id or self.ids.get(source or "")
        if item_id is None:
            item_id = derived_id(source or hashlib.sha256(item.content or b"").hexdigest())
            while item_id in self.indexed and self.indexed[item_id].item.source != source:
                item_id = derived_id(item_id)  # taken by an item whose file has moved since
        return replace(item, source=source, id=item_id)

    def _add(self, item: Item) -> str:
        before = self.indexed.get(str(item.id))
        size, modified, digest = _content(item, before)
        if before is not None:
            kept = before.item
            attributes = kept.attributes if item.attributes is None else item.attributes
            item = replace(
                item, source=item.source or kept.source, name=item.name or kept.name, attributes=attributes
            )
        stored = replace(item, content=None, attributes=dict(item.attributes or {}))
        now = Indexed(stored, size, modified, digest)
        if before is None or before.digest != digest:
            rows = self._read(item)
            self._write(now, rows)
            self.report.added.append(item.shown)
            self.report.windows += len(rows)
            if len(self.report.added) % _COMPACT_EVERY == 0:
                compact(self.table, self.folder)
            return "added"
        if before.item != stored:
            where = f"item_id = {quoted(str(item.id))}"
            self._write(now, read_columns(self.table, _OF_WINDOW, self.folder, where).to_pylist())
            self.report.updated.append(item.shown)
            return "updated"
        self.report.unchanged.append(item.shown)
        return "unchanged"

    def _read(self, item: Item) -> list[dict[str, Any]]:
        """Decodes and embeds an item: the rows of its windows."""
        require_writable(self.folder)  # before decoding in vain
        media = item.path if item.content is None else item.content
        vectors = list(self.embedder.windows(media, isolated=True))
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

    def _write(self, now: Indexed, rows: Sequence[Mapping[str, Any]]) -> None:
        item = now.item
        columns = {
            "item_id": item.id,
            "name": item.name,
            "source": item.source,
            "attributes": json.dumps(item.attributes, ensure_ascii=False),
            "size": now.size,
            "modified": now.modified,
            "digest": now.digest,
        }
        replace_item(self.table, self.folder, str(item.id), [{**row, **columns} for row in rows])
        self.indexed[str(item.id)] = now
        if item.source is not None:
            self.ids[str(item.source)] = str(item.id)

    def _prune(self, roots: Sequence[Path]) -> None:
        gone = [
            one.item
            for one in self.indexed.values()
            if one.item.path and _is_under(one.item.path, roots) and not one.item.path.exists()
        ]
        self.report.pruned = sorted(item.shown for item in gone)
        delete_items(self.table, self.folder, [str(item.id) for item in gone])


def walk(root: Path, passed_over: Callable[[Path, str], None] = lambda path, cause: None) -> Iterator[Path]:
    """Yields the media files under a folder, or `root` itself if it is a file.

    Args:
        passed_over: see `mllm.media.sources.walk_folders`.
    """
    if not root.is_dir():
        yield from [root] if root.exists() else []
        return
    for folder, names in walk_folders(root, passed_over):
        for name in names:
            if Path(name).suffix.lower() in MEDIA_SUFFIXES:
                yield folder / name


def _content(item: Item, before: Indexed | None) -> tuple[int, int, str]:
    """Size in bytes, time of the last change in ns and SHA-256 of an item's content.

    A file whose size and time have not changed since it was indexed is not read.
    """
    if item.content is not None:
        return len(item.content), 0, hashlib.sha256(item.content).hexdigest()
    if item.path is None:
        if before is None:
            raise MediaError(f"{item.shown} is not in the index and not fetched: give its bytes as content")
        return before.size, before.modified, before.digest
    with open_ordinary(item.path) as file:
        stat = os.fstat(file.fileno())
        looks = (str(item.path), stat.st_size, stat.st_mtime_ns)
        if before is not None and looks == (before.item.source, before.size, before.modified):
            return before.size, before.modified, before.digest
        return stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()


def _is_under(path: Path, roots: Sequence[Path]) -> bool:
    return any(path == root or root in path.parents for root in roots)
