"""Rows of record files: each alone (JSON, messages, options, tags), then together (ids).

The first half of `check.py`, with what both halves write down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.check_media import MediaFacts
from mllm.chat import PLACEHOLDERS, media_parts
from mllm.errors import RecordError
from mllm.records import decode_row, parse_row, validate_record
from mllm.sources import open_ordinary

Severity = Literal["error", "warning"]
TAG = re.compile(r"<(?:video|audio|image|speech)>")
# Files that are no splits of their own: what was made of others, and what lies beside them.
DERIVED = (".fixed.jsonl", ".subtitled.jsonl")
BESIDE = ("transcripts.jsonl", "pairs.jsonl")
UNREAD = ("videos", "audios", "images", "video", "audio", "image", "conversations")  # media of other forms


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        severity: `error`: training or scoring would fail, or be wrong. `warning`: it may be meant.
        kind: a short name for all findings of its sort.
        file, row: where, the row from 1.
        what: in a line, with the remedy.
        media: the recording that it is about.
    """

    severity: Severity
    kind: str
    file: str
    row: int
    what: str
    id: str | None = None
    media: str | None = None


@dataclass
class Row:
    """A line of a record file; `record` is None where it is none."""

    file: Path
    number: int
    record: dict[str, Any] | None = None

    def media(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(kind, path, options) of each recording, in order."""
        return media_parts(self.record["messages"]) if self.record is not None else []


@dataclass
class Checked:
    """The result of a check.

    Attributes:
        rows: all lines of all files that are not blank.
        facts: by recording (see `key_of`).
        shared: recordings that several files ask about: for each, file -> its paths there.
    """

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, MediaFacts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    shared: list[dict[Path, set[str]]] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, row: Row, what: str, media: str | None = None) -> None:
        id, what = (row.record or {}).get("id"), " ".join(what.splitlines())
        self.findings.append(Finding(severity, kind, str(row.file), row.number, what, id, media))

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def record_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Record files, and those in folders, each once; and files in folders that were made of others.

    Raises:
        RecordError: there is none.
    """
    files: dict[Path, Path] = {}
    passed: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else []
        made = [file for file in inside if file.name.endswith(DERIVED) or file.name in BESIDE]
        found = [file for file in inside if file not in made]
        found = found or ([path] if path.exists() and not path.is_dir() else [])
        if not found:
            raise RecordError(f"{path}: no record file: give a .jsonl file, or a folder that holds some")
        for known, more in ((files, found), (passed, made)):
            for file in more:
                known.setdefault(file.resolve(), file)
    return list(files.values()), [file for place, file in passed.items() if place not in files]


def read_rows(file: Path, checked: Checked) -> list[Row]:
    """Reads a file, and looks at each of its rows alone.

    Raises:
        RecordError: it has none.
    """
    rows = list(_read(file, checked))
    if not rows:
        raise RecordError(f"{file} holds no records: write at least one row")
    for row in rows:
        if row.record is not None:
            _check_answer(row.record, row, checked)
            _check_text(row.record, row, checked)
    return rows


def _read(file: Path, checked: Checked) -> Iterator[Row]:
    with open_ordinary(file, error=RecordError) as content:
        lines = content.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row, kind = Row(file, number), "not text"
        try:
            text, kind = decode_row(line, "row"), "not JSON"
            value, kind = parse_row(text, "row"), "not a record"
            row.record = validate_record(value, "row", file.parent, media_must_exist=False)
        except RecordError as error:
            checked.add("error", kind, row, str(error).removeprefix("row: "))
        yield row


def check_ids(checked: Checked) -> None:
    """Looks for ids that come twice in a file, or not at all."""
    first: dict[tuple[Path, str], Row] = {}  # splits may count alike
    for row in checked.rows:
        id = (row.record or {}).get("id")
        if row.record is not None and id is None:
            checked.add("warning", "no id", row, "no id: scores and phrasings go by it")
        elif id is not None and first.setdefault((row.file, id), row) is not row:
            earlier = first[row.file, id]
            same = "the same record" if earlier.record == row.record else "another record"
            where = f"{earlier.file} row {earlier.number}"
            checked.add("error", "id twice", row, f"id {id!r} is that of {where}, {same}: give it its own")


def _check_answer(record: dict[str, Any], row: Row, checked: Checked) -> None:
    options, answer = record.get("options"), record.get("answer")
    spoken = [
        "".join(part["text"] for part in message["content"])
        for message in record["messages"]
        if message["role"] == "assistant"
    ]
    if options == []:
        checked.add("warning", "no options", row, "'options' is empty: name them, or leave it out")
    if options is not None and len(set(options)) < len(options):
        checked.add(
            "error", "options alike", row, "two options are the same text: drop one or tell them apart"
        )
    if options and answer is not None and answer not in options:
        checked.add(
            "error", "answer not an option", row, f"answer {answer!r} is not among the options: {options}"
        )
    elif options and "answer" not in record and spoken and not any(text in spoken[-1] for text in options):
        checked.add(
            "error", "answer not an option", row, f"the assistant says {spoken[-1]!r}, no option: {options}"
        )
    label = (record.get("labels") or {}).get(record.get("task"))
    if options and label is not None and label not in options:
        checked.add(
            "error", "label not in the set", row, f"label {label!r} is not among the options: {options}"
        )
    if answer is not None and spoken and spoken[-1].strip() != answer.strip():
        checked.add(
            "warning", "answer not said", row, f"'answer' is {answer!r}, the assistant says {spoken[-1]!r}"
        )


def _check_text(record: dict[str, Any], row: Row, checked: Checked) -> None:
    """Media of other forms, which nobody would read here."""
    media = len(media_parts(record["messages"]))
    # A single name beside media in the messages may say what they belong to, as in Flickr8k's records.
    if unread := [key for key in UNREAD if record.get(key) and not (media and key in PLACEHOLDERS)]:
        checked.add(
            "error", "media not read", row,
            f"{unread[0]!r} beside the messages is not read: media are parts of the messages here, "
            "`mllm data import chats` makes them so",
        )  # fmt: skip
        return
    texts = [
        part["text"]
        for message in record["messages"]
        for part in message["content"]
        if message["role"] == "user" and "text" in part
    ]
    tags = [tag for text in texts for tag in TAG.findall(text)]
    if tags:
        checked.add(
            "error" if media else "warning", "tag in a text", row,  # without media it may speak of HTML
            f"{len(tags)} tag(s) such as {tags[0]} in its text, {media} media beside it: media are parts of "
            "their own here, `mllm data import chats` turns tags into them",
        )  # fmt: skip
