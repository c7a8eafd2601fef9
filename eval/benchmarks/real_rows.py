"""Rows of the benchmark `real`: from labelled sets of recordings to questions with options in other words."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eval.question import Question
from mllm.errors import ConfigError
from mllm.records.chat import validate_messages
from mllm.records.record import Record, first_media, read_rows
from mllm.yaml_text import read_yaml

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD = "fsdd"
FSDD_TEST = range(5, 10)  # the recordings of each speaker and digit that configs/digits.yaml holds out


@dataclass(frozen=True)
class Row:
    """A task: which records of which sets, how they are asked and scored; real.yaml says the fields."""

    name: str
    title: str
    sets: tuple[str, ...]
    ask: str
    task: str | None = None
    answer: str | None = None
    says: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    of: int = 0
    each: int | None = None
    cluster: str | None = None
    group: str | None = None
    side: str | None = None
    probe: str | None = None
    floor: float | None = None
    aim: float | None = None

    def cluster_of(self, question: Question) -> str:
        """What is drawn together for the interval: a speaker, say, or a recording."""
        return str(question.labels[self.cluster]) if self.cluster else recording_of(question)

    def group_of(self, question: Question) -> str:
        """What cross-validation keeps together."""
        return str(question.labels[self.group]) if self.group else self.cluster_of(question)


def recording_of(question: Question) -> str:
    """The path of its recording."""
    return str(validate_messages(question.messages).media[0].source)


def rows_of(settings: dict[str, dict[str, Any]]) -> dict[str, Row]:
    """The rows of real.yaml by name."""
    rows = {}
    for name, values in settings.items():
        values = dict(values)
        sets, options = values.pop("from"), values.pop("options", ())
        if isinstance(options, dict):
            values |= options
            options = ()
        sets = (sets,) if isinstance(sets, str) else tuple(sets)
        rows[name] = Row(name=name, sets=sets, options=tuple(options), **values)
    return rows


def find_records(settings: dict[str, Any], sets: Sets) -> tuple[list[str], list[str]]:
    """Paths and classes of the test recordings that texts are to find."""
    records, label = sets.records(settings["from"], "test"), settings.get("label")
    paths = [str(media.source) for record in records if (media := first_media(record))]
    return paths, [str(record["labels"][label] if label else record["answer"]) for record in records]


class Sets:
    """Questions about the sets in a folder.

    Args:
        folder: holds real_esc10, fsdd and the others; those that are not there are left out.
        phrasings: which phrasings ask: "test", which training never sees; "own", those of the sets' records;
            "both".
    """

    def __init__(self, folder: Path, phrasings: str = "test"):
        self.folder, self.phrasings = folder, phrasings
        self._records: dict[tuple[str, str], list[Record]] = {}

    @cached_property
    def _phrasings(self) -> dict[str, dict[str, list[str]]]:
        """Task -> own, train or test -> phrasings: the file that `mllm data small` asks from."""
        found = find_spec("data_prep")
        if found is None or found.origin is None:
            raise ConfigError("data_prep, which has the phrasings, is not installed: `make setup`")
        phrasings: dict[str, dict[str, list[str]]] = read_yaml(
            Path(found.origin).with_name("small") / "phrasings.yaml"
        )
        return phrasings

    def has(self, row: Row, part: str = "test") -> bool:
        """Whether this part of all its sets is there."""
        needed = ("recordings" if name == FSDD else f"{part}.jsonl" for name in row.sets)
        return all(
            (self.folder / name / inner).exists() for name, inner in zip(row.sets, needed, strict=True)
        )

    def questions(self, row: Row, part: str, limit: int | None = None) -> list[Question]:
        """The questions of a row.

        Args:
            part: "train" or "test".
            limit: at most so many, spread evenly.
        """
        found: list[tuple[Record, str]] = []
        for name in row.sets:
            records = [
                record for record in self.records(name, part) if row.task in (None, record.get("task"))
            ]
            if row.task is None:  # one record a recording
                records = list({str(first_media(record)): record for record in reversed(records)}.values())[
                    ::-1
                ]
            answers = (row.says.get(name) or self._answer(row, record) for record in records)
            found += spread(list(zip(records, answers, strict=True)), row.each)
        names = sorted({answer for _, answer in found}) if row.of else ()
        return [self._question(row, record, answer, names) for record, answer in spread(found, limit)]

    def records(self, name: str, part: str) -> list[Record]:
        """The records of a set's part, read once."""
        if (name, part) not in self._records:
            read = self._fsdd(part) if name == FSDD else self._file(self.folder / name / f"{part}.jsonl")
            self._records[name, part] = list(read)
        return self._records[name, part]

    def _file(self, path: Path) -> Iterator[Record]:
        yield from (record for _, record in read_rows(path, media_must_exist=False))

    def _fsdd(self, part: str) -> Iterator[Record]:
        for path in sorted((self.folder / FSDD / "recordings").glob("*.wav")):
            digit, speaker, index = path.stem.split("_")
            if (int(index) in FSDD_TEST) == (part == "test"):
                labels = {"digit": DIGITS[int(digit)], "speaker": speaker}
                media = {"type": "audio", "audio": str(path.absolute())}
                messages = validate_messages([{"role": "user", "content": [media]}])
                yield {"id": f"fsdd/{path.stem}", "messages": messages, "labels": labels}

    @staticmethod
    def _answer(row: Row, record: Record) -> str:
        return str(record["labels"][row.answer] if row.answer else record["answer"])

    def _question(self, row: Row, record: Record, answer: str, names: Sequence[str]) -> Question:
        draw = random.Random(hashlib.sha256(f"{row.name} {record['id']}".encode()).digest())
        options = list(row.options or record.get("options") or ()) if self._closed(row) else []
        if row.of:
            options = sorted([answer, *draw.sample([name for name in names if name != answer], row.of - 1)])
        kinds = ("own", "test") if self.phrasings == "both" else (self.phrasings,)
        asked = self._phrasings[row.ask]
        phrasings = [text for kind in kinds for text in asked[kind]] or asked[
            "test"
        ]  # not all tasks have own ones
        text = draw.choice(phrasings)
        text = text.replace("{options}", ", ".join(options)).replace("{either}", either(options))
        media = first_media(record)
        asked_record: dict[str, Any] = {
            "id": f"{row.name}/{record['id']}",
            "messages": [{"role": "user", "content": [media, {"type": "text", "text": text}]}],
            "task": row.name,
            "answer": answer,
            "labels": record.get("labels") or {},
        }
        asked_record |= {"options": options} if options else {}
        asked_record |= {"captions": record["captions"]} if row.task == "caption" else {}
        return Question.of(asked_record)

    def _closed(self, row: Row) -> bool:
        return any("{" in text for texts in self._phrasings[row.ask].values() for text in texts)


def either(options: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join([", ".join(options[:-1]), options[-1]]) if len(options) > 1 else "".join(options)


def spread(items: list[Any], count: int | None) -> list[Any]:
    """`count` of the items, at even distances; all where there are no more."""
    if count is None or len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]
