"""Annotation files as rows, whatever they are written in: JSON arrays, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from mllm.errors import RecordError
from mllm.records import parse_row
from mllm.sources import open_ordinary

DELIMITERS = (",", "\t", ";", "|")
SAMPLE = 50  # rows that are looked at to tell the delimiter


class Row(dict[str, Any]):
    """One annotation: its fields, and where it stands."""

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
            RecordError: it holds something else, or is not there.
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


def rows_of(path: Path, text: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of one file.

    Args:
        text: what `read_text` gives of it.
        columns: of a CSV file without a header.

    Raises:
        RecordError: naming file, row and remedy.
    """
    if path.suffix.lower() in {".csv", ".tsv"}:
        yield from _csv_rows(path, text, columns)
    elif path.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        yield from _json_rows(path, text)
    else:
        raise RecordError(f"{path}: annotations are read from .json, .jsonl, .csv, .tsv, .txt and .srt files")


def object_of(path: Path, text: str) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        RecordError: if it is something else.
    """
    whole = _parse(text, path.name)
    if not isinstance(whole, dict):
        raise RecordError(f"{path.name}: must be one JSON object, not {type(whole).__name__}")
    return whole


def read_text(path: Path, encoding: str | None = None) -> tuple[str, str]:
    """(text, encoding) of a file in UTF-8, or else in `encoding`.

    Without one it is guessed: cp1252, as Excel saves, or cp949, in which some mirrors keep theirs.

    Raises:
        RecordError: if it cannot be read, or is in none of these.
    """
    with open_ordinary(path, error=RecordError) as file:
        data = file.read()
    with suppress(UnicodeDecodeError):
        if b"\0" not in data:
            return data.decode("utf-8-sig"), "utf-8"
    if b"\0" in data:  # UTF-16, or no text at all
        raise RecordError(f"{path}: is not text in UTF-8: save it as UTF-8")
    # Korean characters take two bytes, so that runs of them are even; accents and quotes stand alone.
    runs = re.findall(rb"[\x80-\xff]+", data)
    western = 2 * sum(len(run) % 2 for run in runs) > len(runs)
    guessed = ("cp1252", "cp949") if western else ("cp949", "cp1252")
    for name in (encoding,) if encoding else guessed:
        with suppress(UnicodeDecodeError):
            return data.decode(name), name
    raise RecordError(f"{path}: is not text in UTF-8: save it as UTF-8")


def _csv_rows(path: Path, text: str, columns: list[str] | None) -> Iterator[Row]:
    lines = list(io.StringIO(text, newline=""))  # splitlines also ends lines inside values
    before = 0
    if lines and (told := re.fullmatch(r"sep=(.)\s*", lines[0])):  # as Excel writes it
        form, before = {"delimiter": told[1]}, 1
    else:
        form = _form_of(path, lines, len(columns or ()))
    reader = csv.DictReader(lines[before:], fieldnames=columns, strict=True, **form)
    try:
        for row in reader:
            where = f"{path.name} line {before + reader.line_num}"
            extra = row.pop(None, None) or []
            given = [value for value in row.values() if value is not None]
            if not extra and not "".join(given).strip():
                continue  # a line of blanks
            if extra or len(given) < len(row):
                mark = {",": "commas", "\t": "tabs"}.get(form["delimiter"], f"'{form['delimiter']}'")
                remedy = f"put quotation marks around text with {mark}" if extra else "write empty ones, too"
                raise RecordError(
                    f"{where}: {len(given) + len(extra)} columns where {len(row)} were announced: {remedy}"
                )
            yield Row({key.strip(): value for key, value in row.items()}, where)
    except csv.Error as error:
        where, remedy = (
            f"{path.name} line {before + reader.line_num}",
            "write a quotation mark in a value twice",
        )
        raise RecordError(f'{where}: not CSV ({error}): {remedy} ("")') from None


def _form_of(path: Path, lines: list[str], fields: int) -> dict[str, Any]:
    """How the values of a table are told apart, as its header and first rows show, not its name.

    Args:
        fields: how many there are, where no header says it.
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
    """Whether quotation marks in a table with tabs stand around values, and not for themselves."""
    rows = csv.reader(lines, delimiter="\t", strict=True)
    try:
        widths = {len(row) for row in rows if row}
    except csv.Error:
        return False
    return len(widths) <= 1 or '"' not in "".join(lines)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    """An array, or an object in each line, whichever the file is called; or one object over many lines."""
    begin = text.lstrip()
    if not begin:
        return
    if begin[0] == "[":
        for number, fields in enumerate(_parse(text, path.name), start=1):
            yield _row(fields, f"{path.name} row {number}")
        return
    try:
        json.loads(begin.partition("\n")[0])
    except (ValueError, RecursionError):
        yield _row(_parse(text, path.name), f"{path.name} (one object, not rows)")
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also ends lines inside strings
        if line.strip():
            where = f"{path.name} row {number}"
            yield _row(_parse(line, where), where)


def _parse(text: str, where: str) -> Any:
    return parse_row(text, where, "write one array, or an object in each line")


def _row(fields: Any, where: str) -> Row:
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: a row must be an object, not {type(fields).__name__}")
    return Row(fields, where)
