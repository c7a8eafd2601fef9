"""The rules for requests to our server: whatever would not be honoured is rejected, never silently ignored.

vLLM drops unknown fields, and passes others to a chat template that ignores them: a client that requests
tools, a thinking budget or a spoken answer would get an answer without them. Messages follow the rules of
`mllm.records.chat`, with the same errors, so a server rejects what `generate` rejects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from mllm.errors import MllmError
from mllm.records import chat

Body = dict[str, Any]
NOTHING: tuple[Any, ...] = (None, [], {}, "")

# Identify the client and what may be cached: they do not change the answer.
HARMLESS = {"user", "session_id", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}

# Fields that vLLM reads but our model cannot honour, or that are OpenAI's but vLLM drops, with the values
# that are allowed, since they request the default.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "background": (False,),
    "chat_template_kwargs": (),
    "context_management": (),
    "conversation": (),
    "documents": (),
    "ec_transfer_params": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "kv_transfer_params": (),
    "max_tool_calls": (),
    "mcp_servers": (),
    "media_io_kwargs": (),
    "metadata": (),
    "mm_payload": ("tensors",),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "moderation": (),
    "output_config": (),
    "prediction": (),
    "previous_input_messages": (),
    "previous_response_id": (),
    "priority": (0,),
    "reasoning": ({"effort": "none"},),
    "reasoning_effort": ("none",),
    "return_mm_kwargs": (True,),
    "return_token_offsets": (False,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": (),
    "thinking": ({"type": "disabled"},),
    "thinking_token_budget": (),
    "verbosity": ("medium",),
    "vllm_xargs": (),
    "watermarking": (False,),
    "web_search_options": (),
}
_MODALITIES = {"video_url": "video", "audio_url": "audio", "input_audio": "audio", "image_url": "image"}
BEAM_IGNORES = (
    *("response_format", "structured_outputs", "stop", "stop_token_ids", "logit_bias", "bad_words", "seed"),
    *("allowed_token_ids", "min_tokens", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logprob_token_ids"),
)
TOOLS = "this model calls no tools"
RESPONSES_PARTS = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
SERVED_PARTS = "text, video_url, audio_url, input_audio or image_url"


class ApiError(MllmError):
    """A request that this server cannot honour. `field` is the part of the body that it is about."""

    code = "invalid_request"

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


# A lone surrogate in JSON, as an escape or as invalid UTF-8.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def check_characters(data: bytes, body: Body) -> None:
    """Rejects lone surrogates, on which vLLM fails wherever they occur: in a text, a name, a stop word.

    Args:
        data: the raw request.
        body: the parsed request.
    """
    if not _HALF.search(data):  # far faster than walking through a request of many megabytes
        return
    for place, text in _texts(body):
        if chat.LONE_SURROGATE.search(text):
            raise ApiError(f"{place} holds half a character (a lone surrogate): send whole ones", place)


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yields (path, text) of all texts in a request; keys count as texts of their object."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield place or "a field's name", key
            yield from _texts(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{index}]")


def check_fields(body: Body, known: Collection[str], honoured: Collection[str] = ()) -> None:
    """Rejects fields that are unknown or without effect.

    Args:
        known: the fields that vLLM accepts at this endpoint.
        honoured: fields of `NOT_HONOURED` that this server does honour.
    """
    for field, value in body.items():
        if field in HARMLESS or field in honoured or value is None:
            continue
        if field in NOT_HONOURED:
            allowed = NOT_HONOURED[field]
            given = {key: item for key, item in value.items() if item} if isinstance(value, dict) else value
            if given in NOTHING or given in allowed:
                continue
            instead = f", or set it to {json.dumps(allowed[0])}" if allowed else ""
            raise ApiError(f"this server does not honour {field!r}: leave it out{instead}", field)
        if field not in known:
            near = get_close_matches(field, [*known], n=1, cutoff=0.7)
            if field.startswith("guided_"):
                near = ["structured_outputs"]
            remedy = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise ApiError(f"this server does not know a field {field!r}: {remedy}", field)
    _check_beams(body)
    limits = [body[field] for field in ("max_tokens", "max_completion_tokens") if body.get(field) is not None]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise ApiError("'max_tokens' is another name of 'max_completion_tokens': leave one out", "max_tokens")
    _check_keys(body.get("stream_options"), {"include_usage", "continuous_usage_stats"}, "stream_options")
    _check_tools(body)
    _check_format(body)


def check_beside_adapters(body: Body) -> None:
    """Rejects log-likelihoods of prompts, which crash vLLM 0.32 if it serves adapters.

    An echo implies them: in a chat always, in a completion with `logprobs`.
    """
    echoed = body.get("echo") and ("messages" in body or body.get("logprobs") is not None)
    if body.get("prompt_logprobs") is not None or echoed:
        field = "echo" if echoed else "prompt_logprobs"
        raise ApiError(
            f"this server holds adapters (--enable-lora) and can't give log-likelihoods of prompts: leave "
            f"{field!r} out, or ask a server without adapters",
            field,
        )


def check_chat(body: Body) -> None:
    """Checks the messages of a chat request."""
    if "messages" in body:
        to_answer = body.get("add_generation_prompt") is not False and not body.get("continue_final_message")
        check_messages(body["messages"], to_answer)


def check_batch(body: Body) -> None:
    """Checks several conversations in one request."""
    conversations = body.get("messages")
    for messages in conversations if isinstance(conversations, list) else []:
        check_chat(body | {"messages": messages})


def check_responses(body: Body) -> None:
    """Checks the input of `/v1/responses`: text and images, in messages."""
    wanted = body.get("include") or []
    for what in wanted if isinstance(wanted, list) else []:
        if what != "message.output_text.logprobs":
            raise ApiError(f"this server has nothing to include for {what!r}: leave it out", "include")
    if body.get("top_logprobs") and not wanted:
        raise ApiError('\'top_logprobs\' needs "include": ["message.output_text.logprobs"]', "top_logprobs")
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise ApiError("'input' must be a text or a list of messages", "input")
    messages = [_message_of(item, f"input {index}") for index, item in enumerate(items)]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    unfinished = items and items[-1].get("status") in ("in_progress", "incomplete")
    chat.validate_messages(messages, to_answer=not unfinished)


def check_messages(messages: Any, to_answer: bool = True) -> None:
    """Checks messages by the rules of `mllm.records.chat` and the stricter ones of a server.

    Raises:
        ChatError: for messages that `generate` would reject, too.
        ApiError: for what only a server rejects: paths of recordings, bare texts as parts, tool calls.
    """
    whole = messages if isinstance(messages, list) else []
    for index, message in enumerate(whole):
        for key, value in message.items() if isinstance(message, dict) else ():
            if key not in ("role", "content", "loss") and value not in NOTHING:
                why = f": {TOOLS}" if "call" in key else ""
                raise ApiError(f"message {index} has {key!r}, which nothing here honours{why}", "messages")
    chat.validate_messages([_with_urls(message) for message in whole] if whole else messages, to_answer)
    for index, message in enumerate(whole):
        parts = message["content"] if isinstance(message["content"], list) else []
        for place, part in enumerate(parts):
            where = f"message {index} part {place}"
            if isinstance(part, str):
                raise ApiError(f"{where} is a bare text: write {{'type': 'text', 'text': …}}", "messages")
            kind = part["type"]
            if kind in chat.PLACEHOLDERS:
                raise ApiError(f"{where} has type {kind!r}: a server takes {SERVED_PARTS}", "messages")
            if kind.endswith("_url") and not isinstance(part[kind], dict) and not part.get("uuid"):
                raise ApiError(f"{where} of type {kind!r} needs {kind!r}: {{'url'}}", "messages")


def named_parts(messages: Any) -> list[tuple[str, str | None, str]]:
    """(modality, URL or None, uuid) of the recordings with a uuid in checked messages."""
    named = []
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] in _MODALITIES and part.get("uuid"):
                whole = chat.validate_messages([{"role": "user", "content": [_with_url(part)]}])
                (medium,) = whole.media
                url = medium.source if _with_url(part) is part else None
                named.append((medium.modality, url, str(part["uuid"])))
    return named


def _with_urls(message: Any) -> Any:
    """The message with a URL in each part that refers to an earlier recording by uuid alone."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_with_url(part) for part in message["content"]]}


