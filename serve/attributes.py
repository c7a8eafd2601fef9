"""Names, descriptions and attributes of recordings, from the command line and from a table."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.search.expressions import parse_value
from mllm.search.items import Item, Value, check_attributes

_FILE, _NAME, _DESCRIPTION = "file", "name", "description"  # columns that are not attributes


class Attributes:
    """Builds items from paths, as `make_item` of `Index.add`.

    Args:
        table: JSONL or CSV with a row for each recording: `file` (relative to the table), optionally `name`
            to display instead of the path, `description`, and the attributes. Empty cells and nulls are
            skipped.
        common: key=value, attributes of every recording; the table takes precedence.

    Raises:
        ConfigError: with the row, if the table cannot be read, lists a file twice or has an invalid value.
    """

    def __init__(self, table: Path | None = None, common: Sequence[str] = ()):
        self.table = table
        self.common = dict(map(_pair, common))
        check_attributes(self.common, "--attribute")
        self.rows = {} if table is None else _read(table)
        self.used: set[str] = set()

    def item(self, path: Path) -> Item:
        """Builds the item of a file; without any attributes given, the index keeps those it has."""
        self.used.add(str(path))
        found = self.rows.get(str(path))
        if found is None:
            return Item(path, attributes=self.common or None)
        return replace(found, source=path, attributes=self.common | dict(found.attributes or {}))

    def unused(self) -> list[str]:
        """Files of the table that `item` was not called for."""
        return [path for path in self.rows if path not in self.used]


def _pair(word: str) -> tuple[str, Value]:
    key, sign, value = word.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--attribute '{word}' is no attribute: write key=value")
    return key.strip(), parse_value(value.strip())


def _read(table: Path) -> dict[str, Item]:
    """Reads the items of a table, by absolute path."""
    found: dict[str, Item] = {}
    folder = Path(os.path.abspath(table)).parent
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --attributes {table}: {error}") from None
    read = _of_csv if table.suffix.lower() == ".csv" else _of_jsonl
    for where, row in read(table, io.StringIO(text, newline="")):
        file, name, description = (row.pop(column, None) for column in (_FILE, _NAME, _DESCRIPTION))
        if not isinstance(file, str) or not file:
            raise ConfigError(f"{where}: a row names its recording in '{_FILE}', relative to the table")
        for what, text in ((_NAME, name), (_DESCRIPTION, description)):
            if not (text is None or isinstance(text, str)):
                raise ConfigError(f"{where}: the {what} {text!r:.80} is not text")
        check_attributes(row, where)
        path = os.path.normpath(folder / file)
        if path in found:
            raise ConfigError(f"{where}: {file} has a row already: join the two")
        found[path] = Item(path, name, row, description=description)
    return found


def _of_jsonl(table: Path, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        where = f"{table} row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {error}; a table in CSV is named .csv") from None
        if not isinstance(row, Mapping):
            raise ConfigError(f"{where} is no object of names and values")
        yield where, {key: value for key, value in row.items() if value is not None}


def _of_csv(table: Path, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields rows; a column is numeric or boolean if all its cells are, otherwise its values are strings."""
    reader = csv.DictReader(lines, strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ConfigError(f"{table} line {reader.reader.line_num} is not CSV: {error}") from None
    columns = reader.fieldnames or []
    if _FILE not in columns:
        raise ConfigError(
            f"{table} has no column '{_FILE}', but {', '.join(map(repr, columns)) or 'no header'}"
        )
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{table} has two columns of one name: {', '.join(map(repr, columns))}")
    kinds = {
        column: {type(parse_value(row[column])) for row in rows if row[column]}
        for column in columns
        if column not in (_FILE, _NAME, _DESCRIPTION)
    }
    typed = {column for column, found in kinds.items() if found <= {int, float} or found == {bool}}
    for number, row in enumerate(rows, 2):
        where = f"{table} row {number}"
        if None in row:
            raise ConfigError(f"{where} has more cells than the header")
        cells = {column: cell for column, cell in row.items() if cell}
        yield where, {key: parse_value(cell) if key in typed else cell for key, cell in cells.items()}
