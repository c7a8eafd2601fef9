"""Chat formats of LLaVA, ShareGPT, LLaMA-Factory, ms-swift, Alpaca and TRL, detected for each row.

Media are listed beside the conversation and replace `<video>`, `<audio>` or `<image>` tags in questions, one
for each tag. Without tags they precede the first question. Answers are taken unchanged. Rows and turns
marked as not to be learned (`mllm.records.flags`) are not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.importers.job import Job, Part, Record
from data_prep.importers.tables import Row, is_nan
from data_prep.tags import FOREIGN, NUMBERED, TAG
from mllm.errors import ChatError, RecordError
from mllm.media.sources import SUFFIXES, frame_order
from mllm.records.flags import unlearned

KINDS = ("video", "audio", "image")
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "developer": "system",
}  # fmt: skip
TOOLS = {"tool", "tool_call", "tool_response", "function", "function_call", "observation"}
GROUNDED = ("<ref-object>", "<bbox>")  # of ms-swift, filled from `objects` for each model
ASKED = ("human", "user", "query", "question", "prompt", "instruction")  # keys of an exchange in one object
ANSWERED = ("assistant", "gpt", "response", "answer", "completion", "output")
Turn = dict[str, Any]


def chats(job: Job) -> Iterator[Record]:
    """JSON arrays, JSON lines or Parquet; the form of each row is told from its fields."""
    for number, row in enumerate(job.rows(), start=1):
        with job.or_left_out():
            turns = _turns(row)
            if reason := _left_out(row, turns):
                job.left_out[reason] += 1
                continue
            messages = _messages(job, row, turns)
            task = "chat" if len(messages) > 2 else "qa"
            id = number if row.get("id") is None else row["id"]
            yield {"id": f"{job.name}/{id}", "messages": messages, "task": task, "source": job.name}


def _left_out(row: Row, turns: list[Turn]) -> str | None:
    """Why a whole row is left out; None if it is kept."""
    if any(turn["role"] in TOOLS or turn.get("tool_calls") for turn in turns):
        return "tool calls"
    if row.get("objects") and any(tag in str(turn["content"]) for turn in turns for tag in GROUNDED):
        return "grounding (objects)"
    try:
        flag = unlearned(row)
    except ChatError as error:
        raise RecordError(f"{row.where}: {error}") from None
    if any(row.get(key) in (0, "0") for key in ("label", "Label")):
        flag = flag or "'label': 0"  # KTO's false, through a table
    if isinstance(row.get("mask"), str) and ROLES.get(row["mask"].lower()) == "assistant":
        flag = f"'mask': {row['mask']}"  # NeMo names the role that is not learned
    if flag:
        return f"not to be learned ({flag})"
    if not turns or turns[-1]["role"] != "assistant":
        return "no answer at the end"
    if all(turn.get("loss") is False for turn in turns if turn["role"] == "assistant"):
        return "not to be learned (no turn is)"
    return None


def _messages(job: Job, row: Row, turns: list[Turn]) -> list[dict[str, Any]]:
    """The turns with tags replaced by media."""
    media = {kind: _media(job, row, kind) for kind in KINDS}
    named = any(media.values())
    asked = [turn for turn in turns if turn["role"] == "user"]
    if named:
        _number_as_tags(asked, row)
        if not any(isinstance(turn["content"], list) or TAG.search(turn["content"]) for turn in asked):
            _tag_first_question(asked, media)
        if media["video"] and not media["image"]:  # LLaVA's video rows say <image>
            for turn in asked:
                if isinstance(turn["content"], str):
                    turn["content"] = turn["content"].replace("<image>", "<video>")
    messages = [_message(job, turn, media if named else None, row) for turn in turns]
    for kind, left in media.items():
        if left:
            raise RecordError(
                f"{row.where}: {len(left)} {kind} file(s) more than <{kind}> tags: write a tag for each"
            )
    return messages


def _turns(row: Row) -> list[Turn]:
    """The turns of a row as `{"role", "content", "loss"?}`."""
    if "messages" in row:
        turns = [_turn(turn) for turn in _dicts(row, "messages")]
    elif "conversations" in row:
        turns = [_turn(turn) for turn in _dicts(row, "conversations")]
    elif "instruction" in row and ("output" in row or "chosen" in row):
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        turns = [*_history(row), *_as_turns("user", asked), *_as_turns("assistant", row.get("output"))]
    elif "query" in row and "response" in row:  # older format of ms-swift
        turns = [*_history(row), *_as_turns("user", row["query"]), *_as_turns("assistant", row["response"])]
    elif "preferred_output" in row and isinstance(row.get("input"), dict):  # OpenAI's
        turns = [_turn(turn) for turn in _dicts(Row(row["input"], row.where), "messages")]
        turns += _as_turns("assistant", row["preferred_output"])
    elif "completion" in row or "chosen" in row:  # TRL's; `prompt` may be part of what was chosen
        turns = [*_as_turns("user", row.get("prompt")), *_as_turns("assistant", row.get("completion"))]
    else:
        raise RecordError(
            f"{row.where}: none of the known forms (it has {', '.join(row)}): give 'messages', "
            "'conversations', 'instruction' with 'output', 'query' with 'response', or 'prompt' with "
            "'completion'"
        )
    chosen = row.get("chosen")
    answered = bool(turns) and ROLES.get(turns[-1].get("role", "")) == "assistant"
    if isinstance(chosen, (str, list, dict)) and not answered:
        better = _as_turns("assistant", chosen)  # never what was rejected
        turns = better if ROLES.get(better[0]["role"]) != "assistant" else turns + better
    if row.get("system"):
        turns.insert(0, {"role": "system", "content": row["system"]})
    for turn in turns:
        _check_turn(turn, row)
    return turns


def _check_turn(turn: Turn, row: Row) -> None:
    """Normalises one turn: role, text, and whether it is trained on."""
    if turn.get("content") is None:
        turn["content"] = ""  # OpenAI's tool calls; what else is empty is counted as such
    if turn.get("role") in TOOLS:
        return
    if turn.get("role") not in ROLES:
        raise RecordError(f"{row.where}: a turn of {turn.get('role')!r}: known are {', '.join(ROLES)}")
    turn["role"] = ROLES[turn["role"]]
    if not isinstance(turn["content"], (str, list)):
        kind = type(turn["content"]).__name__
        raise RecordError(f"{row.where}: a turn's text must be a string, not {kind}")
    try:
        flags = [unlearned(turn)]
        flags += [unlearned(part) for part in turn["content"] if isinstance(part, dict)]
    except ChatError as error:
        raise RecordError(f"{row.where}: {error}") from None
    if any(flags[1:]) and not all(flags[1:]):
        raise RecordError(f"{row.where}: {next(filter(None, flags))} of a part: an answer is learned whole")
    if turn["role"] == "assistant" and any(flags):
        turn["loss"] = False


def _history(row: Row) -> Iterator[Turn]:
    """Yields the turns of `history`: [question, answer] pairs, or objects of a turn or an exchange."""
    history = _unpacked(row.get("history"))
    if history is None or history == "" or is_nan(history):
        return
    for item in history if isinstance(history, list) else [history]:
        if isinstance(item, dict):
            yield from _exchange(item, row)
        elif isinstance(item, list) and item and all(isinstance(turn, dict) for turn in item):
            yield from map(_turn, item)
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
            yield {"role": "user", "content": item[0]}
            yield {"role": "assistant", "content": item[1]}
        else:
            raise RecordError(
                f"{row.where}: history must be a list of [question, answer], or of objects with role and "
                f"content, not {str(item)[:40]}"
            )


def _exchange(item: dict[str, Any], row: Row) -> Iterator[Turn]:
    """Yields one turn, or a question and its answer; other keys of the object belong to the answer."""
    if item.keys() & {"role", "from"}:
        yield _turn(item)
        return
    asked, answered = ([key for key in keys if key in item] for keys in (ASKED, ANSWERED))
    if len(asked) != 1 or len(answered) != 1:
        raise RecordError(
            f"{row.where}: an object of history with {', '.join(item)}: give role and content, or a question "
            "and an answer"
        )
    yield {"role": "user", "content": item[asked[0]]}
    yield item | {"role": "assistant", "content": item[answered[0]]}


def _turn(turn: Mapping[str, Any]) -> Turn:
    role = turn.get("role", turn.get("from"))
    return {**turn, "role": role, "content": turn.get("content", turn.get("value"))}


def _as_turns(role: str, value: Any) -> list[Turn]:
    """A prompt or an answer in TRL's format (text, a turn, or turns); empty for None."""
    if value is None:
        return []
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return [_turn(turn) for turn in value]
    return [_turn(value) if isinstance(value, dict) else {"role": role, "content": value}]