def _with_url(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in _MODALITIES or not part.get("uuid"):
        return part
    if part.get(kind) not in (*NOTHING, {"url": None}):
        return part
    return {"type": f"{_MODALITIES[kind]}_url", f"{_MODALITIES[kind]}_url": f"uuid:{part['uuid']}"}


def _message_of(item: Any, where: str) -> dict[str, Any]:
    """Converts an item of a Responses input to a chat message."""
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        kind = item.get("type") if isinstance(item, dict) else type(item).__name__
        raise ApiError(f"{where} is of type {kind!r}: this server takes messages; {TOOLS}", "input")
    if "content" not in item or "role" not in item:
        raise ApiError(f"{where} must be an object with 'role' and 'content'", "input")
    _check_keys(item, {"type", "role", "content", "id", "status", "phase"}, where)
    content = item["content"]
    if not isinstance(content, list):
        return {"role": item["role"], "content": content}
    if item["role"] == "assistant" and len(content) > 1:
        raise ApiError(f"{where} has {len(content)} parts: an assistant's message takes one text", "input")
    return {
        "role": item["role"],
        "content": [_part_of(part, f"{where} part {index}") for index, part in enumerate(content)],
    }


def _part_of(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(kind, str) or kind not in RESPONSES_PARTS:
        raise ApiError(
            f"{where} has type {kind!r}: /v1/responses takes input_text and input_image; "
            "send video and sound to /v1/chat/completions, as video_url, audio_url or input_audio",
            "input",
        )
    keys = {"image_url", "detail"} if kind == "input_image" else {"text", "annotations", "logprobs"}
    _check_keys(part, keys | {"type", "file_id"}, where)
    if kind != "input_image":
        return {"type": "text", "text": part.get("text")}
    if not isinstance(part.get("image_url"), str):
        raise ApiError(
            f"{where} of type 'input_image' needs 'image_url': a URL; no files are kept here", "input"
        )
    return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail")}}


def _check_beams(body: Body) -> None:
    if not body.get("use_beam_search"):
        if body.get("length_penalty") not in (None, 1):
            raise ApiError("'length_penalty' acts on 'use_beam_search' alone: leave it out", "length_penalty")
        return
    for field in BEAM_IGNORES:
        if body.get(field) not in NOTHING:
            raise ApiError(f"'use_beam_search' does not honour {field!r}: leave one of them out", field)


def _check_tools(body: Body) -> None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none"):
        return
    if tools not in NOTHING:
        first = tools[0] if isinstance(tools, list) else tools
        kind = first.get("type", "function") if isinstance(first, dict) else type(first).__name__
        raise ApiError(f"{TOOLS} (tools[0] is of type {kind!r}): leave 'tools' out", "tools")
    if choice not in (None, "auto"):
        raise ApiError(f"{TOOLS}: leave 'tool_choice' out", "tool_choice")


def _check_format(body: Body) -> None:
    """Checks `response_format`, its counterpart `text.format` in Responses, and `structured_outputs`."""
    name, wanted = "response_format", body.get("response_format")
    if isinstance(body.get("text"), dict):
        text = body["text"]
        _check_keys(
            {key: text[key] for key in text if (key, text[key]) != ("verbosity", "medium")},
            {"format"},
            "text",
        )
        name, wanted = "text.format", text.get("format")
    if wanted is not None:
        _check_wanted(wanted, name)
    options = {
        "json",
        "regex",
        "choice",
        "grammar",
        "json_object",
        "structural_tag",
        "disable_any_whitespace",
    }
    _check_keys(body.get("structured_outputs"), options, "structured_outputs")


def _check_wanted(wanted: Any, name: str) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind not in ("text", "json_object", "json_schema", "structural_tag"):
        raise ApiError(f"{name} has type {kind!r}: use text, json_object or json_schema", name)
    if kind == "structural_tag":
        if "triggers" not in wanted:
            raise ApiError(f"{name} of type 'structural_tag' needs 'structures' and 'triggers'", name)
        return
    if kind != "json_schema":
        return _check_keys(wanted, {"type"}, name)
    keys, holder, where = {"name", "schema", "strict", "description"}, wanted, name
    if name == "response_format":
        _check_keys(wanted, {"type", "json_schema"}, name)
        holder, where = wanted.get("json_schema"), f"{name}.json_schema"
    if not isinstance(holder, dict) or not isinstance(holder.get("schema"), dict):
        raise ApiError(f"{where} needs 'name' and 'schema', an object with a JSON schema", name)
    _check_keys(holder, keys | {"type"} if holder is wanted else keys, where)


def _check_keys(value: Any, known: set[str], name: str) -> None:
    for key, said in value.items() if isinstance(value, dict) else ():
        if key not in known and said not in NOTHING and said is not False:
            raise ApiError(f"this server does not honour {key!r} in {name!r}: leave it out", name)


LOAD_ADAPTER = "/v1/load_lora_adapter"
RULES: dict[str, Callable[[Body], None]] = {
    "/v1/chat/completions": check_chat,
    "/v1/chat/completions/batch": check_batch,
    "/v1/responses": check_responses,
    "/v1/completions": lambda body: None,
    "/v1/messages": lambda body: None,  # messages in Anthropic's format: the chat template checks them
    "/invocations": check_chat,
    LOAD_ADAPTER: lambda body: None,  # `api` compares the adapter with the model
}
