"""What a benchmark asks: a conversation that ends with the user's question, and all that scoring it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm.records import chat
from mllm.records.chat import Message
from mllm.records.record import Record

NOTHING = {"type": "text", "text": "?"}  # what is left of a message that is a recording alone


@dataclass(frozen=True)
class Question:
    """A question with its right answers.

    Attributes:
        id: joins answers to questions.
        messages: end with the user's question; earlier turns stay in the prompt.
        truths: the right answer, or several references; the first stands in reports.
        type: what the question is about, such as "colour": one row of the report.
        record: the whole record it came from: options, labels, spans, and whatever else a scorer needs.
    """

    id: str
    messages: Sequence[Message]
    truths: tuple[str, ...]
    type: str = "qa"
    record: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the messages, and writes each content as a list of parts.

        Raises:
            ChatError: if they are malformed, or do not end with the user.
        """
        object.__setattr__(self, "messages", chat.validate_messages(self.messages, to_answer=True))

    @classmethod
    def of(cls, record: Record) -> Question:
        """The last question of a record. Its references are all captions that its answer is one of.

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
        """The question in words."""
        return " ".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def truth(self) -> str:
        """The right answer, or the first of several."""
        return self.truths[0]

    @property
    def options(self) -> list[str]:
        """What the question offers to choose from, as its prompt shows it; empty for an open question."""
        return self.record.get("options") or []

    @property
    def labels(self) -> Mapping[str, Any]:
        """Facts about the recording by name, such as {"emotion": "sad", "actor": "12"}."""
        return self.record.get("labels") or {}

    @property
    def spans(self) -> list[tuple[float, float]]:
        """When what is looked for happens, as (start, end) in s; empty where it is no moment query."""
        return [(start, end) for start, end in self.record.get("spans") or ()]

    @property
    def without_media(self) -> list[Message]:
        """The same words, and nothing to look at or listen to."""
        return [
            message
            | {"content": [part for part in message["content"] if part["type"] == "text"] or [NOTHING]}
            for message in self.messages
        ]
