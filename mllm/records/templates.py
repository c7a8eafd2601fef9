"""Phrasings of instructions, from templates.yaml, chosen by record id, so that they are reproducible.

`mllm data import` uses them to word questions and labels; training may paraphrase them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import yaml

from mllm.experiment import TimeMarks
from mllm.records.conversation import Conversation, MediaPart, Part, TextPart, Turn

T = TypeVar("T")


@cache
def templates() -> Mapping[str, list[str]]:
    """Task -> its phrasings."""
    return yaml.safe_load(files("mllm.records").joinpath("templates.yaml").read_text(encoding="utf-8"))


def fill(task: str, id: str, **fields: str) -> str:
    """The phrasing of a task for a record, with its fields filled in."""
    # In one pass, so that braces in a question do no harm.
    return re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], pick(templates()[task], id))


def paraphrase(task: str, text: str, id: str) -> str:
    """Rephrases an instruction for `id`; unchanged if it matches no template of the task."""
    found = [
        (len(re.sub(r"\{\w+\}", "", template)), key, match.groupdict())
        for key in templates()
        if key == task or key.startswith(f"{task}_")
        for template in templates()[key]
        if (match := re.fullmatch(_pattern(template), text, re.DOTALL))
    ]
    if not found:
        return text
    _, key, fields = max(found, key=lambda way: way[0])  # "{question}" alone fits everything
    return fill(key, id, **fields)


@cache
def _pattern(template: str) -> str:
    """A regular expression that matches a filled-in template, with its fields as groups."""
    fields = {"options": r"(?:A\. .+|[^\n]+)"}  # lettered ones in lines, or a set in one line
    shape = re.escape(template)
    return re.sub(r"\\\{(\w+)\\\}", lambda name: f"(?P<{name[1]}>{fields.get(name[1], '.+?')})", shape)


def pick(choices: Sequence[T], id: str) -> T:
    """Picks a choice by a record's id; unlike `hash`, the same in every process."""
    return choices[_number(id) % len(choices)]


def shuffled(count: int, id: str) -> list[int]:
    """The numbers from 0 to count - 1, shuffled by a record's id."""
    order = list(range(count))
    random.Random(_number(id)).shuffle(order)
    return order


def subtitle_block(lines: Iterable[Mapping[str, Any]], time_marks: TimeMarks = "clock") -> str:
    """Timed text as one part of a prompt, each line with its time mark; "" if there is none.

    Args:
        lines: `{"text", "start"}`, in seconds from where the recording is shown.
        time_marks: the form of the model's own time marks, see `windows.time_mark`.
    """
    from mllm.media.windows import time_mark

    shown = [
        f"{time_mark(line['start'], time_marks)} {line['text'].strip()}"
        for line in lines
        if line["text"].strip()
    ]
    return fill("subtitles", "", lines="\n".join(shown)) + "\n" if shown else ""


def with_subtitles(
    messages: Iterable[Turn],
    lines_of: Callable[[MediaPart], Iterable[Mapping[str, Any]]],
    time_marks: TimeMarks = "clock",
) -> Conversation:
    """The conversation with what is said behind each video and sound; see `subtitle_block`."""
    turns = []
    for turn in messages:
        parts: list[Part] = []
        for part in turn.parts:
            parts.append(part)
            if isinstance(part, MediaPart) and part.modality != "image":
                text = subtitle_block(lines_of(part), time_marks)
                parts += [TextPart(type="text", text=text)] if text else []
        turns.append(turn.with_parts(parts))
    return Conversation(turns)


def _number(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big")
