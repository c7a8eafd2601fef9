"""Assigns roles such as recording or answer to the columns of a table, by --columns or by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from mllm.errors import ConfigError, RecordError

Columns = dict[str, list[str]]  # role -> the columns that have it

NAMES = {  # common column names, the likeliest first, in lower case with _ for blanks
    "file": "file file_name filename file_path filepath path clip_path media media_path recording fname clip",
    "video": "video video_path video_file video_name video_filepath gif gif_name gif_path vid video_id",
    "audio": "audio audio_path audio_file audio_filepath audio_filename wav wav_path wav_file sound",
    "image": "image image_path image_file image_name img img_path picture photo",
    "id": "id key uid qid utt_id utterance_id sample_id segment_id question_id",
    "start": "start start_time start_s start_sec start_seconds begin begin_time onset",
    "end": "end end_time end_s end_sec end_seconds stop stop_time",
    "duration": "duration duration_s duration_sec length",
    "question": "question query prompt instruction q",
    "options": "options choices candidates",
    "answer": "answer label class class_name category event_label event emotion response output target",
    "text": "text transcript transcription sentence utterance normalized_text said",
    "caption": "caption captions description",
    "labels": "labels",
}
ROLES = tuple(NAMES)
SEVERAL = ("options", "caption", "labels")  # roles that more than one column may have
LABELS = {  # columns with facts about a recording beside the answer, for --held-out
    "split", "fold", "speaker", "speaker_id", "actor", "session", "gender", "age", "language", "locale",
}  # fmt: skip
MEDIA, TARGETS = ("file", "video", "audio", "image"), ("answer", "text", "caption")
NUMBERED = {
    "options": re.compile(r"(option|choice|opt)_?([0-9]+|[a-h])|a_?[0-9]+|[a-h]"),
    "caption": re.compile(r"caption_?[0-9]+"),
}


def parse_columns(texts: Sequence[str], known: Sequence[str], name: str) -> Columns:
    """Parses 'file=clip_path,answer=label' or 'options=a0+a1+a2' into role -> columns.

    Args:
        known: roles of the importer `name`.

    Raises:
        ConfigError: the syntax is wrong, or there is no such role.
    """
    columns: Columns = {}
    for text in filter(None, (part.strip() for words in texts for part in words.split(","))):
        role, found, column = text.partition("=")
        if not known:
            raise ConfigError(
                f"--columns {text}: {name} reads its official columns: give `table` a file of your own"
            )
        if not (found and column):
            raise ConfigError(f"--columns {text}: write ROLE=COLUMN, such as file=clip_path,answer=label")
        if role not in known:
            near = get_close_matches(role, known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"--columns {text}: no role {role!r}: {meant}known are {', '.join(known)}")
        columns[role] = column.split("+") if role in SEVERAL else [column]
    return columns


def find_columns(given: Columns, has: Sequence[str], where: str) -> Columns:
    """The columns of every role in a table.

    Args:
        given: columns assigned by the user; if they include a target, no other target is guessed.
        has: the columns of the table.

    Raises:
        RecordError: a given column is missing, or there is no recording or no target.
    """
    for role, columns in given.items():
        for column in columns:
            if column not in has:
                raise RecordError(
                    f"{where}: no column {column!r} for --columns {role}=… (it has {', '.join(has)})"
                )
    found = dict(given)
    roles = [role for role in ROLES if role not in given]
    if given.keys() & set(TARGETS):
        roles = [role for role in roles if role not in TARGETS]
    if given.keys() & set(MEDIA):
        roles = [role for role in roles if role not in MEDIA]
    for role in roles:
        free = [column for column in has if column not in _taken(found)]
        if columns := list(_guess(role, free)):
            found[role] = columns
    if "duration" not in given and ("start" not in found or "end" in found):
        found.pop("duration", None)  # length of the recording
    if {"video", "audio", "image"} & found.keys() and "file" not in given:
        found.pop("file", None)
    for roles_of, what in ((MEDIA, "the recording: add --columns file=…"), (TARGETS, TO_LEARN)):
        if not found.keys() & set(roles_of):
            raise RecordError(f"{where}: no column is called like {what} (it has {', '.join(has)})")
    return found


TO_LEARN = "what is to be learnt: add --columns answer=…, text=… (what is said) or caption=…"


def guessed(given: Mapping[str, Iterable[str]], found: Columns) -> Iterator[str]:
    """Describes the roles that were guessed."""
    for role, columns in found.items():
        if role not in given and columns != [role]:
            yield f"column {'+'.join(columns)} read as {role}"


def unread(found: Columns, has: Sequence[str]) -> list[str]:
    """The columns without a role."""
    return [column for column in has if column not in _taken(found)]


def _guess(role: str, free: Sequence[str]) -> Iterator[str]:
    by_name = {re.sub(r"\W+", "_", column.strip().lower()): column for column in free}
    likely = [by_name[name] for name in NAMES[role].split() if name in by_name]
    if role == "labels":
        yield from likely[:1]
        yield from (column for name, column in by_name.items() if name in LABELS)
    elif role in NUMBERED and not likely:
        numbered = [column for name, column in by_name.items() if NUMBERED[role].fullmatch(name)]
        yield from numbered if len(numbered) > 1 else ()
    else:
        yield from likely[:1]


def _taken(found: Columns) -> set[str]:
    return {column for columns in found.values() for column in columns}