def _unpacked(value: Any) -> Any:
    """Decodes a list or object given as JSON in a table cell."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _dicts(row: Row, field: str) -> list[dict[str, Any]]:
    turns = _unpacked(row[field])
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError(f"{row.where}: {field} must be a list of objects")
    return turns


def _media(job: Job, row: Row, kind: str) -> list[Part]:
    """A row's media of one kind, in order, from `videos` or `video` (a list or one name)."""
    names = row.get(f"{kind}s") or row.get(kind) or []
    return [_part(job, kind, name, row.where) for name in (names if isinstance(names, list) else [names])]


def _part(job: Job, kind: str, name: Any, where: str) -> Part:
    if isinstance(name, dict):
        if not isinstance(name.get("path"), str) and name.get("bytes"):
            raise RecordError(f"{where}: {kind} whose bytes stand in the row: save it as a file, and name it")
        name = name.get("path", name)
    if kind == "video" and name and isinstance(name, list) and all(isinstance(frame, str) for frame in name):
        return _frame_folder(job, name, where)
    if not isinstance(name, str) or not name:
        article = "a" if kind == "video" else "an"
        raise RecordError(f"{where}: {article} {kind} must be a path, not {str(name)[:40] or 'empty'}")
    if name.startswith(("data:", "http://", "https://")):
        return {"type": kind, kind: name}
    if kind == "image":
        return job.image(name)
    return job.video(name) if kind == "video" else job.audio(name)


