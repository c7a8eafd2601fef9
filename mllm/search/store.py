"""The LanceDB table of an index. Private to `index`."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from mllm.errors import ConfigError
from mllm.search.guard import (
    TABLE,
    alone_at,
    damaged,
    require_writable,
    store_errors,
    table_path,
    unwritable,
)
from mllm.search.words import STOP_WORDS

_log = logging.getLogger(__name__)

_STAMP = b"mllm"
_STAMPED = {"model": str, "stamp": str, "dim": int, "created": str}
# Earlier tables, without items, have these names for columns …
_FORMERLY = {"item_id": "media_id", "source": "path"}
# … and earlier tables lack some of these.
_ADDED = ("name", "attributes", "duration", "kind", "said_by", "text", "words")
_WORDS_INDEX = "words_of_text"
_WORD = [("start", pa.float64()), ("end", pa.float64()), ("text", pa.string())]


def exists(folder: str | Path) -> bool:
    """Whether there is an index, possibly damaged, in the folder."""
    try:
        os.lstat(table_path(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:  # no permission: opening the index reports it
        return True
    return True


def open_table(folder: Path) -> Any:
    """The table in `folder`.

    Raises:
        ConfigError: if there is none, or it cannot be opened.
    """
    if not exists(folder):
        raise ConfigError(f"there is no index in {folder}: make one with mllm index add DIR --index {folder}")
    if os.path.isdir(table_path(folder)) and not os.access(table_path(folder), os.R_OK | os.X_OK):
        raise ConfigError(f"no permission to read index {folder}: change its mode or owner")
    with store_errors(folder):
        return _lancedb().connect(folder).open_table(TABLE)


def create_table(folder: Path, stamp: Mapping[str, Any], rebuild: bool) -> Any:
    """Creates an empty table, or opens one that another process has created in the meantime.

    Args:
        stamp: the keys of `read_stamp`.
        rebuild: remove an existing table first, whatever state it is in.

    Raises:
        ConfigError: if the folder cannot be written, or holds a table that mllm did not create.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_at(folder):
            if rebuild and exists(folder):
                _take_away(folder)
            schema = _schema(stamp["dim"]).with_metadata({_STAMP: json.dumps(stamp).encode()})
            with store_errors(folder):
                table = _lancedb().connect(folder).create_table(TABLE, schema=schema, exist_ok=True)
                _index_words(table)
                return table
    except OSError as error:
        raise ConfigError(unwritable(folder, error.errno or errno.EACCES)) from error


def read_stamp(table: Any, folder: Path) -> dict[str, Any]:
    """Which model filled the table: "model", "stamp", "dim", "created".

    Raises:
        ConfigError: if mllm did not create it, or it is damaged.
    """
    with store_errors(folder):
        written = (table.schema.metadata or {}).get(_STAMP)
        if written is None and _is_foreign(table):
            raise ConfigError(f"{folder} was not made by mllm: name another folder with --index")
    try:
        found = json.loads(written or b"")
        return {key: kind(found[key]) for key, kind in _STAMPED.items()}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(damaged(folder, "its stamp cannot be read")) from None


def read_columns(table: Any, names: Sequence[str], folder: Path, where: str | None = None) -> pa.Table:
    """These columns of all rows, or of those that meet a condition; null for a column that does not exist."""
    with store_errors(folder):
        query = table.search() if where is None else table.search().where(where)
        found = query.select(stored_as(table, names)).limit(max(table.count_rows(), 1)).to_arrow()
    columns = {
        name: found[name] if name in found.schema.names else pa.nulls(len(found), pa.string())
        for name in names
    }
    if "attributes" in columns:  # Arrow cannot compare or group by its JSON type
        columns["attributes"] = columns["attributes"].cast(pa.string())
    return pa.table(columns)


def sample_rows(table: Any, folder: Path, names: Sequence[str], count: int) -> pa.Table:
    """These columns of that many rows, drawn with a fixed seed, or of all if there are no more."""
    with store_errors(folder):
        rows = table.count_rows()
        if rows <= count:
            return read_columns(table, names, folder)
        drawn = np.sort(np.random.default_rng(0).choice(rows, count, replace=False)).tolist()
        return table.take_offsets(drawn).select(list(names)).to_arrow()


def nearest(
    table: Any, folder: Path, vector: Any, where: str, names: Sequence[str], k: int
) -> list[dict[str, Any]]:
    """The k rows with the largest dot product, compared with every row that meets a condition.

    Returns:
        The named columns of each row, and "_distance", 1 minus the product.
    """
    with store_errors(folder):
        found = (
            table.search(vector, vector_column_name="vector")
            .distance_type("dot")
            .bypass_vector_index()
            .where(where, prefilter=True)
            .select(stored_as(table, names) | {"_distance": "_distance"})
            .limit(k)
            .to_arrow()
        )
        return found.to_pylist()


def with_words(
    table: Any, folder: Path, words: str, where: str, names: Sequence[str], k: int
) -> list[dict[str, Any]]:
    """The k texts that fit best by BM25, of those that have any of the words and meet a condition.

    Returns:
        The named columns of each row, and "_score"; nothing from a table that has no full-text index yet.
    """
    with store_errors(folder):
        if not _has_words(table):
            return []
        found = (
            table.search(words, query_type="fts", fts_columns="text")
            .where(where, prefilter=True)
            .select([*names, "_score"])
            .limit(k)
            .to_arrow()
        )
        return found.to_pylist()


