"""The conversation record: the only data format that trainers and benchmarks read.

A record is one line of a JSONL file; media paths in it are relative to that file:

    {"id": "a1", "messages": [{"role": "user", "content": [{"type": "video", "video": "clips/a.mp4"},
      {"type": "text", "text": "What is heard?"}]}, {"role": "assistant", "content": "A bell."}],
     "task": "qa", "source": "mine", "answer"?: "A bell.", "options"?: ["A bell.", "A dog."]}

Times are seconds from the start of the recording, or of its cut if the part has a `start`. A timed transcript
(task `transcript`) has `"words": [[start, end, text], …]`, of words or lines; a moment query (task `moments`)
has `"query"` and `"spans": [[start, end], …]`, all stretches that match it.

`"answer": null` means that the answer is withheld: the record is for evaluation, not for training. A message
with `"loss": false` is read but not trained; other trainers' flags for it (`flags`) mean the same in a
message, and are an error at the top level of a record: such a row must be dropped.

`labels` are facts about the recording under free names (emotion, actor), `options` the choices of a question;
the two are independent. In data whose answers are labels, such as imported emotions, the label named like the
`task` is the answer; `data check` compares the two there, and nowhere else.

A record for the contrastive stage has only the clip as its message, and `captions` (a list, or an object with
any of the keys video, audio, both) and `labels`. Neighbouring rows about the same clip form one group, read
and trained together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mllm.errors import ChatError, RecordError
from mllm.files import open_ordinary, replacing
from mllm.media.places import existing, portable
from mllm.records.chat import PLACEHOLDERS, validate_messages
from mllm.records.conversation import Conversation, MediaPart
from mllm.records.flags import unlearned
from mllm.records.times import check_times

Record = dict[str, Any]
PairRecord = dict[str, Any]


class Outline(NamedTuple):
    """What a record is about, and whether it can train answers and the shared space."""

    task: str | None
    source: str | None
    answered: bool
    captioned: bool


_CAPTION_KEYS = ("video", "audio", "both")
_STRING_KEYS = ("id", "task", "source", "answer", "query")


def read_records(path: str | os.PathLike) -> Iterator[Record]:
    """Yields the validated records of a JSONL file, media paths made absolute.

    Raises:
        RecordError: for the first invalid row; names file, row (from 1) and remedy.
    """
    for _, record in read_rows(Path(path)):
        yield record


def write_records(
    path: str | os.PathLike,
    records: Iterable[Mapping[str, Any]],
    media_must_exist: bool = True,
    checked: bool = False,
) -> int:
    """Writes records as JSONL, whole or not at all, and returns their number.

    Media paths are written relative to the file's folder, so that both can be moved together, or absolute if
    they share only the root of the file system.

    Args:
        media_must_exist: False if recordings may still be missing; `mllm data check` lists those.
        checked: whether the records come from `validate_record`.

    Raises:
        RecordError: if a record is invalid, or holds media in memory.
        MllmError: if the disk is full.
    """
    path = Path(path)
    count = 0
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for record in records:
            count += 1
            where = f"{path.name} row {count}"
            valid = dict(record)
            if not checked:
                valid = validate_record(record, where, path.parent, media_must_exist)
            valid["messages"] = _moved(valid["messages"], partial(portable, folder=path.parent, where=where))
            file.write(json.dumps(valid, ensure_ascii=False) + "\n")
    return count


def validate_record(
    record: Any, where: str, folder: Path | None = None, media_must_exist: bool = True
) -> Record:
    """Checks one record and returns it with normalised messages and absolute media paths.

    Args:
        record: see the top of this file; further keys are kept.
        where: prefix of errors, such as "train.jsonl row 12".
        folder: base of relative media paths; None for the working directory.
        media_must_exist: whether a missing file is an error.

    Raises:
        RecordError: if the record is invalid.
    """
    record = _with_keys(record, where)
    try:
        if flag := unlearned(record):
            raise ChatError(
                f"{flag} says that it is not to be learned: drop the row, or rename what means something else"
            )
        messages = validate_messages(record["messages"])
    except ChatError as error:
        raise RecordError(f"{where}: {error}") from None
    place = partial(existing, folder=folder or Path.cwd(), where=where, must_exist=media_must_exist)
    record["messages"] = _moved(messages, place)
    if "captions" in record:
        record["captions"] = _captions(record, where)
    _require_something_to_learn(record, where)
    return record


def _with_keys(record: Any, where: str) -> Record:
    """A copy of a record, with every key except the messages checked."""
    if not isinstance(record, Mapping):
        raise RecordError(f"{where}: a record must be an object, not {type(record).__name__}")
    if "messages" not in record:
        hint = (
            " (this is LLaVA's form: `mllm data import chats` converts it)"
            if "conversations" in record
            else ""
        )
        raise RecordError(f"{where}: no 'messages'{hint}: give a list of {{'role', 'content'}}")
    record = dict(record)
    if isinstance(record.get("id"), int):
        record["id"] = str(record["id"])
    if not isinstance(record.get("labels") or {}, Mapping):
        raise RecordError(f'{where}: \'labels\' must be an object, such as {{"emotion": "sad"}}')
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except RecursionError:
        raise RecordError(f"{where}: nested too deep to be written: take out what is nested") from None
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RecordError(
            f"{where}: half a character (\\u{code:04x}) in its text: write the whole one"
        ) from None
    for key in _STRING_KEYS:
        if record.get(key) is not None and not isinstance(record[key], str):
            raise RecordError(f"{where}: {key!r} must be a string, not {type(record[key]).__name__}")
    _check_strings(record.get("options"), "options", where)
    check_times(record, where)
    return record


def _require_something_to_learn(record: Record, where: str) -> None:
    messages: Conversation = record["messages"]
    if messages[-1].role == "assistant":
        if not messages[-1].text.strip():
            raise RecordError(f"{where}: the assistant's answer is empty: write one or drop the row")
        if not any(turn.trained for turn in messages) and "answer" not in record:
            raise RecordError(f"{where}: nothing to learn: the answers are not to be learned: drop the row")
    elif not {"answer", "captions", "labels"} & record.keys():
        raise RecordError(
            f"{where}: nothing to learn or score: end with an assistant message, or give 'answer', 'captions'"
        )


def has_answer(record: Record) -> bool:
    """Whether a record has an answer to train on."""
    return record["messages"][-1].role == "assistant" or record.get("answer") is not None


def outline(record: Record) -> Outline:
    """The outline of a validated record."""
    return Outline(record.get("task"), record.get("source"), has_answer(record), bool(record.get("captions")))


def answered(record: Record) -> Conversation:
    """The messages of a record, ending with its answer."""
    messages = validate_messages(record["messages"])
    return messages if messages[-1].role == "assistant" else messages.with_answer(record["answer"])


def read_rows(path: Path, media_must_exist: bool = True) -> Iterator[tuple[tuple[int, int], Record]]:
    """Yields ((byte offset, row), record) for every row that is not blank."""
    if not path.exists():
        raise RecordError(f"{path} is not a file: give the path of a JSONL file of records")
    folder = path.absolute().parent
    offset = 0
    with open_ordinary(path, error=RecordError) as file:
        for row, line in enumerate(file, start=1):
            if line.strip():
                yield (offset, row), parse_record(line, f"{path.name} row {row}", folder, media_must_exist)
            offset += len(line)


def parse_record(line: bytes, where: str, folder: Path, media_must_exist: bool = True) -> Record:
    record = validate_record(parse_row(decode_row(line, where), where), where, folder, media_must_exist)
    return record if record.get("id") else record | {"id": where.replace(" row ", "/")}


def decode_row(line: bytes, where: str) -> str:
    """The text of a row. Raises RecordError if it is not UTF-8."""
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: not UTF-8 text (byte {error.start} of the row): save the file as UTF-8"
        ) from None


def parse_row(text: str, where: str, remedy: str = "each row must be one whole JSON object") -> Any:
    """The value of a row. Raises RecordError if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text else ""
        cause = f"{error.msg} at {line}column {error.colno}"
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        cause = str(error).partition(";")[0]
    raise RecordError(f"{where}: not JSON ({cause}): {remedy}")


