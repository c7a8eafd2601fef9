"""Chat data as peers write it: LLaVA, ShareGPT and LLaMA-Factory, ms-swift, Alpaca. Each row tells its form.

Media are named in lists beside the conversation, and stand where `<video>`, `<audio>` or `<image>` stands in
a text; as many tags as media. A row with one medium and no tag has it before the first question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.job import Job, Part, Record
from data_prep.importers.tables import Row
from mllm.errors import RecordError
from mllm.stills import FRAME_SUFFIXES, in_order

KINDS = ("video", "audio", "image")
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
TOOLS = {"tool", "tool_call", "tool_response", "function", "function_call", "observation"}
GROUNDED = re.compile(r"<(ref-object|bbox)>")  # ms-swift's: filled from `objects`, in a form for each model
TAG = re.compile(r"\n?<(video|audio|image|speech)>\n?")


def chats(job: Job) -> Iterator[Record]:
    """JSON arrays or JSON lines; the form of each row is told from its fields."""
    for number, row in enumerate(job.rows(), start=1):
        turns = _turns(row)
        if any(turn.get("role") in TOOLS or turn.get("tool_calls") for turn in turns):
            job.left_out["tool calls"] += 1
            continue
        if row.get("objects") and any(GROUNDED.search(str(turn["content"])) for turn in turns):
            job.left_out["grounding (objects)"] += 1
            continue
        media = {kind: _media(job, row, kind) for kind in KINDS}
        if not _tags(turns):
            _tag_first_question(turns, media)
        if media["video"] and not media["image"]:  # LLaVA's video rows say <image>
            turns = [_told_as_video(turn) for turn in turns]
        named = any(media.values())
        messages = [_message(job, turn, media if named else None, row) for turn in turns]
        for kind, left in media.items():
            if left:
                raise RecordError(
                    f"{row.where}: {len(left)} {kind} file(s) more than <{kind}> tags: write a tag for each"
                )
        if not messages or messages[-1]["role"] != "assistant":
            job.left_out["no answer at the end"] += 1
            continue
        task = "chat" if len(messages) > 2 else "qa"
        id = number if row.get("id") is None else row["id"]
        yield {"id": f"{job.name}/{id}", "messages": messages, "task": task, "source": job.name}


def _turns(row: Row) -> list[dict[str, Any]]:
    """`{"role", "content", "loss"?}` of every turn."""
    if "messages" in row:
        turns = [dict(turn) for turn in _dicts(row, "messages")]
    elif "conversations" in row:
        turns = [
            turn
            | {"role": turn.get("from", turn.get("role")), "content": turn.get("value", turn.get("content"))}
            for turn in _dicts(row, "conversations")
        ]
    elif "instruction" in row and "output" in row:
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        turns = _exchanges(row, asked, row["output"])
    elif "query" in row and "response" in row:  # of ms-swift's older form
        turns = _exchanges(row, row["query"], row["response"])
    else:
        raise RecordError(
            f"{row.where}: none of the known forms (it has {', '.join(row)}): give 'messages', "
            "'conversations', 'instruction' with 'output', or 'query' with 'response'"
        )
    if row.get("system"):
        turns.insert(0, {"role": "system", "content": row["system"]})
    for turn in turns:
        if turn.get("content") is None:
            turn["content"] = ""  # OpenAI's tool calls; what else is empty is counted as such
        if turn.get("role") in TOOLS:
            continue
        if turn.get("role") not in ROLES:
            raise RecordError(f"{row.where}: a turn of {turn.get('role')!r}: known are {', '.join(ROLES)}")
        turn["role"] = ROLES[turn["role"]]
        if not isinstance(turn["content"], (str, list)):
            kind = type(turn["content"]).__name__
            raise RecordError(f"{row.where}: a turn's text must be a string, not {kind}")
    return turns


def _exchanges(row: Row, asked: Any, answer: Any) -> list[dict[str, Any]]:
    """The turns of `history`, a list of question and answer, and the last question and answer."""
    return [
        {"role": role, "content": text}
        for pair in [*(row.get("history") or []), (asked, answer)]
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _dicts(row: Row, field: str) -> list[dict[str, Any]]:
    turns = row[field]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError(f"{row.where}: {field} must be a list of objects")
    return turns


def _media(job: Job, row: Row, kind: str) -> list[Part]:
    """A row's media of one kind, in order; under `videos` or `video`, a list or one name."""
    names = row.get(f"{kind}s") or row.get(kind) or []
    return [_part(job, kind, name, row.where) for name in (names if isinstance(names, list) else [names])]