def replace_item(table: Any, folder: Path, item_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces all rows of an item in one transaction."""
    schema = _schema(table.schema.field("vector").type.list_size)
    written = pa.Table.from_pylist(rows, schema=schema)
    with store_errors(folder):
        (
            table.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(f"item_id = {quoted(item_id)}")
            .execute(written)
        )


def replace_table(folder: Path, other: Any) -> Any:
    """Puts the rows and the stamp of another table in the place of those in `folder`, in one transaction."""
    with store_errors(folder):
        rows = other.search().limit(max(other.count_rows(), 1)).to_batches()
        connection = _lancedb().connect(folder)
        table = connection.create_table(TABLE, data=rows, schema=other.schema, mode="overwrite")
        _index_words(table)
        return table


def delete_items(table: Any, folder: Path, ids: Sequence[str]) -> None:
    """Deletes all rows of these items."""
    for first in range(0, len(ids), 500):
        with store_errors(folder):
            table.delete(f"item_id IN ({', '.join(map(quoted, ids[first : first + 500]))})")


def compact(table: Any, folder: Path) -> None:
    """Merges small files of the table, and removes old versions."""
    with store_errors(folder):
        # Readers may still use a recent version.
        table.optimize(cleanup_older_than=timedelta(hours=1))


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def stored_as(table: Any, names: Iterable[str]) -> dict[str, str]:
    """name -> its column in this table, for `select`; without names that it does not have."""
    there = set(table.schema.names)
    columns = {name: name if name in there else _FORMERLY.get(name, name) for name in names}
    return {name: column for name, column in columns.items() if column in there}


def migrate(table: Any, folder: Path) -> None:
    """Adds the present columns to a table of an earlier version; no vector is rewritten.

    Every step is one transaction and leaves a readable table, so a process killed between two steps only has
    to call this again. Reading never needs this: see `stored_as`.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    require_writable(folder)
    with store_errors(folder):
        table.checkout_latest()  # another process may have migrated it
        there = set(table.schema.names)
        renamed = [{"path": old, "rename": new} for new, old in _FORMERLY.items() if old in there]
        added = [_schema(1).field(name) for name in _ADDED if name not in there]
        if renamed:
            table.alter_columns(*renamed)
        if added:
            table.add_columns(added)
        if table.count_rows("kind IS NULL"):
            _fill_kinds(table)
        _index_words(table)
    if added:
        _log.info("index %s was made by an earlier version: its table was migrated", folder)


def _fill_kinds(table: Any) -> None:
    """Fills the columns `duration` and `kind` of rows from before there were any."""
    rows = table.search().select(["id", "item_id", "modality", "end"]).limit(table.count_rows()).to_arrow()
    found = rows.group_by("item_id").aggregate([("end", "max"), ("modality", "distinct")]).to_pylist()
    items = {row["item_id"]: (row["end_max"], kind_of(row["modality_distinct"])) for row in found}
    durations, kinds = zip(*(items[item_id] for item_id in rows["item_id"].to_pylist()), strict=True)
    filled = pa.table({"id": rows["id"], "duration": pa.array(durations), "kind": pa.array(kinds)})
    table.merge_insert("id").when_matched_update_all().execute(filled)


def _index_words(table: Any) -> None:
    """Makes the full-text index over the column `text`, unless there is one.

    Rows that it does not cover yet are searched as well; `compact` brings it up to date.
    """
    if _has_words(table):
        return
    from lancedb.index import FTS

    # ICU finds the words of scripts without spaces; its own stop words are those of all languages together.
    config = FTS(base_tokenizer="icu/split", custom_stop_words=list(STOP_WORDS))
    table.create_index("text", config=config, name=_WORDS_INDEX)


def _take_away(folder: Path) -> None:
    """Removes the table; overwriting it would read it, which fails if it is damaged."""
    path, foreign = table_path(folder), False
    with suppress(ConfigError):
        table = open_table(folder)
        with store_errors(folder):
            foreign = _is_foreign(table)
    if foreign:
        raise ConfigError(f"{folder} was not made by mllm: name another folder with --index")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@cache
def _lancedb() -> ModuleType:
    """LanceDB, without its clients for remote catalogues, which take a third of its import time.

    Their package is registered without being executed, so that its submodules can be imported; the first
    access to an attribute executes it.
    """
    name = "lance_namespace_urllib3_client"
    spec = util.find_spec(name)
    if spec is not None and spec.loader is not None and name not in sys.modules:
        package, loader = util.module_from_spec(spec), spec.loader

        def execute(attribute: str) -> object:
            del package.__dict__["__getattr__"]
            loader.exec_module(package)
            return getattr(package, attribute)

        package.__dict__["__getattr__"] = execute
        sys.modules[name] = package
    import lancedb

    return lancedb


def _has_words(table: Any) -> bool:
    return any(index.name == _WORDS_INDEX for index in table.list_indices())


def kind_of(modalities: Iterable[str]) -> str:
    """What an item is, by the modalities of its rows: "image", "video" (without sound), "audio" or "both"."""
    found = set(modalities)
    if "image" in found:
        return "image"
    if "both" in found or {"video", "audio"} <= found:
        return "both"
    return "video" if "video" in found else "audio"


def _is_foreign(table: Any) -> bool:
    ours = _schema(1).names
    return not {*ours} - {*_ADDED} <= set(stored_as(table, ours))


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("name", pa.string()),
            pa.field("source", pa.string()),
            pa.field("attributes", pa.json_()),
            pa.field("modality", pa.string()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("fullest", pa.bool_()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("digest", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("duration", pa.float64()),
            pa.field("kind", pa.string()),
            pa.field("said_by", pa.string()),
            pa.field("text", pa.string()),
            pa.field("words", pa.list_(pa.struct(_WORD))),
        ]
    )
