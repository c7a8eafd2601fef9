"""The ASGI middleware between clients and vLLM's API, added to every server of our model.

It rejects requests that would not be honoured (`api_rules`), reports in the answer's usage how much of the
recordings was seen (`api_usage`), and shortens vLLM's validation errors to one line. During a request,
`current` identifies the client.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import checkpoint_shapes
from mllm.models.lora import check_served
from mllm.vllm.api_rules import (
    LOAD_ADAPTER,
    RULES,
    ApiError,
    check_beside_adapters,
    check_characters,
    check_fields,
    named_parts,
)
from mllm.vllm.api_usage import MediaUsage

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mllm.models.encoded import MediaFeatures
    from mllm.models.processor import MllmProcessor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

COUNTED = ("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/responses", "/invocations")
HONOURED_WITH = {  # fields that vLLM honours if its flag was given
    "priority": "scheduling_policy",
    "watermarking": "watermark_config",
    "kv_transfer_params": "kv_transfer_config",
    "ec_transfer_params": "ec_transfer_config",
    "vllm_xargs": "logits_processors",
}
LONG = 10_000  # characters, from which a string is taken for encoded data
REMEMBERED = 4096  # recordings whose usage is kept for requests that name them by uuid


@dataclass
class Exchange:
    """The state of one request.

    Attributes:
        client: address of the client; "" if unknown (a Unix socket).
        usage: of the recordings read so far.
        named: uuids that the client has given to recordings, by (modality, URL).
        error: why a recording could not be read.
    """

    client: str = ""
    usage: MediaUsage = field(default_factory=MediaUsage)
    named: dict[tuple[str, str], str] = field(default_factory=dict)
    error: MllmError | None = None


# The request of the current task; None outside of a server (`LLM.generate`). Child tasks inherit it, threads
# do not.
current: ContextVar[Exchange | None] = ContextVar("current", default=None)

_remembered: OrderedDict[tuple[str, str], MediaUsage] = OrderedDict()  # by modality and uuid


def note(
    modality: str, url: str, features: MediaFeatures, processor: MllmProcessor, transcript_tokens: int = 0
) -> None:
    """Adds a recording that the connector has read to the current request's usage."""
    exchange = current.get()
    if exchange is None:
        return
    usage = MediaUsage.of(features, processor, transcript_tokens)
    exchange.usage += usage
    uuid = exchange.named.get((modality, url))
    if uuid is not None:
        _remembered[modality, uuid] = usage
        _remembered.move_to_end((modality, uuid))
        while len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)


class ApiMiddleware:
    """Wraps vLLM's application, inside its authentication.

    Args:
        app: the application.
        is_ours: whether it serves our model; requests to other models pass unchanged.
    """

    def __init__(self, app: Application, is_ours: Callable[[], bool] = lambda: True):
        self.app = app
        self.is_ours = is_ours

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.is_ours():
            return await self.app(scope, receive, send)
        exchange = Exchange(client=(scope.get("client") or ("",))[0])
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["method"] == "POST" and path in RULES:
            data = await _read(receive)
            if data is None:
                return
            try:
                _check(path, _parse(data), exchange, getattr(scope.get("app"), "state", None))
            except MllmError as error:
                return await _refuse(send, error)
            receive = _again(data, receive)
            del data  # possibly a hundred megabytes
            send = _Answer(send, exchange, counted=path in COUNTED)
        token = current.set(exchange)
        try:
            await self.app(scope, receive, send)
        finally:
            current.reset(token)


