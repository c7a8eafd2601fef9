"""What local and remote answerers share: generation settings, results, and the contract itself.

`mllm.answerer.Answerer` is a checkpoint in this process, `mllm.answerer_remote.RemoteAnswerer` a server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mllm.errors import ChatError, ConfigError
from mllm.records.chat import LONE_SURROGATE, Message

Progress = Callable[[int], None]  # called with the number of answers that have just arrived


@dataclass(frozen=True)
class Generation:
    """Settings of generation.

    Attributes:
        max_tokens, min_tokens: bounds on the length of an answer.
        temperature: 0 always takes the likeliest token.
        top_p: samples only from the likeliest tokens that together have this probability.
        seed: makes sampling reproducible.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def number(value: object, *kinds: type) -> bool:
            return isinstance(value, kinds) and not isinstance(value, bool)

        if not (number(self.max_tokens, int) and self.max_tokens >= 1):
            raise ConfigError(f"max_tokens is {self.max_tokens!r:.80}: give a whole number, at least 1")
        if not (number(self.min_tokens, int) and 0 <= self.min_tokens <= self.max_tokens):
            raise ConfigError(f"min_tokens is {self.min_tokens!r:.80}: give 0 to max_tokens")
        if not (number(self.temperature, int, float) and 0 <= self.temperature < math.inf):
            raise ConfigError(f"temperature is {self.temperature!r:.80}: give a number, at least 0")
        if not (number(self.top_p, int, float) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p is {self.top_p!r:.80}: give a number above 0, at most 1")
        if self.seed is not None and not (number(self.seed, int) and abs(self.seed) < 2**63):
            raise ConfigError(f"seed is {self.seed!r:.80}: give a whole number of at most 63 bits")


@dataclass(frozen=True)
class Unread:
    """Takes the place of an answer if a recording cannot be read; `cause` says why."""

    cause: str


@dataclass(frozen=True)
class Ranking:
    """How likely each of a closed set of answers is.

    Attributes:
        options: the answers, in the order given.
        log_likelihoods: natural logarithm of the probability of each, end marker included, given the
            conversation.
    """

    options: tuple[str, ...]
    log_likelihoods: tuple[float, ...]

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of each option, given that the answer is one of them; they sum to 1."""
        highest = max(self.log_likelihoods)
        weights = [math.exp(value - highest) for value in self.log_likelihoods]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def best(self) -> str:
        """The likeliest option."""
        return self.options[self.log_likelihoods.index(max(self.log_likelihoods))]


class Backend(Protocol):
    """Answers conversations: lists of messages (see `mllm.records.chat`) that end with the user's.

    Attributes:
        name: name of the model in reports.
        report: one line on what the last `stream` saw or cost.
    """

    name: str
    report: str

    def check(self, modality: str, source: str) -> str:
        """Reads a recording in advance, and returns one line about it.

        Raises:
            MediaError: if it cannot be used.
        """
        ...

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        generation: Generation | None = None,
        progress: Progress = lambda count: None,
    ) -> list[str | Unread]:
        """One text per conversation, in order; an unreadable recording costs only the answers about it."""
        ...

    def stream(self, messages: Sequence[Message], generation: Generation | None = None) -> Iterator[str]:
        """The answer, piece by piece.

        Raises:
            MediaError: if a recording cannot be read.
        """
        ...

    def rank(self, messages: Sequence[Message], options: Sequence[str]) -> Ranking:
        """How likely each option is as the answer.

        Raises:
            MediaError: if a recording cannot be read.
        """
        ...


def check_options(options: Iterable[str]) -> tuple[str, ...]:
    """Checks the options to rank, and returns them.

    Raises:
        ChatError: if there are none, if two are equal, or if one is not text.
    """
    given = () if isinstance(options, str) or not isinstance(options, Iterable) else tuple(options)
    if not given or not all(isinstance(option, str) for option in given):
        raise ChatError("options must be a list with at least one text in it")
    if (twice := next((option for option, count in Counter(given).items() if count > 1), None)) is not None:
        raise ChatError(f"the option {twice!r} occurs twice: give each once")
    if (half := next((option for option in given if LONE_SURROGATE.search(option)), None)) is not None:
        raise ChatError(f"the option {half!r} holds half a character (a lone surrogate): give whole ones")
    return given
