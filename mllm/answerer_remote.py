"""A model behind any OpenAI-compatible server, with the methods of `mllm.answerer.Answerer`.

    answerer = RemoteAnswerer("http://localhost:8000")
    (answer,) = answerer.answer([messages])

Torch is not imported here, and the official client only when an answerer is created.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mllm.errors import MediaError, MllmError
from mllm.files import open_ordinary
from mllm.records import chat
from mllm.records.answers import Generation, Progress, Ranking, Unread, check_options
from mllm.records.openai_parts import to_openai

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

REFUSED = (400, 413, 415, 422)  # statuses for a recording that a server does not accept
NO_LIKELIHOODS = "it gives no log-likelihoods of prompts, as vLLM does (prompt_logprobs)"

Item = TypeVar("Item")
Result = TypeVar("Result")


class RemoteAnswerer:
    """Answers conversations through the official client, with concurrent requests.

    Args:
        url: of the server, with or without `/v1`. The API key is read from OPENAI_API_KEY.
        model: the server's name of the model; None takes its first.
        generation: default settings of generation.
        concurrent: number of concurrent requests.
        file_urls: send `file://` paths, which the server must be allowed to read, instead of the bytes.
        timeout: of a request, s.

    Attributes:
        report: one line on the tokens of the last `stream`.

    Raises:
        MllmError: if no server answers at this URL.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        generation: Generation = Generation(),
        concurrent: int = 16,
        file_urls: bool = False,
        timeout: float = 300.0,
    ):
        import openai

        self.url = f"{url.rstrip('/').removesuffix('/v1')}/v1"
        self.client = openai.OpenAI(
            base_url=self.url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=timeout
        )
        self.generation = generation
        self.concurrent = concurrent
        self.file_urls = file_urls
        self.report = ""
        self.model = model or self._first_model()
        self.name = f"{self.model} at {self.url}"

    def check(self, modality: str, source: str) -> str:
        """Checks that a recording can be sent, and returns its modality.

        Raises:
            MediaError: if the file is missing, or is not an ordinary file.
        """
        if not source.startswith(("http://", "https://", "data:")):
            if not Path(source).exists():
                raise MediaError(f"no such file: {source}")
            open_ordinary(source).close()
        return modality

    def answer(
        self,
        conversations: Sequence[Sequence[chat.Message]],
        generation: Generation | None = None,
        progress: Progress = lambda count: None,
    ) -> list[str | Unread]:
        """One text per conversation, in order; a recording that is refused costs only the answers about it.

        Raises:
            ChatError: if a conversation is malformed.
            MllmError: if the server fails.
        """
        import openai

        settings = generation or self.generation

        def ask(messages: Sequence[chat.Message]) -> str | Unread:
            try:
                reply = self._create(messages, settings)
            except MediaError as error:
                return Unread(str(error))
            except openai.APIStatusError as error:
                if error.status_code not in REFUSED or not chat.validate_messages(messages).media:
                    raise
                return Unread(_cause(error))
            with self._in_openai_form():
                content = reply.choices[0].message.content or ""
                if not isinstance(content, str):
                    raise TypeError(f"an answer of type {type(content).__name__}")
                return content

        return self._at_once(ask, conversations, progress)

    def stream(self, messages: Sequence[chat.Message], generation: Generation | None = None) -> Iterator[str]:
        """The answer, piece by piece.

        Raises:
            ChatError: if the conversation is malformed.
            MllmError: if the server fails or refuses the conversation.
        """
        import openai

        self.report = ""
        chunk = None
        try:
            chunks = self._create(
                messages, generation or self.generation, stream=True, stream_options={"include_usage": True}
            )
            with self._in_openai_form():
                for chunk in chunks:
                    if chunk.usage:
                        used = chunk.usage
                        self.report = f"{used.prompt_tokens} tokens in, {used.completion_tokens} out"
                    if chunk.choices and chunk.choices[0].delta.content:
                        yield chunk.choices[0].delta.content
                if chunk is None:
                    raise TypeError("a stream without anything in it")
        except openai.OpenAIError as error:
            raise self._failure(error) from error

    def rank(self, messages: Sequence[chat.Message], options: Sequence[str]) -> Ranking:
        """How likely each option is as the answer, by the server's log-likelihoods of prompts.

        Raises:
            ChatError: if the conversation is malformed, or an option occurs twice.
            MllmError: if the server fails, or returns no log-likelihoods of prompts.
        """
        options = check_options(options)
        asked = chat.validate_messages(messages, to_answer=True)
        once = Generation(max_tokens=1)
        (prompt,) = self._at_once(lambda messages: self._create(messages, once), [asked])

        def likelihood(option: str) -> float:
            reply = self._create(
                asked.with_answer(option),
                once,
                extra_body={"add_generation_prompt": False, "prompt_logprobs": 0},
            )
            with self._in_openai_form():
                tokens = (reply.model_extra or {}).get("prompt_logprobs")
                start = prompt.usage.prompt_tokens if prompt.usage else 0
            if not start or not isinstance(tokens, list) or len(tokens) <= start:
                raise MllmError(f"the server at {self.url} cannot rank: {NO_LIKELIHOODS}")
            with self._in_openai_form():
                # Each maps the token's id to its log-probability and text.
                answer = [next(iter(token.values())) for token in tokens[start:]]
                while len(answer) > 1 and not (answer[-1].get("decoded_token") or "?").strip():
                    answer.pop()  # white space of the template after the end of the answer
                return math.fsum(token["logprob"] for token in answer)

        return Ranking(options, tuple(self._at_once(likelihood, options)))

    def _create(self, messages: Sequence[chat.Message], generation: Generation, **options: Any) -> Any:
        """Sends one request; raises the client's own errors."""
        extra = options.pop("extra_body", {})
        if generation.min_tokens:
            extra["min_tokens"] = generation.min_tokens
        if generation.seed is not None:
            options["seed"] = generation.seed
        if generation.top_p != 1.0:
            options["top_p"] = generation.top_p
        translated = to_openai(messages, self.file_urls)
        with self._in_openai_form():
            reply: ChatCompletion = self.client.chat.completions.create(
                model=self.model,
                messages=translated,  # type: ignore[arg-type]
                max_tokens=generation.max_tokens,
                temperature=generation.temperature,
                extra_body=extra or None,
                **options,
            )
            return reply

    def _at_once(
        self,
        call: Callable[[Item], Result],
        items: Sequence[Item],
        progress: Progress = lambda count: None,
    ) -> list[Result]:
        """The result for each item, in order; the server's first failure cancels all pending requests."""
        import openai

        pool = ThreadPoolExecutor(self.concurrent)
        futures = [pool.submit(call, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                progress(1)
        except openai.OpenAIError as error:
            raise self._failure(error) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]

    @contextmanager
    def _in_openai_form(self) -> Iterator[None]:
        """An MllmError for a reply that has not OpenAI's form, which the client does not check."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, JSONDecodeError, StopIteration) as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MllmError(
                f"what answers at {self.url} has not the form of OpenAI's API ({cause}): check the URL"
            ) from error

    def _failure(self, error: Exception) -> MllmError:
        return MllmError(f"the server at {self.url} says: {_cause(error)}")

    def _first_model(self) -> str:
        import openai

        try:
            with self._in_openai_form():
                served = [model.id for model in self.client.with_options(timeout=30).models.list()]
        except openai.OpenAIError as error:
            remedy = "start one with mllm serve CKPT"
            raise MllmError(
                f"no OpenAI-compatible server at {self.url} ({_cause(error)}): {remedy}"
            ) from error
        if not served:
            raise MllmError(f"the server at {self.url} serves no model")
        return served[0]


def _cause(error: Exception) -> str:
    """The server's own message in one line, if it sent one."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error).split()) or type(error).__name__