def _frame_folder(job: Job, frames: list[str], where: str) -> Part:
    """A video given as a list of frames: the folder that contains exactly these images."""
    if any(frame.startswith("data:") for frame in frames):
        raise RecordError(f"{where}: frames must be files, not data: write them into a folder")
    folders = {str(Path(frame).parent) for frame in frames}
    if len(folders) != 1:
        raise RecordError(f"{where}: the frames of a video must lie in one folder, not in {len(folders)}")
    if [Path(frame) for frame in frames] != sorted({Path(frame) for frame in frames}, key=frame_order):
        raise RecordError(
            f"{where}: frames out of order, or twice: a folder is read in the order of their names, "
            "each once, so list them like that"
        )
    part = job.video(f"{folders.pop()}/")
    folder = Path(part["video"])
    if folder.is_dir():
        there = {path.name for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES["image"]}
        if there != {Path(frame).name for frame in frames}:
            raise RecordError(
                f"{where}: {len(frames)} frames of {folder}, which holds {len(there)}: a folder of frames is "
                "read whole, so put those that are meant into one of their own"
            )
    return part


def _number_as_tags(asked: list[Turn], row: Row) -> None:
    """Replaces numbered placeholders (<image_1>, <|image_2|>) by tags if they are in file order."""
    numbers: dict[str, list[int]] = {}
    texts = [turn["content"] for turn in asked if isinstance(turn["content"], str)]
    for kind, number in NUMBERED.findall("\n".join(texts)):
        numbers.setdefault(kind.lower(), []).append(int(number))
    for kind, found in numbers.items():
        if found[0] not in (0, 1) or found != list(range(found[0], found[0] + len(found))):
            raise RecordError(
                f"{row.where}: placeholders <{kind}_N> out of order, or twice: write <{kind}> for each file"
            )
    for turn in asked:
        if isinstance(turn["content"], str):
            turn["content"] = NUMBERED.sub(lambda tag: f"<{tag[1].lower()}>", turn["content"])


