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
from typing import TYPE_CHECKING, Any, Protocol

from mllm.errors import MediaError, MllmError, RecordError
from mllm.media.sources import MEDIA_SUFFIXES, OWN_FILES, open_ordinary, walk_folders
from mllm.records.transcript import Segment, Transcript
from mllm.search.guard import require_writable
from mllm.search.items import (
    BY_SUBTITLES,
    BY_TRANSCRIPT,
    ITEM_COLUMNS,
    SAID,
    WRITTEN,
    Indexed,
    Item,
    derived_id,
    item_of,
)
from mllm.search.rows import Row, description_of, said_rows, window_rows, written_rows
from mllm.search.store import (
    compact,
    delete_items,
    kind_of,
    quoted,
    read_columns,
    replace_item,
)
from mllm.search.subtitles import SubtitlesBeside, subtitle_segments

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

_COMPACT_EVERY = 256  # items: the rows of each are a small file of the table until the table is compacted
_MOST_SUBTITLES = 20_000_000  # bytes that are read of a file
_OF_WINDOW = ("id", "modality", "start", "end", "fullest", "vector", "text", "words")


class Transcriber(Protocol):
    """Writes down what is said, as `mllm.models.transcriber.Transcriber` does."""

    @property
    def name(self) -> str: ...

    def transcribe(self, source: Any, isolated: bool = False, **span: Any) -> Transcript: ...


