"""Annotation files as rows, whatever they are written in: JSON arrays, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.errors import RecordError


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


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of one file.

    Args:
        columns: of a CSV file without a header.

    Raises:
        RecordError: naming file, row and remedy.
    """
    text = read_text(path)
    if path.suffix.lower() in {".csv", ".tsv"}:
        yield from _csv_rows(path, text, columns)
    elif path.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        yield from _json_rows(path, text)
    else:
        raise RecordError(f"{path}: annotations are read from .json, .jsonl, .csv, .tsv and .txt files")


def read_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        RecordError: if it is something else.
    """
    whole = _parse(read_text(path), path.name)
    if not isinstance(whole, dict):
        raise RecordError(f"{path.name}: must be one JSON object, not {type(whole).__name__}")
    return whole


def read_text(path: Path) -> str:
    """A text file as UTF-8, or as cp949, in which some mirrors keep theirs.

    Raises:
        RecordError: if it is not there, or neither.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such annotation file") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    for encoding in ("utf-8-sig", "cp949"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise RecordError(f"{path}: is not text in UTF-8: save it as UTF-8")


def _csv_rows(path: Path, text: str, columns: list[str] | None) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), fieldnames=columns, delimiter=delimiter)
    try:
        for row in reader:
            where = f"{path.name} line {reader.line_num}"
            if None in row or None in row.values():
                wanted = len(reader.fieldnames or ())
                got = len([value for key, value in row.items() if key and value is not None])
                raise RecordError(
                    f"{where}: {got + len(row.get(None) or [])} columns where {wanted} were announced: "
                    "put quotation marks around text with commas"
                )
            yield Row({key.strip(): value for key, value in row.items()}, where)
    except csv.Error as error:
        raise RecordError(f"{path.name} line {reader.line_num}: not CSV ({error})") from None


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    if path.suffix.lower() == ".json" and text.lstrip()[:1] == "[":
        for number, fields in enumerate(_parse(text, path.name), start=1):
            yield _row(fields, f"{path.name} row {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also ends lines inside strings
        if line.strip():
            where = f"{path.name} row {number}"
            yield _row(_parse(line, where), where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{where}: not JSON ({error.msg}, line {error.lineno} column {error.colno})"
        ) from None


def _row(fields: Any, where: str) -> Row:
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: a row must be an object, not {type(fields).__name__}")
    return Row(fields, where)
