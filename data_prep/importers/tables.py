"""Annotation files as rows, in any of the usual formats: JSON arrays, JSON lines, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.importers.encodings import decoded
from mllm.errors import RecordError
from mllm.files import open_ordinary
from mllm.records.record import parse_row

DELIMITERS = (",", "\t", ";", "|")
SAMPLE = 50  # rows that are looked at to tell the delimiter

Odd = Callable[[RecordError], None]  # called with the reason for each row that is skipped


class Row(dict[str, Any]):
    """One annotation: its fields and its position in the file."""

    def __init__(self, fields: dict[str, Any], where: str):
        super().__init__(fields)
        self.where = where

    def __missing__(self, field: str) -> Any:
        has = ", ".join(list(self)[:12]) or "nothing"
        raise RecordError(
            f"{self.where}: no field {field!r} (it has {has}): is this the format you named? "
            "`mllm data formats` lists what each needs"
        )

    def text(self, field: str) -> str:
        """A field that holds words, or a number as words.

        Raises:
            RecordError: if it holds something else or is missing.
        """
        value = self[field]
        if not isinstance(value, (str, int, float)) or is_nan(value):
            raise RecordError(
                f"{self.where}: {field} must be text, not {str(value)[:40]}: mend or drop the row"
            )
        return str(value)


def is_nan(value: Any) -> bool:
    """What pandas writes for a cell without a value."""
    return isinstance(value, float) and value != value


def refused(error: RecordError) -> None:
    """Raises the RecordError of a row."""
    raise error


def rows_of(path: Path, text: str, columns: list[str] | None = None, odd: Odd = refused) -> Iterator[Row]:
    """The rows of one file of text.

    Args:
        text: what `read_text` gives of it.
        columns: of a CSV file without a header.
        odd: called with rows that cannot be read.

    Raises:
        RecordError: naming file and remedy.
    """
    if path.suffix.lower() in {".csv", ".tsv"}:
        yield from _csv_rows(path, text, odd, columns)
    elif path.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        yield from _json_rows(path, text, odd)
    else:
        raise RecordError(
            f"{path}: annotations are read from .json, .jsonl, .csv, .tsv, .parquet, .txt and subtitle files"
        )


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        RecordError: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        number = 0
        with open_ordinary(path, error=RecordError) as content, ParquetFile(content) as file:
            for batch in file.iter_batches(batch_size=1000):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, f"{path.name} row {number}")
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise RecordError(f"{path}: cannot be read as Parquet ({reason}): write or fetch it again") from None


def object_of(path: Path, text: str) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        RecordError: if it is something else.
    """
    whole = _parse(text, path.name)
    if not isinstance(whole, dict):
        raise RecordError(f"{path.name}: must be one JSON object, not {type(whole).__name__}")
    return whole


def read_text(path: Path, named: str | None = None, usual: str | None = None) -> tuple[str, str]:
    """(text, encoding) of a file; see `decoded`.

    Raises:
        RecordError: it cannot be read, or its encoding cannot be determined.
    """
    with open_ordinary(path, error=RecordError) as file:
        data = file.read()
    return decoded(data, str(path), named, usual)


def _csv_rows(path: Path, text: str, odd: Odd, columns: list[str] | None) -> Iterator[Row]:
    lines = list(io.StringIO(text, newline=""))  # splitlines also ends lines inside values
    before = next((number for number, line in enumerate(lines) if line.strip()), 0)  # Excel's empty rows
    if lines and (told := re.fullmatch(r"sep=(.)\s*", lines[before])):  # as Excel writes it
        form: dict[str, Any] = {"delimiter": told[1]}
        before += 1
    else:
        form = _form_of(path, lines[before:], len(columns or ()))
    reader: csv.DictReader[str] = csv.DictReader(lines[before:], **form, fieldnames=columns, strict=True)
    _check_header(reader, path, before)
    for row in _checked(reader, path, before, odd):
        where = f"{path.name} line {before + reader.line_num}"
        extra = row.pop(None, None) or []
        given = [value for value in row.values() if value is not None]
        if not extra and not "".join(given).strip():
            continue  # a line of blanks
        if extra or len(given) < len(row):
            mark = {",": "commas", "\t": "tabs"}.get(form["delimiter"], f"'{form['delimiter']}'")
            remedy = f"put quotation marks around text with {mark}" if extra else "write empty ones, too"
            wide = len(given) + len(extra)
            odd(RecordError(f"{where}: {wide} columns where {len(row)} were announced: {remedy}"))
            continue
        yield Row({key.strip(): value for key, value in row.items()}, where)


