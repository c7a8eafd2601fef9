"""Messages, the parts of a conversation, and their validation.

A message is `{"role", "content"}`; content is a string or a list of parts:

    {"type": "text",  "text": "What is heard?"}
    {"type": "video", "video": SOURCE, "start"?: s, "end"?: s, "audio"?: SOURCE of its separate sound}
    {"type": "audio", "audio": SOURCE, "start"?: s, "end"?: s}
    {"type": "image", "image": SOURCE}

SOURCE is a path, bytes, a `data:` URI or a Clip. An assistant's message with `"loss": false`, or another
trainer's flag for it (`flags`), is read, but not trained. `chat_form` turns messages into a prompt.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mllm.errors import ChatError
from mllm.records.conversation import Conversation, MediaPart, Part, TextPart, Turn, turn_of
from mllm.records.flags import unlearned

VIDEO_TOKEN = "<|video|>"
AUDIO_TOKEN = "<|audio|>"
IMAGE_TOKEN = "<|image|>"
SYSTEM_TOKEN = "<|system|>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"
END_TOKEN = "<|end|>"
PAD_TOKEN = "<|pad|>"
BOS_TOKEN = "<|bos|>"  # only for a tokenizer that has no beginning-of-sequence token of its own

PLACEHOLDERS = {"video": VIDEO_TOKEN, "audio": AUDIO_TOKEN, "image": IMAGE_TOKEN}
ROLE_TOKENS = {"system": SYSTEM_TOKEN, "user": USER_TOKEN, "assistant": ASSISTANT_TOKEN}
SPECIAL_TOKENS = (*PLACEHOLDERS.values(), *ROLE_TOKENS.values(), END_TOKEN, PAD_TOKEN)

Message = dict[str, Any]

_URL_PARTS = ("video_url", "audio_url", "image_url")
_OPENAI_KEYS = {key: {"url"} for key in _URL_PARTS} | {"input_audio": {"data", "format"}}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no text in UTF-8 holds it
ANSWERS_USER = "end with a user message, which the model answers"
_PART_KEYS = {
    "text": {"text"},
    "video": {"video", "start", "end", "audio"},
    "audio": {"audio", "start", "end"},
    "image": {"image"},
}


def validate_messages(messages: Sequence[Mapping[str, Any]], to_answer: bool = False) -> Conversation:
    """Checks a conversation, and returns it frozen, with every content as a list of parts as above.

    A checked conversation is returned unchanged. OpenAI's request parts (`video_url`, `audio_url`,
    `image_url`, `input_audio`) and its role `developer` (a synonym of system) are translated.

    Args:
        to_answer: whether the model answers next, so that the last message must be the user's.

    Raises:
        ChatError: if it is malformed; names the message, the part and the remedy.
    """
    conversation = messages if isinstance(messages, Conversation) else _checked(messages)
    last = conversation[-1].role
    if to_answer and last != "user":
        raise ChatError(
            f"message {len(conversation) - 1} is the last and its role is {last!r}: {ANSWERS_USER}"
        )
    return conversation


def _checked(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise ChatError("messages must be a list with at least one {'role', 'content'} in it")
    expected = "user"
    turns = []
    for index, message in enumerate(messages):
        where = f"message {index}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ChatError(f"{where} must be an object with 'role' and 'content'")
        role = "system" if message["role"] == "developer" else message["role"]
        if not isinstance(role, str) or role not in ROLE_TOKENS:
            raise ChatError(f"{where} has role {role!r}: use system, user or assistant")
        if role == "system":
            if index:
                raise ChatError(f"{where} is a system message: put it first, there can be one")
        elif role != expected:
            raise ChatError(f"{where} has role {role!r} where {expected!r} must stand: the two alternate")
        else:
            expected = "assistant" if role == "user" else "user"
        turns.append(_turn(role, message, where))
    return Conversation(turns)


def _turn(role: str, message: Mapping[str, Any], where: str) -> Turn:
    parts = _parts(message["content"], where)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    has_media = len(texts) < len(parts)
    if role != "user" and has_media:
        raise ChatError(f"{where} holds media but its role is {role!r}: media go into user messages")
    if role == "user" and not has_media and not any(text.strip() for text in texts):
        raise ChatError(f"{where} is empty: give it text or media")
    if any(LONE_SURROGATE.search(text) for text in texts):
        raise ChatError(f"{where} holds half a character (a lone surrogate): send whole ones")
    return turn_of(role, parts, trained=not unlearned(message))


def _parts(content: Any, where: str) -> list[Part]:
    if isinstance(content, str):
        return [TextPart(type="text", text=content)]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ChatError(f"{where}: content must be a string or a list of parts, not {type(content).__name__}")
    return [_part(part, f"{where} part {index}") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return TextPart(type="text", text=part)
    if not isinstance(part, Mapping) or "type" not in part:
        raise ChatError(f"{where} must be an object with a 'type': text, video, audio or image")
    part = _from_openai(dict(part), where)
    kind = part["type"]
    if not isinstance(kind, str) or kind not in _PART_KEYS:
        raise ChatError(f"{where} has type {reprlib.repr(kind)}: use text, video, audio or image")
    if kind not in part:
        raise ChatError(
            f"{where} has type {kind!r} but no {kind!r} key: write {{'type': {kind!r}, {kind!r}: …}}"
        )
    unknown = set(part) - _PART_KEYS[kind] - {"type"}
    if unknown:
        known = ", ".join(sorted(_PART_KEYS[kind]))
        raise ChatError(f"{where} has an unknown key {sorted(unknown)[0]!r}: a {kind} part knows {known}")
    if kind == "text":
        if not isinstance(part["text"], str):
            raise ChatError(f"{where}: text must be a string, not {type(part['text']).__name__}")
        return TextPart(part)
    for key in {kind, "audio"} & set(part):
        _check_source(part[key], f"{where}: {key}")
    _check_span(part, where)
    return MediaPart({key: value for key, value in part.items() if value is not None})


def _from_openai(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part["type"]
    if not isinstance(kind, str) or kind not in _OPENAI_KEYS:
        return part
    value = part.get(kind)
    if kind != "input_audio" and kind in part and not isinstance(value, Mapping):
        value = {"url": value}
    if not isinstance(value, Mapping) or not all(value.get(key) for key in _OPENAI_KEYS[kind]):
        form = ", ".join(f"'{key}'" for key in sorted(_OPENAI_KEYS[kind]))
        raise ChatError(f"{where} of type {kind!r} needs {kind!r}: {{{form}}}, not empty")
    for key, said in [*part.items(), *value.items()]:
        # A uuid is vLLM's name for a recording; a picture has the size that the model was trained with.
        known = (
            key in ("type", kind, "uuid") or key in _OPENAI_KEYS[kind] or (key, said) == ("detail", "auto")
        )
        if not known and said is not None:
            raise ChatError(
                f"{where} has a key {key!r} that a part of type {kind!r} doesn't know: leave it out"
            )
    if kind == "input_audio":
        return {"type": "audio", "audio": f"data:audio/{value['format']};base64,{value['data']}"}
    modality = kind.removesuffix("_url")
    return {"type": modality, modality: value["url"]}


def _check_source(source: Any, where: str) -> None:
    # A Clip is known by its waveform: importing the class would load the decoders.
    if not isinstance(source, (str, os.PathLike, bytes)) and not hasattr(source, "waveform"):
        raise ChatError(f"{where} must be a path, bytes, a data: URI or a Clip, not {type(source).__name__}")
    if isinstance(source, (str, bytes)) and not source.strip():
        raise ChatError(f"{where} is empty: give a path, bytes or a data: URI")


def _check_span(part: Mapping[str, Any], where: str) -> None:
    for key in ("start", "end"):
        value = part.get(key)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value <= sys.float_info.max
        ):
            given = reprlib.repr(value)  # it may have hundreds of digits
            raise ChatError(f"{where}: {key} must be seconds from the beginning, at least 0, not {given}")
    start, end = part.get("start"), part.get("end")
    if end is not None and end <= (start or 0):
        raise ChatError(f"{where}: end ({end} s) must be later than start ({start or 0} s)")