def _parse(data: bytes) -> dict[str, Any]:
    """Parses the body for the checks, without embedded recordings, unless uuids are attached to them.

    vLLM parses it again anyway, at 3 ms per megabyte.
    """
    if b'"uuid"' not in data:
        for mark in (b";base64,", b'"data":"', b'"data": "'):
            data = _without_long_strings(data, mark)
    try:
        body = json.loads(data)
    except RecursionError:
        raise ApiError("the request is nested too deeply") from None
    except ValueError as error:
        raise ApiError(f"the request is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(f"the request must be a JSON object, not {type(body).__name__}")
    check_characters(data, body)
    return body


def _without_long_strings(data: bytes, mark: bytes) -> bytes:
    """The JSON with long string contents after `mark` replaced by one letter."""
    pieces, done, start = [], 0, data.find(mark)
    while start >= 0:
        end = data.find(b'"', start + len(mark))
        if end < 0 or data[end - 1 : end] == b"\\":  # not JSON, or an escaped quotation mark: not base64
            return data
        if end - start > LONG:
            pieces += [data[done : start + len(mark)], b"A"]
            done = end
        start = data.find(mark, end)
    return b"".join([*pieces, data[done:]])


def _check(path: str, body: dict[str, Any], exchange: Exchange, state: Any) -> None:
    if path == "/invocations":
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    honoured = {"metadata"} if path in ("/v1/responses", "/v1/messages") else set()
    for name, flag in HONOURED_WITH.items():
        if getattr(getattr(state, "args", None), flag, None) not in (None, [], {}, "fcfs"):
            honoured.add(name)
    if path == "/v1/responses" and os.environ.get("VLLM_ENABLE_RESPONSES_API_STORE", "0") not in ("", "0"):
        honoured |= {"store", "background", "previous_response_id"}
    check_fields(body, _known_fields(path), honoured)
    if getattr(getattr(state, "args", None), "enable_lora", False):
        check_beside_adapters(body)
    RULES[path](body)
    if path == LOAD_ADAPTER:
        _check_adapter(body.get("lora_path"), str(getattr(getattr(state, "args", None), "model", "")))
    if path == "/v1/chat/completions" and "messages" in body:
        for modality, url, uuid in named_parts(body["messages"]):
            if url is None:
                exchange.usage += _remembered.get((modality, uuid), MediaUsage())
            else:
                exchange.named[modality, url] = uuid


def _check_adapter(folder: Any, model: str) -> None:
    """Raises MllmError if a local adapter does not fit the model completely."""
    if isinstance(folder, str) and os.path.isdir(folder) and os.path.isdir(model):
        check_served(Path(folder), checkpoint_shapes(Path(model)), model)


@lru_cache
def _known_fields(path: str) -> frozenset[str]:
    """The fields that vLLM accepts at an endpoint."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import (
        BatchChatCompletionRequest,
        ChatCompletionRequest,
    )
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    models: dict[str, Any] = {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/chat/completions/batch": BatchChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/messages": AnthropicMessagesRequest,
        LOAD_ADAPTER: LoadLoRAAdapterRequest,
    }
    return frozenset(models[path].model_fields)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the client disconnects before it has arrived."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(data: bytes, receive: Receive) -> Receive:
    """A `receive` that replays a body, then passes on later messages (the client's disconnect)."""
    pieces = [data]

    async def receive_again() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": False}
        return await receive()

    return receive_again


async def _refuse(send: Send, error: MllmError) -> None:
    text = " ".join(str(error).split())
    _log.info("refused, status %d: %s", error.status, text)
    body = {
        "message": text,
        "type": "BadRequestError" if error.status == 400 else HTTPStatus(error.status).phrase,
        "param": getattr(error, "field", "messages"),
        "code": error.code,
    }
    data = json.dumps({"error": body}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


# --- the answer -----------------------------------------------------------------------------------


class _Answer:
    """`send` for one answer: buffers JSON until it is complete, and passes on events one by one."""

    def __init__(self, send: Send, exchange: Exchange, counted: bool):
        self.send = send
        self.exchange = exchange
        self.counted = counted
        self.start: Message = {}
        self.held = b""
        self.kind = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            self.kind = dict(message["headers"]).get(b"content-type", b"").partition(b";")[0]
            if self.kind != b"application/json":
                await self.send(message)
        elif message["type"] != "http.response.body" or self.kind not in (
            b"application/json",
            b"text/event-stream",
        ):
            await self.send(message)
        elif self.kind == b"text/event-stream":
            await self._event(message)
        else:
            self.held += message.get("body", b"")
            if not message.get("more_body", False):
                await self._whole()

    async def _event(self, message: Message) -> None:
        data = self.held + message.get("body", b"")
        whole, separator, self.held = data.rpartition(b"\n\n")
        if not message.get("more_body", False):
            whole, separator, self.held = data, b"", b""
        if self.counted and b'"usage"' in whole:
            whole = b"\n\n".join(map(self.exchange.usage.fill_event, whole.split(b"\n\n")))
        if whole or separator or not message.get("more_body", False):
            await self.send({**message, "body": whole + separator})

    async def _whole(self) -> None:
        data = self.held
        answer = json.loads(data)
        if self.start["status"] >= 400:
            error = answer.get("error") if isinstance(answer, dict) else None
            if isinstance(error, dict) and isinstance(error.get("message"), str):
                error["message"] = one_line(error["message"])
                if self.exchange.error is not None:  # vLLM repeats the status here
                    error["code"] = self.exchange.error.code
                data = json.dumps(answer).encode()
        elif self.counted and isinstance(answer, dict):
            self.exchange.usage.fill(answer)
            data = json.dumps(answer).encode()
        headers = [pair for pair in self.start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(data)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": data})


_LISTED = re.compile(r"""'loc': '(?:body\.)?([^']*)', 'msg': (?:'([^']*)'|"([^"]*)")""")
_PRINTED = re.compile(r"^\d+ validation errors? for .*\n(\S+)\n\s+(.*?)(?: \[type=|$)", re.MULTILINE)


def one_line(message: str) -> str:
    """vLLM's error in one line; of pydantic's list, with an entry per type a field may have, the first."""
    if "validation error" in message:
        if listed := _LISTED.search(message):
            return f"{listed[1]}: {listed[2] or listed[3]}"
        if printed := _PRINTED.search(message):
            return f"{printed[1]}: {printed[2]}"
    return " ".join(message.split())


# --- adding it ------------------------------------------------------------------------------------


def attach(is_ours: Callable[[], bool]) -> None:
    """Adds the middleware to vLLM's servers in this process; safe to call again.

    vLLM has no hook for it in plugins, and `--middleware` would be needed with every `vllm serve`. So this
    wraps the function that adds vLLM's own middleware: ours comes inside, after authentication. It also
    enables the details of the usage, which otherwise need a flag.
    """
    from vllm.entrypoints.launchers import app as launcher

    add_vllms = launcher.init_entrypoints_middleware
    if getattr(add_vllms, "with_mllm", False):
        return

    def add_all(arguments: Any, app: Any, *more: Any) -> None:
        app.add_middleware(ApiMiddleware, is_ours=is_ours)
        if is_ours():
            arguments.enable_prompt_tokens_details = True
        add_vllms(arguments, app, *more)

    add_all.with_mllm = True  # type: ignore[attr-defined]
    launcher.init_entrypoints_middleware = add_all
