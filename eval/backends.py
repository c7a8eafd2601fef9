"""Who answers: a checkpoint in this process, or any OpenAI-compatible server. The same prompts, both greedy.

A backend has `name` and `answer(conversations, tell) -> list of texts`; a conversation is a list of messages
(see `mllm.records.chat`) that ends with a user's. A recording that cannot be read costs the answers about it,
and no more. To add one, write the class and give it a flag in `eval.cli`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mllm.errors import MediaError, MllmError
from mllm.records import chat
from mllm.records.openai_parts import to_openai

Tell = Callable[[int], None]  # called with the number of answers that have just come
REFUSED = (400, 413, 415, 422)  # what servers answer to a recording that they cannot take
MAX_TOKENS = 48  # mllm.experiment.Eval.max_new_tokens: the longest caption of the world has 36


@dataclass(frozen=True)
class Unread:
    """In place of an answer: why a recording that was asked about cannot be read."""

    cause: str


class Backend(Protocol):
    """Answers conversations in their order."""

    name: str

    def answer(
        self, conversations: Sequence[list[dict]], tell: Tell = lambda count: None
    ) -> Sequence[str | Unread]:
        """One text per conversation, or why there is none."""
        ...


class HfBackend:
    """Greedy `generate()` in this process, in batches padded at the left."""

    def __init__(
        self, model: Any, processor: Any, name: str = "", batch: int = 32, max_tokens: int = MAX_TOKENS
    ):
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(getattr(model.config, "_name_or_path", "model"))
        self.batch = batch
        self.max_tokens = max_tokens
        # The questions about one clip come one after another: read it once.
        self._read = lru_cache(maxsize=64)(self._read_part)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None, dtype: str = "float32", device: str | None = None, **options
    ):
        """The backend of a checkpoint folder; None takes the one that ships with mllm."""
        import torch

        from mllm.models.checkpoint import find_default_checkpoint, load

        folder = find_default_checkpoint() if folder is None else folder
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load(folder, dtype=dtype, device=device)
        return cls(model, processor, name=str(folder), **options)

    def answer(
        self, conversations: Sequence[list[dict]], tell: Tell = lambda count: None
    ) -> list[str | Unread]:
        import torch

        answers: list[str | Unread] = []
        with torch.inference_mode():
            for first in range(0, len(conversations), self.batch):
                some = conversations[first : first + self.batch]
                encoded = [self._encode(messages) for messages in some]
                readable = [item for item in encoded if not isinstance(item, Unread)]
                said = iter(self._generate(readable) if readable else [])
                answers += [item if isinstance(item, Unread) else next(said) for item in encoded]
                tell(len(some))
        return answers

    def _generate(self, encoded: list[Any]) -> list[str]:
        inputs = self.processor.collate(encoded, "left")
        inputs.pop("labels")
        length = inputs["input_ids"].shape[1]
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_tokens)[:, length:]
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _encode(self, messages: list[dict]) -> Any:
        messages = chat.validate_messages(messages)
        media = [self._read(_Part(part)) for part in chat.media_parts(messages)]
        for item in media:
            if isinstance(item, Unread):
                return item
        return self.processor.encode(messages, add_generation_prompt=True, media=media)

    def _read_part(self, part: _Part) -> Any:
        modality, source, options = part.value
        try:
            return self.processor.media(source, modality, isolated=True, **options)
        except MediaError as error:
            return Unread(str(error))


class _Part:
    """A media part as a cache key: the same path, or the identical object."""

    def __init__(self, value: tuple[str, Any, dict[str, Any]]):
        self.value = value
        modality, source, options = value
        self.key = (modality, str(source) if isinstance(source, str | Path) else id(source), repr(options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Part) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class OpenAIBackend:
    """A server, through the official client, with several requests under way at once.

    Args:
        url: with or without `/v1`.
        model: as the server calls it; None asks the server for its only one.
        concurrent: requests under way at once.
        file_urls: send `file://` paths, which the server must be allowed to read, instead of the bytes.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        concurrent: int = 16,
        max_tokens: int = MAX_TOKENS,
        file_urls: bool = False,
        timeout: float = 300.0,
    ):
        self.url = url.rstrip("/") if url.rstrip("/").endswith("/v1") else url.rstrip("/") + "/v1"
        self.concurrent = concurrent
        self.max_tokens = max_tokens
        self.file_urls = file_urls
        self.timeout = timeout
        self.model = model or self._only_model()
        self.name = f"{self.model} at {self.url}"

    def answer(
        self, conversations: Sequence[list[dict]], tell: Tell = lambda count: None
    ) -> list[str | Unread]:
        return asyncio.run(self._answer(conversations, tell))

    async def _answer(self, conversations: Sequence[list[dict]], tell: Tell) -> list[str | Unread]:
        import openai

        places = asyncio.Semaphore(self.concurrent)

        async def ask(client: openai.AsyncOpenAI, messages: list[dict]) -> str | Unread:
            async with places:
                try:
                    reply = await client.chat.completions.create(
                        model=self.model,
                        messages=to_openai(messages, self.file_urls),
                        temperature=0.0,
                        max_tokens=self.max_tokens,
                    )
                except MediaError as error:
                    return Unread(str(error))
                except openai.APIStatusError as error:
                    if error.status_code not in REFUSED or not any(chat.media_parts(messages)):
                        raise
                    return Unread(_cause(error))
                finally:
                    tell(1)
            return reply.choices[0].message.content or ""

        async with openai.AsyncOpenAI(base_url=self.url, api_key=_api_key(), timeout=self.timeout) as client:
            tasks = [asyncio.ensure_future(ask(client, messages)) for messages in conversations]
            try:
                return list(await asyncio.gather(*tasks))
            except openai.OpenAIError as error:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise MllmError(f"the server at {self.url} failed: {_cause(error)}") from error

    def _only_model(self) -> str:
        import openai

        try:
            served = [
                m.id for m in openai.OpenAI(base_url=self.url, api_key=_api_key(), timeout=30).models.list()
            ]
        except openai.OpenAIError as error:
            start = "start one with mllm serve CKPT"
            raise MllmError(f"no server answers at {self.url} ({_cause(error)}): {start}") from error
        if not served:
            raise MllmError(f"the server at {self.url} serves no model")
        return served[0]


def _api_key() -> str:
    return os.environ.get("OPENAI_API_KEY", "none")


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
