"""Looking after an index without searching it: what is in it, out of it, renewed and compacted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.errors import ConfigError, MediaError
from mllm.records.transcript import Segment, Word
from mllm.search.expressions import Filters
from mllm.search.fill import Filling, read_items
from mllm.search.filters import fields_of, to_sql
from mllm.search.guard import alone_at
from mllm.search.index import Index
from mllm.search.items import SAID, Indexed, Item, find_item
from mllm.search.store import (
    compact,
    delete_items,
    exists,
    migrate,
    open_table,
    quoted,
    read_columns,
    read_stamp,
    replace_table,
)
from mllm.search.summary import attribute_kinds

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

_RENEWED = "renewed"  # folder in that of an index, while it is renewed


@dataclass
class RenewReport:
    """The outcome of `renew`: names of items, and (name, cause) of those that cannot be read again."""

    renewed: list[str] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)


def list_items(folder: str | Path, filters: Filters | None = None) -> list[Indexed]:
    """The items of an index, by name.

    Raises:
        ConfigError: if there is no index, it is damaged, or no item could pass the filter.
    """
    folder = Path(folder)
    table = open_table(folder)
    read_stamp(table, folder)
    items = read_items(table, folder)
    if filters is not None:
        where = to_sql(filters, attribute_kinds(table, folder), fields_of(table))
        passed = set(read_columns(table, ["item_id"], folder, where)["item_id"].to_pylist())
        items = {key: one for key, one in items.items() if key in passed}
    return sorted(items.values(), key=lambda one: one.item.shown)


def delete(folder: str | Path, names: Sequence[str], filters: Filters | None = None) -> list[Item]:
    """Deletes items, and gives them back.

    Args:
        names: ids, paths, names or names of files (see `find_item`), or folders with all that lies in them.
        filters: deletes only what passes; without names, all that passes.

    Raises:
        ConfigError: if a name is of no item, or the index cannot be written.
    """
    folder = Path(folder)
    items = [one.item for one in list_items(folder)]
    chosen = {str(item.id): item for name in names for item in _named(items, name, folder)}
    if filters is not None:
        passed = {str(one.item.id): one.item for one in list_items(folder, filters)}
        chosen = {key: item for key, item in passed.items() if key in chosen or not names}
    if chosen:
        table = open_table(folder)
        with alone_at(folder):
            migrate(table, folder)
            delete_items(table, folder, list(chosen))
    return list(chosen.values())


def _named(items: Sequence[Item], name: str, folder: Path) -> list[Item]:
    inside = Path(name).absolute()
    below = [item for item in items if item.path and inside in item.path.parents]
    return below or [find_item(items, name, folder)]


def compact_index(folder: str | Path) -> tuple[int, int]:
    """Compacts the table of an index, and brings its full-text index up to date.

    Returns:
        Its size in bytes, before and after. What readers may still use stays for an hour.
    """
    folder = Path(folder)
    table = open_table(folder)
    read_stamp(table, folder)
    with alone_at(folder):
        before = _bytes_in(folder)
        migrate(table, folder)
        compact(table, folder)
        return before, _bytes_in(folder)


def renew(
    folder: str | Path,
    embedder: Embedder,
    leave_out: bool = False,
    progress: Callable[[str, str], None] = lambda name, status: None,
) -> RenewReport:
    """Reads all recordings of an index again, for another model or one that has changed.

    Ids, names, attributes and what is said are kept. The index is searched as it was until all is done, and
    then replaced in one transaction; what a killed call has read is not read again.

    Args:
        leave_out: recordings that cannot be read again are left out, rather than an error.
        progress: called with every item's name and "renewed" or "failed: …".

    Raises:
        ConfigError: if recordings cannot be read again (the index stays as it is, and the next call begins
            where this ended), or there is no index.
    """
    folder = Path(folder)
    table = open_table(folder)
    read_stamp(table, folder)
    with alone_at(folder):
        migrate(table, folder)
        aside = _open_aside(folder / _RENEWED, embedder)
        done = read_items(aside.table, aside.folder)
        filling = Filling(aside.table, aside.folder, embedder, None)
        report = RenewReport()
        for key, one in read_items(table, folder).items():
            known = done.get(key)
            if known is None or known.item != one.item:
                try:
                    filling.renew(one, _said_in(table, folder, key))
                except (MediaError, OSError) as error:
                    cause = " ".join(str(error).split())
                    report.lost.append((one.item.shown, cause))
                    progress(one.item.shown, f"failed: {cause}")
                    continue
            report.renewed.append(one.item.shown)
            progress(one.item.shown, "renewed")
        if report.lost and not leave_out:
            raise ConfigError(
                f"{len(report.lost)} of {len(report.lost) + len(report.renewed)} recordings cannot be read "
                f"again, so index {folder} stays as it is; the first: {report.lost[0][1]}: bring them back, "
                "or give --leave-out"
            )
        delete_items(aside.table, aside.folder, sorted(set(done) - set(read_items(table, folder))))
        compact(replace_table(folder, aside.table), folder)
        shutil.rmtree(folder / _RENEWED)
    return report


def _open_aside(folder: Path, embedder: Embedder) -> Index:
    """The index that is being filled; one of another model, from an earlier call, is begun anew."""
    if exists(folder):
        try:
            return Index.open(folder, embedder)
        except ConfigError:
            return Index.open(folder, embedder, rebuild=True)
    return Index.open(folder, embedder)


def _said_in(table: object, folder: Path, item_id: str) -> list[Segment]:
    where = f"item_id = {quoted(item_id)} AND modality = {quoted(SAID)}"
    rows = read_columns(table, ["start", "end", "text", "words"], folder, where).to_pylist()
    rows.sort(key=lambda row: (row["start"], row["end"]))
    return [Segment(row["start"], row["end"], row["text"], _words(row["words"])) for row in rows]


def _words(stored: Iterable[dict] | None) -> tuple[Word, ...]:
    return tuple(Word(word["start"], word["end"], word["text"]) for word in stored or ())


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
