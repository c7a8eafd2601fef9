"""A checked conversation: typed, frozen, and still the JSON of records.

`chat.validate_messages` makes one, and returns one unchanged; code reads its attributes (`turn.role`,
`part.source`), JSON is written from its keys. `turn | {…}` or `[*conversation, …]` returns plain JSON again,
to be checked like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar


def _refuse(self: Any, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(f"a {type(self).__name__} that has been checked is frozen: make a new one")


class _FrozenDict(dict[str, Any]):
    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


T = TypeVar("T")


class _FrozenList(list[T]):
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = _refuse  # type: ignore[assignment]
    remove = pop = clear = sort = reverse = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)


class TextPart(_FrozenDict):
    """`{"type": "text", "text"}`"""

    @property
    def text(self) -> str:
        text: str = self["text"]
        return text


class MediaPart(_FrozenDict):
    """`{"type": "video", "video": SOURCE, "start"?, "end"?, "audio"?}`, likewise for audio and image."""

    @property
    def modality(self) -> str:
        """video, audio or image."""
        modality: str = self["type"]
        return modality

    @property
    def source(self) -> Any:
        """Path, bytes, data: URI or Clip."""
        return self[self["type"]]

    @property
    def options(self) -> dict[str, Any]:
        """Whichever of start, end (s) and audio (the separate sound of a video) are given."""
        own = ("type", self["type"])
        return {key: value for key, value in self.items() if key not in own}

    def of(self, source: Any) -> MediaPart:
        """The same kind of part for another source, without start, end and separate sound."""
        return MediaPart({"type": self.modality, self.modality: source})


Part: TypeAlias = TextPart | MediaPart


class Turn(_FrozenDict):
    """`{"role", "content": [part, …], "loss"?: false}`"""

    @property
    def role(self) -> str:
        """system, user or assistant."""
        role: str = self["role"]
        return role

    @property
    def parts(self) -> list[Part]:
        parts: list[Part] = self["content"]
        return parts

    @property
    def text(self) -> str:
        """The concatenated text of its parts."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def trained(self) -> bool:
        """Whether the loss includes it."""
        return self.role == "assistant" and self.get("loss", True)

    def with_parts(self, parts: list[Part]) -> Turn:
        """The same turn with other parts."""
        return Turn(self | {"content": _FrozenList(parts)})


def turn_of(role: str, parts: list[Part], trained: bool = True) -> Turn:
    """A message of checked parts."""
    return Turn({"role": role, "content": _FrozenList(parts)} | ({} if trained else {"loss": False}))


class Conversation(_FrozenList[Turn]):
    """Checked turns: the result of `chat.validate_messages`, or derived from another conversation."""

    @classmethod
    def restored(cls, messages: Iterable[Mapping[str, Any]]) -> Conversation:
        """Rebuilds a conversation from its JSON without checking it again."""
        return cls(
            turn_of(
                turn["role"],
                [(TextPart if part["type"] == "text" else MediaPart)(part) for part in turn["content"]],
                trained=turn.get("loss", True),
            )
            for turn in messages
        )

    @property
    def media(self) -> list[MediaPart]:
        """Its recordings in order of appearance."""
        return [part for turn in self for part in turn.parts if isinstance(part, MediaPart)]

    @property
    def texts(self) -> list[str]:
        """Its text parts in order of appearance."""
        return [part.text for turn in self for part in turn.parts if isinstance(part, TextPart)]

    def with_media(self, change: Callable[[MediaPart], MediaPart]) -> Conversation:
        """The same conversation with other recordings."""
        return Conversation(
            turn.with_parts([change(part) if isinstance(part, MediaPart) else part for part in turn.parts])
            for turn in self
        )

    @property
    def question(self) -> Conversation:
        """The conversation without a final answer."""
        return Conversation(self[:-1]) if self[-1].role == "assistant" else self

    def with_answer(self, text: str) -> Conversation:
        """The same conversation followed by an answer."""
        return Conversation([*self, turn_of("assistant", [TextPart(type="text", text=text)])])
