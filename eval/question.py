"""A benchmark question: a conversation that ends with the user's turn, and what is needed to score it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm.records import chat
from mllm.records.chat import Message
from mllm.records.record import Record

NOTHING = {"type": "text", "text": "?"}  # blind stand-in for a message that consists of recordings alone


@dataclass(frozen=True)
class Question:
    """A question with its reference answers.

    Attributes:
        id: identifies the question in predictions.jsonl.
        messages: end with the user's question; earlier turns stay in the prompt.
        truths: the correct answer, or several references; reports show the first.
        type: question type, such as "colour"; a row of the report.
        record: the full source record, with options, labels, spans and anything else a scorer needs.
    """

    id: str
    messages: Sequence[Message]
    truths: tuple[str, ...]
    type: str = "qa"
    record: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validates the messages and normalises each content to a list of parts.

        Raises:
            ChatError: if they are malformed, or do not end with the user.
        """
        object.__setattr__(self, "messages", chat.validate_messages(self.messages, to_answer=True))

    @classmethod
    def of(cls, record: Record) -> Question:
        """The last question of a record. If the answer is one of several captions, all are references.

        Raises:
            ChatError: if the messages are malformed.
        """
        messages, truth = chat.validate_messages(record["messages"]), record.get("answer")
        if messages[-1].role == "assistant":
            messages, truth = messages.question, truth or messages[-1].text
        references = [truth or ""]
        for captions in (record.get("captions") or {}).values():
            if isinstance(captions, list) and truth in captions:
                references += [caption for caption in captions if caption != truth]
                break
        task = record.get("task") or "qa"
        return cls(record.get("id") or "", messages, tuple(references), task, record)

    @property
    def text(self) -> str:
        """The text of the question."""
        return " ".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def truth(self) -> str:
        """The correct answer, or the first of several references."""
        return self.truths[0]

    @property
    def options(self) -> list[str]:
        """The options of a multiple-choice question, as shown in the prompt; empty for an open question."""
        return self.record.get("options") or []

    @property
    def labels(self) -> Mapping[str, Any]:
        """Facts about the recording by name, such as {"emotion": "sad", "actor": "12"}."""
        return self.record.get("labels") or {}

    @property
    def spans(self) -> list[tuple[float, float]]:
        """True spans of a moment query as (start, end) in s; empty for other questions."""
        return [(start, end) for start, end in self.record.get("spans") or ()]

    @property
    def without_media(self) -> list[Message]:
        """The messages with all recordings removed."""
        return [
            message
            | {"content": [part for part in message["content"] if part["type"] == "text"] or [NOTHING]}
            for message in self.messages
        ]
