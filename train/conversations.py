"""Conversations for training: caption requests, and grouping by recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mllm.media.clip import Clip
from mllm.records import chat
from mllm.records.conversation import Conversation, MediaPart

Messages = Sequence[Mapping[str, Any]]  # what `chat.validate_messages` takes

# The question of stage 1 for each kind of caption, in the order of caption columns in its batches.
CAPTION_REQUESTS = {
    "video": "describe the picture.",
    "audio": "describe the sound.",
    "both": "describe the recording.",
}


def caption_conversations(pair: dict[str, Any], number: int) -> list[Conversation]:
    """Caption requests with answers, each starting with the clip.

    For clips with picture and sound, every other example asks for both together, the others for each alone.
    Timelines among the labels serve as answers, since they name all attributes with their times.
    """
    part = pair.get("part") or media_part(pair["clip"])
    answers = {
        kind: pair["labels"].get(f"timeline_{kind}") or one_of(pair["captions"].get(kind), number)
        for kind in CAPTION_REQUESTS
    }
    if answers["video"] and answers["audio"] and answers["both"]:
        answers = (
            {"both": answers["both"]}
            if number % 2
            else {"video": answers["video"], "audio": answers["audio"]}
        )
    elif answers["video"] or answers["audio"]:
        answers.pop("both")
    return [
        chat.validate_messages(
            [
                {"role": "user", "content": [part, {"type": "text", "text": CAPTION_REQUESTS[kind]}]},
                {"role": "assistant", "content": answer},
            ]
        )
        for kind, answer in answers.items()
        if answer
    ]


def media_part(clip: Clip, modality: str | None = None) -> dict[str, Any]:
    """The message part for a clip in memory; its modality is detected unless given."""
    modality = modality or ("image" if clip.is_image else "audio" if clip.frames is None else "video")
    return {"type": modality, modality: clip}


def one_of(captions: str | Sequence[str] | None, number: int) -> str | None:
    """One of several captions, cycling with `number`."""
    if captions is None or isinstance(captions, str):
        return captions
    return captions[number % len(captions)] if captions else None


def by_prefix(conversations: Iterable[Messages]) -> list[list[Conversation]]:
    """Groups conversations that share all parts up to their last recording."""
    groups: dict[tuple, list[Conversation]] = {}
    for conversation in map(chat.validate_messages, conversations):
        groups.setdefault(_prefix(conversation), []).append(conversation)
    return list(groups.values())


def _prefix(conversation: Conversation) -> tuple:
    parts: list[tuple] = []
    end = 0
    for turn in conversation:
        for part in turn.parts:
            parts.append((turn.role, part_values(part)))
            if isinstance(part, MediaPart):
                end = len(parts)
    return tuple(parts[:end])


def part_values(part: dict[str, Any]) -> tuple:
    """A hashable key of a part; clips in memory are compared by identity."""
    return tuple((key, id(v) if isinstance(v, Clip) else v) for key, v in sorted(part.items()))