def _tag_first_question(asked: list[Turn], media: dict[str, list[Part]]) -> None:
    if asked:
        tags = "".join(f"<{kind}>" * len(parts) for kind, parts in media.items())
        asked[0]["content"] = tags + asked[0]["content"]


def _message(job: Job, turn: Turn, media: dict[str, list[Part]] | None, row: Row) -> dict[str, Any]:
    """A turn with its tags replaced by media parts, taken from `media` in order.

    If the row names no media (`media` is None), apparent tags are kept as text.
    """
    role, content = turn["role"], turn["content"]
    kept = {"loss": False} if turn.get("loss") is False else {}
    if isinstance(content, list):
        parts = [_given_part(job, part, media or {}, row) for part in content]
        if media is None and any(part["type"] != "text" for part in parts):
            media = {kind: [] for kind in KINDS}
    else:
        parts = [{"type": "text", "text": content}]
    if role != "user":
        return {"role": role, "content": parts if isinstance(content, list) else content} | kept
    pieces = [
        piece
        for part in parts
        for piece in (_pieces(job, part["text"], media, row) if part["type"] == "text" else [part])
    ]
    alone = media is None and isinstance(content, str)
    return {"role": role, "content": content if alone else pieces} | kept


def _pieces(job: Job, text: str, media: dict[str, list[Part]] | None, row: Row) -> list[Part]:
    """Splits the text of a question at its tags, and replaces these by media."""
    if media is None:
        found = next(filter(None, (pattern.search(text) for pattern in (TAG, NUMBERED, FOREIGN))), None)
        if found:
            job.noted[f"{found[0].strip()} in a row that names no recording: kept as text"] += 1
        return [{"type": "text", "text": text}]
    if found := FOREIGN.search(TAG.sub("", text)):
        raise RecordError(f"{row.where}: {found[0]} in a question is another model's: write <image>, <video>")
    parts: list[Part] = []
    for index, piece in enumerate(TAG.split(text)):
        if index % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece.strip() else []
            continue
        kind = "audio" if piece.lower() == "speech" else piece.lower()
        if not media[kind]:
            raise RecordError(
                f"{row.where}: more <{piece}> tags than {kind} files: take the tag out of the text"
            )
        parts.append(media[kind].pop(0))
    return parts


def _given_part(job: Job, part: Any, media: dict[str, list[Part]], row: Row) -> Part:
    """Converts a part of a content list: text, or media in the format of OpenAI or LLaMA-Factory.

    Hugging Face's `{"type": "image"}` is a placeholder for the next of the row's images.
    """
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise RecordError(f"{row.where}: a part of a content list must be an object with a 'type'")
    if part["type"] == "input_audio":
        return part  # OpenAI's, valid in messages as it is
    kind = part["type"].removesuffix("_url")
    value = part.get("value", part.get(part["type"], part.get(kind)))
    if isinstance(value, dict):
        value = value.get("url", value.get("path"))
    if kind == "text" and isinstance(value, str):
        return {"type": "text", "text": value}
    if kind not in KINDS:
        raise RecordError(f"{row.where}: a part of type {part['type']!r}: give text, video, audio or image")
    if value:
        span = {key: part[key] for key in ("start", "end") if part.get(key) is not None}
        return _part(job, kind, value, row.where) | span
    if not media.get(kind):
        raise RecordError(
            f"{row.where}: a part of type {part['type']!r} more than {kind} files: name its file in it, or "
            f"in the row's '{kind}s'"
        )
    return media[kind].pop(0)