def _check_header(reader: csv.DictReader, path: Path, before: int) -> None:
    """Raises RecordError if a header cannot be read, or gives two columns one name: one would be lost."""
    try:
        names = Counter(name.strip() for name in reader.fieldnames or ())
    except csv.Error as error:
        raise _not_csv(error, f"{path.name} line {before + reader.line_num}") from None
    if twice := [name for name, count in names.items() if count > 1 and name]:
        raise RecordError(f"{path.name}: two columns are called {twice[0]!r}: rename or drop one")


def _checked(reader: csv.DictReader, path: Path, before: int, odd: Odd) -> Iterator[dict[Any, Any]]:
    """The rows that the csv reader understands; an unclosed quotation mark swallows the rest."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = _not_csv(error, f"{path.name} line {before + reader.line_num}")
            if "end of data" in str(error):
                raise what from None
            odd(what)
            continue
        if row is None:
            return
        yield row


def _not_csv(error: csv.Error, where: str) -> RecordError:
    return RecordError(f'{where}: not CSV ({error}): write a quotation mark in a value twice ("")')


def _form_of(path: Path, lines: list[str], fields: int) -> dict[str, Any]:
    """The delimiter and quoting of a table, from its header and first rows rather than its name.

    Args:
        fields: number of columns, for a table without a header.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    best = (0.0, 0, usual)
    for delimiter in (usual, *(mark for mark in DELIMITERS if mark != usual)):
        try:
            widths = [len(row) for row in islice(csv.reader(lines, delimiter=delimiter), SAMPLE) if any(row)]
        except csv.Error:
            continue
        wanted = fields or (widths[0] if widths else 0)
        if wanted > 1 and wanted in widths:
            alike = sum(width == wanted for width in widths) / len(widths)
            best = max(best, (alike, wanted, delimiter), key=lambda found: found[:2])
    form: dict[str, Any] = {"delimiter": best[2]}
    if best[2] == "\t" and not _quoted_well(lines):
        form["quoting"] = csv.QUOTE_NONE  # as Common Voice and TGIF-QA write: a quotation mark is a letter
    return form


def _quoted_well(lines: list[str]) -> bool:
    """Whether quotation marks in a tab-separated table enclose values rather than being part of them."""
    rows = csv.reader(lines, delimiter="\t", strict=True)
    try:
        widths = {len(row) for row in rows if row}
    except csv.Error:
        return False
    return len(widths) <= 1 or '"' not in "".join(lines)


def _json_rows(path: Path, text: str, odd: Odd) -> Iterator[Row]:
    """An array, an object per line, or one object over many lines, whatever the file's suffix."""
    begin = text.lstrip()
    if not begin:
        return
    if begin[0] == "[":
        for number, fields in enumerate(_parse(text, path.name), start=1):
            yield from _row(fields, f"{path.name} row {number}", odd)
        return
    if not _is_object(begin.partition("\n")[0]):
        try:
            whole = _parse(text, path.name)
        except RecordError:
            if not any(map(_is_object, text.split("\n"))):
                raise
        else:
            yield from _row(whole, f"{path.name} (one object, not rows)", odd)
            return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also ends lines inside strings
        if line.strip():
            where = f"{path.name} row {number}"
            try:
                fields = _parse(line, where)
            except RecordError as error:
                odd(error)
                continue
            yield from _row(fields, where, odd)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, where: str) -> Any:
    return parse_row(text, where, "write one array, or an object in each line")


def _row(fields: Any, where: str, odd: Odd) -> Iterator[Row]:
    if isinstance(fields, dict):
        yield Row(fields, where)
    else:
        odd(RecordError(f"{where}: a row must be an object, not {type(fields).__name__}"))
