"""Converts our messages to OpenAI's format, for any compatible server: media become URLs or data: URIs."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.errors import ChatError, MediaError
from mllm.files import open_ordinary
from mllm.records import chat
from mllm.records.conversation import Part, TextPart


def to_openai(messages: Sequence[chat.Message], file_urls: bool = False) -> list[dict[str, Any]]:
    """Messages whose media are `video_url`, `audio_url` and `image_url` parts.

    Args:
        messages: see `chat.validate_messages`.
        file_urls: send file:// URLs instead of contents; the server must be allowed to read them.

    Raises:
        MediaError: if a file is missing.
        ChatError: if a recording is in memory, or a part has a start, an end or a separate sound, which
            OpenAI's format cannot express.
    """
    translated = []
    for turn in chat.validate_messages(messages):
        parts = [_part(part, file_urls) for part in turn.parts]
        only_text = len(parts) == 1 and parts[0]["type"] == "text"
        translated.append({"role": turn.role, "content": parts[0]["text"] if only_text else parts})
    return translated


def _part(part: Part, file_urls: bool) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    kind = part.modality
    if options := sorted(part.options):
        raise ChatError(
            f"a server takes whole recordings: cut the {kind} file instead of giving {', '.join(options)}"
        )
    return {"type": f"{kind}_url", f"{kind}_url": {"url": media_url(part.source, kind, file_urls)}}


def media_url(source: Any, modality: str, file_urls: bool = False) -> str:
    """A URL unchanged; a file or bytes as a data: URI, or with `file_urls` a file as a file:// URL."""
    if isinstance(source, str) and re.match(r"\s*(data:|(https?|file)://)", source, re.IGNORECASE):
        return source.strip()
    if isinstance(source, bytes):
        return _data_uri(source, f"{modality}/*")
    if not isinstance(source, (str, Path)):
        raise ChatError(f"a {modality} in memory can't go over HTTP: write it to a file")
    path = Path(source).absolute()
    if not path.exists():
        raise MediaError(f"no such file: {str(source)[:300]}")
    with open_ordinary(path, str(source)) as file:
        if file_urls:
            return path.as_uri()
        return _data_uri(file.read(), mimetypes.guess_type(path.name)[0] or f"{modality}/*")


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