@dataclass
class AddReport:
    """The outcome of `Index.add`, by the names of items; `failed` and `passed_over` hold (name, cause).

    `updated` items have the same content but another name, source, transcript and so on; `passed_over` are
    folders that were skipped, subtitles that cannot be read, and files whose content is in the index already;
    `windows` counts the added rows of windows.
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


def read_items(table: Any, folder: Path) -> dict[str, Indexed]:
    """All items by id."""
    state = ("size", "modified", "digest", "said_by", "kind", "duration")
    names = [*ITEM_COLUMNS, *state]
    rows = read_columns(table, names, folder).group_by(names).aggregate([]).to_pylist()
    found = {row["item_id"]: Indexed(item_of(row), *(row[name] for name in state)) for row in rows}
    written = read_columns(table, ["item_id", "name", "text"], folder, f"modality = {quoted(WRITTEN)}")
    for row in written.to_pylist():
        one, description = found[row["item_id"]], description_of(row["name"], row["text"])
        found[row["item_id"]] = replace(one, item=replace(one.item, description=description))
    return found


class Filling:
    """One call of `Index.add`."""

    def __init__(
        self,
        table: Any,
        folder: Path,
        embedder: Embedder,
        progress: Callable[[str, str], None] | None,
        transcriber: Transcriber | None = None,
    ):
        self.table = table
        self.folder = folder
        self.embedder = embedder
        self.progress = progress or (lambda name, status: None)
        self.transcriber = transcriber
        self.report = AddReport()
        self.indexed: dict[str, Indexed] = {}
        self.ids: dict[str, str] = {}  # of items, by source
        self.copies: dict[str, list[str]] = {}  # ids of items, by digest
        self._subtitles_beside = SubtitlesBeside()

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
        for indexed in read_items(self.table, self.folder).values():
            self._remember(indexed)
        for item in given:  # first, since the files below may belong to them
            self._try(item, given=True)
        for path in dict.fromkeys(file for root in roots for file in walk(root, self._pass_over)):
            self._try(make_item(path), given=False)
        if prune:
            self._prune(roots)
        if self.report.added or self.report.updated or self.report.pruned:
            compact(self.table, self.folder)
        return self.report

    def _pass_over(self, path: Path, cause: str) -> None:
        self.report.passed_over.append((str(path), cause))
        self.progress(str(path), f"passed over: {cause}")

    def _try(self, item: Item, given: bool) -> None:
        item = self._identified(item)
        try:
            status = self._add(item, given)
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

    def _add(self, item: Item, given: bool) -> str:
        before = self.indexed.get(str(item.id))
        size, modified, digest = _content(item, before)
        if before is None and not given:
            before = self._elsewhere(digest)
            if before is not None and before.is_in_place():
                cause = f"the same content as {before.item.shown}"
                self.report.passed_over.append((item.shown, cause))
                return f"passed over: {cause}"
        if before is not None:
            item = _kept(item, before.item)
        if before is None or before.digest != digest:
            return self._add_new(item, size, modified, digest)
        return self._update(item, replace(before, size=size, modified=modified))

    def _elsewhere(self, digest: str) -> Indexed | None:
        """The item of a file with this content, one that is still in its place if there is one."""
        found = [one for key in self.copies.get(digest, ()) if (one := self.indexed[key]).item.path]
        return max(found, key=Indexed.is_in_place, default=None)

    def _add_new(self, item: Item, size: int, modified: int, digest: str) -> str:
        """Adds an item that is not in the index, or whose content has changed."""
        require_writable(self.folder)  # before decoding in vain
        windows = window_rows(self.embedder, item)
        said_by, said = self._said(item, None)
        duration, kind = max(row["end"] for row in windows), kind_of(row["modality"] for row in windows)
        rows = [*windows, *(said or []), *written_rows(self.embedder, item, duration)]
        self._write(Indexed(_stored(item), size, modified, digest, said_by, kind, duration), rows)
        self.report.added.append(item.shown)
        self.report.windows += len(windows)
        if len(self.report.added) % _COMPACT_EVERY == 0:
            compact(self.table, self.folder)
        return "added"

    def renew(self, before: Indexed, segments: Sequence[Segment]) -> None:
        """Adds an item of another index again, with what is said in it as far as its content is the same.

        Raises:
            MediaError: if it cannot be read.
        """
        size, modified, digest = _content(before.item, None)
        same = digest == before.digest
        windows = window_rows(self.embedder, before.item)
        said = said_rows(self.embedder, before.item, segments if same else ())
        duration, kind = max(row["end"] for row in windows), kind_of(row["modality"] for row in windows)
        rows = [*windows, *said, *written_rows(self.embedder, before.item, duration)]
        said_by = before.said_by if same else None
        self._write(Indexed(before.item, size, modified, digest, said_by, kind, duration), rows)

    def _update(self, item: Item, before: Indexed) -> str:
        """Rewrites what is known of an item beside its content, if any of that has changed."""
        said_by, said = self._said(item, before.said_by)
        now = replace(before, item=_stored(item), said_by=said_by)
        if (now.item, said_by) == (before.item, before.said_by):
            self.report.unchanged.append(item.shown)
            return "unchanged"
        replaced = {WRITTEN} if said is None else {WRITTEN, SAID}
        where = f"item_id = {quoted(str(before.item.id))}"
        rows = read_columns(self.table, _OF_WINDOW, self.folder, where).to_pylist()
        rows = [row for row in rows if row["modality"] not in replaced] + (said or [])
        self._write(now, rows + written_rows(self.embedder, item, now.duration or 0.0))
        self.report.updated.append(item.shown)
        return "updated"

    def _said(self, item: Item, known: str | None) -> tuple[str | None, list[Row] | None]:
        """`Indexed.said_by` of an item, and its rows; None for rows that are in the index already.

        Subtitles beside a file go before a transcript.

        Args:
            known: `said_by` of those rows; None if there are none.
        """
        segments: Sequence[Segment] = ()
        by = known if known and known.startswith(BY_TRANSCRIPT) else None
        if (subtitles := self._subtitles_of(item)) is not None:
            path, data = subtitles
            by = f"{BY_SUBTITLES} {path.name} {hashlib.sha256(data).hexdigest()[:16]}"
            if by != known:
                try:
                    segments = subtitle_segments(path, data)
                except RecordError as error:
                    self._pass_over(path, str(error))
                    by = None
        elif self.transcriber is not None:
            by = f"{BY_TRANSCRIPT} {self.transcriber.name}"
            if by != known:
                media = item.path if item.content is None else item.content
                segments = self.transcriber.transcribe(media, isolated=True, limits=OWN_FILES).segments
        return by, None if by == known else said_rows(self.embedder, item, segments)

    def _subtitles_of(self, item: Item) -> tuple[Path, bytes] | None:
        """The subtitles beside an item's file, or None if there are none, or they cannot be read."""
        path = item.path and self._subtitles_beside(item.path)
        if path is None:
            return None
        try:
            with open_ordinary(path) as file:
                return path, file.read(_MOST_SUBTITLES)
        except MediaError as error:
            self._pass_over(path, str(error))
            return None

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
            "said_by": now.said_by,
            "kind": now.kind,
            "duration": now.duration,
        }
        replace_item(self.table, self.folder, str(item.id), [{**row, **columns} for row in rows])
        self._remember(now)

    def _remember(self, one: Indexed) -> None:
        key, source = str(one.item.id), one.item.source
        if key in self.indexed:
            before = self.indexed[key]
            self.ids.pop(str(before.item.source), None)
            self.copies.get(before.digest, []).remove(key)
        self.indexed[key] = one
        self.copies.setdefault(one.digest, []).append(key)
        if source is not None:
            self.ids[str(source)] = key

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


def _kept(item: Item, before: Item) -> Item:
    """The item with what it leaves open as it is in the index."""
    return replace(
        item,
        id=before.id,
        source=item.source or before.source,
        name=item.name or before.name,
        attributes=before.attributes if item.attributes is None else item.attributes,
        description=before.description if item.description is None else item.description,
    )


def _stored(item: Item) -> Item:
    return replace(
        item, content=None, attributes=dict(item.attributes or {}), description=item.description or None
    )


def _is_under(path: Path, roots: Sequence[Path]) -> bool:
    return any(path == root or root in path.parents for root in roots)
