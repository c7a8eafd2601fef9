"""Checks the rows of record files, each alone (JSON, messages, options, tags) and together (ids).

The first half of `check.py`, with the types shared by both halves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.check_media import MediaFacts, Severity
from data_prep.tags import FOREIGN, TAG
from mllm.errors import RecordError
from mllm.files import open_ordinary
from mllm.records.chat import PLACEHOLDERS, SPECIAL_TOKENS
from mllm.records.chat_form import escape
from mllm.records.conversation import TextPart
from mllm.records.record import decode_row, parse_row, validate_record
from mllm.scores import exact_match, normalise

LETTER = re.compile(r"^\(?[A-Za-z0-9]{1,2}[.):]\s+")  # of an option
# Files that are not splits: derived from others, or beside them.
DERIVED = (".fixed.jsonl", ".subtitled.jsonl")
BESIDE = ("transcripts.jsonl", "pairs.jsonl")
UNREAD = (
    "videos",
    "audios",
    "images",
    "video",
    "audio",
    "image",
    "conversations",
)  # media fields of other formats


@dataclass(frozen=True)
class Finding:
    """A problem in a row or its recording.

    Attributes:
        severity: `error` if training or scoring would fail or be wrong, `warning` if it may be intended.
        kind: a short name, shared by all findings of this kind.
        file, row: location; rows count from 1.
        what: a one-line description with the remedy.
        media: the recording concerned.
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
    """A line of a record file; `record` is None if it is invalid."""

    file: Path
    number: int
    record: dict[str, Any] | None = None

    def media(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(kind, path, options) of each recording, in order."""
        parts = self.record["messages"].media if self.record is not None else []
        return [(part.modality, part.source, part.options) for part in parts]


@dataclass
class Checked:
    """The result of a check.

    Attributes:
        rows: all non-blank lines of all files.
        facts: by recording (see `key_of`).
        shared: for each recording used by several files, file -> its paths there.
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
    """Record files at these paths, without duplicates; and files in folders that are not splits.

    Raises:
        RecordError: a path has no record file.
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
    return list(files.values()), [file for path, file in passed.items() if path not in files]


def read_rows(file: Path, checked: Checked) -> list[Row]:
    """Reads a file and checks each of its rows.

    Raises:
        RecordError: it has no rows.
    """
    rows = list(_read(file, checked))
    if not rows:
        raise RecordError(f"{file} holds no records: write at least one row")
    for row in rows:
        if row.record is not None:
            _check_answer(row.record, row, checked)
            _check_text(row.record, row, checked)
    _check_labels(rows, checked)
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
    """Finds duplicate ids within a file, and missing ones."""
    first: dict[tuple[Path, str], Row] = {}  # splits may use the same ids
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
    said = _said(record)
    if options == []:
        checked.add("warning", "no options", row, "'options' is empty: name them, or leave it out")
    if options:
        _check_options(options, row, checked)
    known = [normalise(option) for option in options or ()]  # as answers are compared
    if options and answer is not None and normalise(answer) not in known:
        checked.add(
            "error", "answer not an option", row, f"answer {answer!r} is not among the options: {options}"
        )
    elif (
        options
        and "answer" not in record
        and said is not None
        and not any(_says(said, option) for option in known)
    ):
        checked.add(
            "error", "answer not an option", row, f"the assistant says {said!r}, no option: {options}"
        )
    if answer is not None and said is not None and normalise(said) != normalise(answer):
        checked.add("warning", "answer not said", row, f"'answer' is {answer!r}, the assistant says {said!r}")
    truth = _truth(record)
    if truth is not None and not exact_match(escape(truth, SPECIAL_TOKENS), truth):
        blank = "empty" if not truth.strip() else "nothing but punctuation"
        what = "a special token of ours, which no answer holds" if normalise(truth) else blank
        checked.add(
            "warning" if answer is None else "error", "never right", row,
            f"the answer {truth!r} is {what}: exact match calls every answer to it wrong; write it in words",
        )  # fmt: skip


def _says(said: str, option: str) -> bool:
    """Whether an answer contains an option as whole words, in scripts that separate them."""
    letter = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uffff]"  # not of Thai, Khmer, Chinese …
    return bool(re.search(rf"(?<!{letter}){re.escape(option)}(?!{letter})", normalise(said)))


def _check_options(options: list[str], row: Row, checked: Checked) -> None:
    """Finds options that are equal, exactly or when normalised."""
    if len(set(options)) < len(options):
        checked.add(
            "error", "options alike", row, "two options are the same text: drop one or tell them apart"
        )
        return
    plain: dict[str, str] = {}
    for option in options:
        words = normalise(LETTER.sub("", option))
        if words in plain:
            what = f"{plain[words]!r} and {option!r} say the same"
            checked.add("warning", "options alike", row, f"{what}: drop one or tell them apart")
        plain.setdefault(words, option)


def _check_labels(rows: Sequence[Row], checked: Checked) -> None:
    """Finds labels that serve as answers in their set but are not among its options.

    A set is all rows of one task with the same options. Labels need not be what a question asks for, so a set
    is checked only if the label named like the task is the answer in at least half of it.
    """
    sets: dict[tuple[str, tuple[str, ...]], list[tuple[Row, Any]]] = defaultdict(list)
    for row in rows:
        record = row.record or {}
        label = (record.get("labels") or {}).get(record.get("task"))
        if record.get("options") and isinstance(label, str):
            sets[record["task"], tuple(sorted(record["options"]))].append((row, label))
    for (task, options), labelled in sets.items():
        answers = sum(label == _truth(row.record or {}) for row, label in labelled)
        for row, label in labelled if 2 * answers >= len(labelled) else ():
            if label not in options:
                what = f"label {label!r} is not among the options: {list(options)}"
                what = f"{what}; in other rows with these the label {task!r} is the answer"
                checked.add("warning", "label not in the set", row, what)


def _truth(record: dict[str, Any]) -> str | None:
    answer = record.get("answer")
    return _said(record) if answer is None else answer


def _said(record: dict[str, Any]) -> str | None:
    """The text of the last assistant turn; None if there is none."""
    turns = [turn for turn in record["messages"] if turn.role == "assistant"]
    return turns[-1].text if turns else None


def _check_text(record: dict[str, Any], row: Row, checked: Checked) -> None:
    """Finds media given in other formats, which would be ignored."""
    media = record["messages"].media
    # A single name beside media in the messages may be metadata, as in Flickr8k's records.
    if unread := [key for key in UNREAD if record.get(key) and not (media and key in PLACEHOLDERS)]:
        checked.add(
            "error", "media not read", row,
            f"{unread[0]!r} beside the messages is not read: media are parts of the messages here, "
            "`mllm data import chats` makes them so",
        )  # fmt: skip
        return
    texts = [
        part.text
        for turn in record["messages"]
        for part in turn.parts
        if turn.role == "user" and isinstance(part, TextPart)
    ]
    tags = [tag[0].strip() for text in texts for tag in TAG.finditer(text)]
    if tags:
        checked.add(
            "error" if media else "warning", "tag in a text", row,  # without media it may speak of HTML
            f"{len(tags)} tag(s) such as {tags[0]} in its text, {media} media beside it: media are parts of "
            "their own here, `mllm data import chats` turns tags into them",
        )  # fmt: skip
    elif foreign := [tag[0] for text in texts for tag in FOREIGN.finditer(text)]:
        checked.add(
            "warning", "placeholder in a text", row,
            f"{len(foreign)} placeholder(s) of another model such as {foreign[0]} in its text, read as text: "
            "media are parts of their own here",
        )  # fmt: skip