def _part(job: Job, kind: str, name: Any, where: str) -> Part:
    if isinstance(name, dict) and isinstance(name.get("path"), str):
        name = name["path"]
    if kind == "video" and name and isinstance(name, list) and all(isinstance(frame, str) for frame in name):
        return _frame_folder(job, name, where)
    if not isinstance(name, str) or not name:
        raise RecordError(f"{where}: a {kind} must be a path, not {str(name)[:40] or 'empty'}")
    if name.startswith(("data:", "http://", "https://")):
        return {"type": kind, kind: name}
    return {"video": job.video, "audio": job.audio, "image": job.image}[kind](name)


def _frame_folder(job: Job, frames: list[str], where: str) -> Part:
    """A video as a list of frames: the folder that holds these, and no other pictures."""
    if any(frame.startswith("data:") for frame in frames):
        raise RecordError(f"{where}: frames must be files, not data: write them into a folder")
    folders = {str(Path(frame).parent) for frame in frames}
    if len(folders) != 1:
        raise RecordError(f"{where}: the frames of a video must lie in one folder, not in {len(folders)}")
    if [Path(frame) for frame in frames] != sorted({Path(frame) for frame in frames}, key=in_order):
        raise RecordError(
            f"{where}: frames out of order, or twice: a folder is read in the order of their names, "
            "each once, so list them like that"
        )
    part = job.video(f"{folders.pop()}/")
    folder = Path(part["video"])
    if folder.is_dir():
        there = {path.name for path in folder.glob("[!.]*") if path.suffix.lower() in FRAME_SUFFIXES}
        if there != {Path(frame).name for frame in frames}:
            raise RecordError(
                f"{where}: {len(frames)} frames of {folder}, which holds {len(there)}: a folder of frames is "
                "read whole, so put those that are meant into one of their own"
            )
    return part


def _tags(turns: list[dict[str, Any]]) -> bool:
    return any(isinstance(turn["content"], list) or TAG.search(turn["content"]) for turn in turns)


def _tag_first_question(turns: list[dict[str, Any]], media: dict[str, list[Part]]) -> None:
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is not None:
        tags = "".join(f"<{kind}>" * len(parts) for kind, parts in media.items())
        first["content"] = tags + first["content"]


def _told_as_video(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn["content"]
    return turn | {"content": content.replace("<image>", "<video>")} if isinstance(content, str) else turn


def _message(job: Job, turn: dict[str, Any], media: dict[str, list[Part]] | None, row: Row) -> dict[str, Any]:
    """A turn with its tags turned into media parts, which are taken from `media` in order.

    Where the row names no media (`media` is None), what looks like a tag is text about HTML.
    """
    content = turn["content"]
    kept = {"loss": False} if turn.get("loss") in (False, 0) else {}
    if isinstance(content, list):
        parts = [_given_part(job, part, media or {}, row) for part in content]
        return {"role": turn["role"], "content": parts} | kept
    if turn["role"] != "user" or media is None:
        return {"role": turn["role"], "content": content} | kept
    parts = []
    pieces = TAG.split(content)
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece.strip() else []
            continue
        kind = "audio" if piece == "speech" else piece
        if not media[kind]:
            raise RecordError(
                f"{row.where}: more <{piece}> tags than {kind} files: take the tag out of the text"
            )
        parts.append(media[kind].pop(0))
    return {"role": "user", "content": parts}


def _given_part(job: Job, part: Any, media: dict[str, list[Part]], row: Row) -> Part:
    """A part of a content list: text, or a medium as OpenAI or LLaMA-Factory (`type`, `value`) write it.

    Hugging Face's `{"type": "image"}` stands where the next of the row's images belongs.
    """
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise RecordError(f"{row.where}: a part of a content list must be an object with a 'type'")
    if part["type"] == "input_audio":
        return part  # OpenAI's, which messages may hold as it is
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
