"""`mllm data check`: what training would stumble over, found before it begins.

First each row alone (JSON, messages, options), then rows together (ids, splits), then every recording once,
in worker processes, and last what the rows ask of their recordings (picture, sound, span). Nothing stops at
the first fault; a recording that hangs or crashes a decoder costs one worker.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.check_media import LONGEST, MediaFacts, look
from data_prep.engine import Engine, ProcessDied, run
from mllm.chat import media_parts
from mllm.errors import RecordError
from mllm.records import validate_record

Severity = Literal["error", "warning"]
TAG = re.compile(r"<(?:video|audio|image|speech)>")
DERIVED = (".fixed.jsonl", ".subtitled.jsonl", "transcripts.jsonl", "pairs.jsonl")  # no splits of their own
CLOSE = 0.05  # s: a span may end so much later than its recording


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
        id = (row.record or {}).get("id")
        self.findings.append(Finding(severity, kind, str(row.file), row.number, what, id, media))

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def record_files(paths: Sequence[Path]) -> list[Path]:
    """Record files, and those in folders, without what was made of another (see DERIVED).

    Raises:
        RecordError: there is none.
    """
    files = []
    for path in paths:
        if path.is_dir():
            found = [file for file in sorted(path.glob("*.jsonl")) if not file.name.endswith(DERIVED)]
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise RecordError(f"{path}: no record file: give a .jsonl file, or a folder that holds some")
        files += found
    return files


def check(
    files: Sequence[Path],
    workers: int | None = None,
    timeout: float = 60.0,
    engine: Engine = "local",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Checked:
    """Checks record files, each a split of its own.

    Args:
        workers: processes that look at recordings; None for one a core.
        timeout: seconds after which a recording counts as hung.
        engine: where recordings are looked at.
        progress: wraps the recordings, given their number.

    Raises:
        RecordError: a file without rows.
    """
    checked = Checked()
    for file in files:
        rows = list(_read(file, checked))
        if not rows:
            raise RecordError(f"{file} holds no records: write at least one row")
        checked.rows += rows
    _check_ids(checked)
    for row in checked.rows:
        if row.record is not None:
            _check_words(row, checked)
    wanted = {key_of(*part): part for row in checked.rows for part in row.media()}
    present = {key: part for key, part in wanted.items() if _local(part[1]) and Path(part[1]).exists()}
    for key, facts in progress(look_at_all(present, workers, timeout, engine), len(present)):
        checked.facts[key] = facts
    for row in checked.rows:
        for kind, path, options in row.media():
            _check_medium(row, kind, path, options, checked)
    _check_overlap(checked)
    order = {str(path): place for place, path in enumerate(files)}
    checked.findings.sort(key=lambda finding: (order[finding.file], finding.row))
    return checked


def _read(file: Path, checked: Checked) -> Iterator[Row]:
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        text = line.decode("utf-8-sig", errors="replace").strip()
        if not text:
            continue
        row = Row(file, number)
        try:
            line.decode("utf-8-sig")
            row.record = validate_record(json.loads(text), "row", file.parent, media_must_exist=False)
        except UnicodeDecodeError:
            checked.add("error", "not text", row, "not UTF-8: save the file as UTF-8")
        except json.JSONDecodeError as error:
            checked.add("error", "not JSON", row, f"not JSON ({error.msg} at column {error.colno})")
        except RecordError as error:
            checked.add("error", "not a record", row, str(error).removeprefix("row: "))
        yield row


def _check_ids(checked: Checked) -> None:
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


def _check_words(row: Row, checked: Checked) -> None:
    record = row.record or {}
    options, answer = record.get("options"), record.get("answer")
    if options is not None and len(set(options)) < len(options):
        checked.add(
            "error", "options alike", row, "two options are the same text: drop one or tell them apart"
        )
    if options and answer is not None and answer not in options:
        checked.add(
            "error", "answer not an option", row, f"answer {answer!r} is not among the options: {options}"
        )
    label = (record.get("labels") or {}).get(record.get("task"))
    if options and label is not None and label not in options:
        checked.add(
            "error", "label not in the set", row, f"label {label!r} is not among the options: {options}"
        )
    spoken = [
        "".join(part["text"] for part in message["content"])
        for message in record["messages"]
        if message["role"] == "assistant"
    ]
    if answer is not None and spoken and spoken[-1].strip() != answer.strip():
        checked.add(
            "warning", "answer not said", row, f"'answer' is {answer!r}, the assistant says {spoken[-1]!r}"
        )
    texts = [
        part["text"]
        for message in record["messages"]
        for part in message["content"]
        if message["role"] == "user" and "text" in part
    ]
    tags = [tag for text in texts for tag in TAG.findall(text)]
    if tags:
        media = len(media_parts(record["messages"]))
        checked.add(
            "error" if media else "warning", "tag in a text", row,  # without media it may speak of HTML
            f"{len(tags)} tag(s) such as {tags[0]} in its text, {media} media beside it: media are parts of "
            "their own here, `mllm data import chats` turns tags into them",
        )  # fmt: skip


def _check_medium(row: Row, kind: str, path: str, options: dict[str, Any], checked: Checked) -> None:
    """Does the recording hold what this row asks of it?"""

    def add(severity: Severity, name: str, what: str) -> None:
        checked.add(severity, name, row, f"{Path(path).name}: {what}", path)

    if not _local(path):
        return
    facts = checked.facts.get(key_of(kind, path, options))
    if facts is None:
        checked.add("error", "not there", row, f"there is no {path}", path)
        return
    if facts.error:
        add("error", "cannot be read", facts.error.removeprefix(f"{path}: "))
        return
    for severity, what in facts.problems:
        add(severity, "damaged" if severity == "error" else what, what)
    if kind in ("video", "image") and not facts.info.get("has_video"):
        add(
            "error",
            f"no picture for {kind}",
            f"asked about as {kind}, but there is no picture in it: say audio",
        )
    if kind == "audio" and not facts.info.get("has_audio"):
        add("error", "no sound for audio", "asked about as audio, but there is no sound in it")
    duration, end = facts.info.get("duration", 0.0), options.get("end")
    if (duration if end is None else end) - (options.get("start") or 0) > LONGEST:
        add(
            "error", "too long", f"it lasts {duration:.0f} s, more than {LONGEST:.0f}: give 'start' and 'end'"
        )
    if not facts.info.get("is_image") and options.get("start") is not None and options["start"] >= duration:
        add("error", "span outside", f"the span begins at {options['start']} s, it lasts {duration:.2f} s")
    elif not facts.info.get("is_image") and end is not None and end > duration + CLOSE:
        add("error", "span too long", f"the span ends at {end} s, it lasts {duration:.2f} s")


def _check_overlap(checked: Checked) -> None:
    """Recordings that more than one file asks about: by path, or the same bytes under another name."""
    if len({row.file for row in checked.rows}) < 2:
        return
    order = {file: place for place, file in enumerate(dict.fromkeys(row.file for row in checked.rows))}
    places: dict[str, dict[Path, Row]] = defaultdict(dict)  # path -> file -> its first row there
    for row in checked.rows:
        for _, path, options in row.media():
            for name in (path, options.get("audio")):
                if name and Path(name).exists():
                    places[name].setdefault(row.file, row)
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in places:
        sizes[Path(path).stat().st_size].append(path)
    contents: dict[str, list[str]] = defaultdict(list)
    for paths in sizes.values():
        for path in paths:
            alike = len(paths) > 1 and Path(path).is_file()  # a folder of frames is known by its path
            contents[_digest(path) if alike else path].append(path)
    for paths in contents.values():
        rows: dict[Path, Row] = {}
        shared: dict[Path, set[str]] = defaultdict(set)
        for path in paths:
            for file, row in places[path].items():
                rows.setdefault(file, row)
                shared[file].add(path)
        first, *others = sorted(rows.values(), key=lambda row: order[row.file])
        for row in others:
            what = f"{Path(paths[0]).name} is asked about in {first.file}, too (row {first.number})"
            checked.add("error", "in two splits", row, what, paths[0])
        if others:
            checked.shared.append(dict(shared))


def look_at_all(
    media: dict[str, tuple[str, str, dict[str, Any]]],
    workers: int | None,
    timeout: float,
    engine: Engine = "local",
    look: Callable[[str, str | None], MediaFacts] = look,
) -> Iterator[tuple[str, MediaFacts]]:
    """Facts of every recording, as they come; a worker that hangs or dies is replaced."""
    items = {key: (path, options.get("audio")) for key, (_, path, options) in media.items()}
    for outcome in run(look, items, engine, workers, timeout):
        if isinstance(outcome.error, TimeoutError):
            hung = f"decoding hung for {timeout:g} s: encode it again or drop it"
            yield outcome.key, MediaFacts(hung)
        elif isinstance(outcome.error, ProcessDied):
            yield outcome.key, MediaFacts("it crashed the decoder: encode it again or drop it")
        else:
            yield outcome.key, outcome.result()


def _local(path: str) -> bool:
    return not path.startswith("data:") and "://" not in path


def key_of(kind: str, path: str, options: dict[str, Any]) -> str:
    """A recording's name among the facts: its path, and that of its separate sound."""
    return f"{path}\n{options['audio']}" if options.get("audio") else path


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