def _moved(messages: Conversation, change: Callable[[Any], Any]) -> Conversation:
    """Applies `change` to every media source, including separate sound tracks of videos."""
    return messages.with_media(
        lambda part: MediaPart(
            {key: change(value) if key in PLACEHOLDERS else value for key, value in part.items()}
        )
    )


def _captions(record: Record, where: str) -> dict[str, list[str]]:
    """Captions as lists by modality; a plain list belongs to the first recording's modality."""
    captions = record["captions"]
    if isinstance(captions, (list, str)):
        first = first_media(record)
        captions = {"audio" if first and first.modality == "audio" else "video": captions}
    if not isinstance(captions, Mapping) or set(captions) - set(_CAPTION_KEYS):
        raise RecordError(
            f"{where}: 'captions' must be a list, or an object with keys {', '.join(_CAPTION_KEYS)}"
        )
    lists = {}
    for key in _CAPTION_KEYS:
        texts = captions.get(key) or []
        lists[key] = [texts] if isinstance(texts, str) else texts
        _check_strings(lists[key], f"captions of {key}", where)
    return lists if any(lists.values()) else {}


def _check_strings(value: Any, key: str, where: str) -> None:
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise RecordError(f"{where}: {key!r} must be a list of strings")


def first_media(record: Record) -> MediaPart | None:
    """The first recording of a validated record."""
    return next(iter(record["messages"].media), None)
