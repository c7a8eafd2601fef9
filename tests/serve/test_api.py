"""The real server's API: nothing is passed over in silence, JSON ends, and the usage says what was seen."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mllm.errors import ChatError
from mllm.records.chat import validate_messages
from mllm.records.openai_parts import media_url

pytestmark = pytest.mark.slow


def part(path, modality: str) -> dict[str, Any]:
    return {"type": f"{modality}_url", f"{modality}_url": {"url": media_url(path, modality)}}


def ask(client, *parts: dict[str, Any], **options: Any):
    content = [*parts, {"type": "text", "text": "What is seen?"}]
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        **{"model": "nano", "messages": messages, "max_tokens": 4, **options}
    )


def post(server, path: str, body: dict[str, Any]) -> tuple[int, str]:
    reply = httpx.post(f"{server.api}/{path}", json={"model": "nano"} | body, timeout=60)
    return reply.status_code, reply.json().get("error", {}).get("message", "")


# --- what is not honoured -------------------------------------------------------------------------

HOSTED = ["file_search", "web_search", "code_interpreter", "computer_use_preview", "image_generation", "mcp"]
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("kind", [*HOSTED, "local_shell", "custom", "function"])
def test_responses_refuse_tools(server, kind):
    tool = {"type": kind, "name": "f", "parameters": {}, "vector_store_ids": ["v"], "container": "auto"}
    status, message = post(server, "responses", {"input": "hi", "tools": [tool]})
    assert (status, "calls no tools" in message) == (400, True)


@pytest.mark.parametrize("kind", ["input_audio", "input_file", "video_url"])
def test_responses_refuse_recordings_in_one_line(server, kind):
    content = [{"type": kind, kind: {"data": "QUJD", "format": "wav", "url": "https://example.org/a.mp4"}}]
    status, message = post(server, "responses", {"input": [{"role": "user", "content": content}]})
    assert status == 400
    assert f"has type '{kind}'" in message
    assert "/v1/chat/completions" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": HI, "reasoning_effort": "high"}),
        ("chat/completions", {"messages": HI, "guided_json": {"type": "object"}}),
        ("chat/completions", {"messages": HI, "modalities": ["text", "audio"]}),
        ("chat/completions", {"messages": HI, "chat_template_kwargs": {"enable_thinking": True}}),
        ("chat/completions", {"messages": HI, "temperature": "hot"}),
        ("chat/completions/batch", {"messages": [HI, []]}),
        ("responses", {"input": "hi", "previous_response_id": "resp_1"}),
        ("responses", {"input": "hi", "store": True}),
        ("completions", {"prompt": "hi", "frobnicate": 1}),
        ("messages", {"messages": HI, "max_tokens": 4, "tools": [{"name": "f", "input_schema": {}}]}),
        ("messages", {"messages": [{"role": "user", "content": " "}], "max_tokens": 4}),
    ],
)
def test_fields_without_effect_are_refused(server, path, body):
    status, message = post(server, path, body)
    assert status == 400
    assert message
    assert "\n" not in message


def test_good_requests_still_pass(server, client):
    answered = ask(client).choices[0].message.model_dump()
    turns: Any = [*HI, answered, *HI]
    assert ask(client, messages=turns, user="me", tool_choice="none").choices
    prefix: Any = [*HI, {"role": "assistant", "content": "I"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert ask(client, messages=prefix, extra_body=options).choices
    assert client.responses.create(model="nano", input="hi", max_output_tokens=4).output_text
    assert post(server, "completions", {"prompt": "hi", "max_tokens": 4})[0] == 200
    assert post(server, "messages", {"messages": HI, "max_tokens": 4})[0] == 200
    assert post(server, "chat/completions/batch", {"messages": [HI, HI], "max_tokens": 4})[0] == 200


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": "\n"}],
        [{"role": "system", "content": "Be brief."}],
        [*HI, {"role": "assistant", "content": "Hello."}],
        [*HI, *HI],
        [{"role": "user", "content": [{"type": "film", "film": "x"}]}],
        [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, *HI],
    ],
)
def test_the_server_refuses_what_generate_refuses_in_the_same_words(server, messages):
    with pytest.raises(ChatError) as error:
        validate_messages(messages, to_answer=True)
    assert post(server, "chat/completions", {"messages": messages}) == (400, str(error.value))


# --- JSON -----------------------------------------------------------------------------------------


def an(**properties: Any) -> dict[str, Any]:
    """The schema of an object with just these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = {
    "enum": an(colour={"type": "string", "enum": ["red", "green", "blue"]}),
    "array": an(sounds={"type": "array", "items": {"enum": ["bell", "beep"]}, "minItems": 1, "maxItems": 3}),
    "nested": an(scene=an(shape={"enum": ["star", "circle"]}, at=an(seen={"type": "boolean"}))),
    "not closed": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    "references": {"$defs": {"end": an(n={"enum": [1, 2]})}, **an(start={"$ref": "#/$defs/end"})},
    "text and number": an(
        time={"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"},
        count={"type": "integer", "minimum": 0, "maximum": 9},
    ),
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_of_a_schema_ends_without_blanks(client, name):
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMAS[name]}}
    for temperature in (0.0, 1.0):
        reply = ask(client, response_format=wanted, max_tokens=150, temperature=temperature, seed=1)
        text = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop", text
        assert text == json.dumps(json.loads(text), separators=(",", ":"))
    form: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMAS[name]}}
    answered = client.responses.create(model="nano", input="What is seen?", text=form, max_output_tokens=150)
    assert answered.status == "completed"
    assert json.loads(answered.output_text) is not None


def test_a_json_object_has_no_blanks_between_its_fields(client):
    wanted: Any = {"type": "json_object"}
    text = ask(client, response_format=wanted, max_tokens=60).choices[0].message.content
    assert text.startswith(('{"', "{}"))


# --- usage ----------------------------------------------------------------------------------------


def details(usage) -> dict[str, Any]:
    names = ("video_tokens", "audio_tokens", "image_tokens", "frames", "seconds")
    given = (usage.prompt_tokens_details or usage.input_tokens_details).model_dump()
    return {name: given[name] for name in names}


def test_usage_tells_what_was_seen(client, media, reference):
    processor = reference[1]
    seen = processor.media(media / "long.mp4", "video")
    pictures = sum(window.video for window in seen.layout)
    sounds = sum(window.audio for window in seen.layout)
    expected = {
        "video_tokens": pictures * processor.queries["video"],
        "audio_tokens": sounds * processor.queries["audio"],
        "image_tokens": 0,
        "frames": seen.seen.frames,
        "seconds": pytest.approx(seen.seen.seconds, abs=0.001),
    }
    assert 0 < sounds < pictures  # its sound ends before its picture does
    video = part(media / "long.mp4", "video")
    whole = ask(client, video)
    assert details(whole.usage) == expected
    assert whole.usage.prompt_tokens_details.cached_tokens is not None
    *_, last = ask(client, video, stream=True, stream_options={"include_usage": True})
    assert details(last.usage) == expected
    both = ask(client, video, part(media / "low.wav", "audio"), part(media / "red.png", "image"))
    assert details(both.usage)["video_tokens"] == expected["video_tokens"]
    assert details(both.usage)["audio_tokens"] > expected["audio_tokens"]
    assert details(both.usage)["image_tokens"] == processor.queries["video"]
    assert details(both.usage)["frames"] == expected["frames"] + 1
    assert details(ask(client).usage) == dict.fromkeys(expected, 0)


def test_usage_of_a_recording_named_by_uuid(client, media):
    first = part(media / "red_low.mp4", "video") | {"uuid": "counted"}
    again = {"type": "video_url", "video_url": None, "uuid": "counted"}
    assert details(ask(client, first).usage) == details(ask(client, again).usage)
    assert details(ask(client, again).usage)["frames"] > 0


def test_usage_of_responses(client, media, reference):
    picture = {"type": "input_image", "image_url": media_url(media / "red.png", "image"), "detail": "auto"}
    content = [picture, {"type": "input_text", "text": "What is seen?"}]
    messages: Any = [{"role": "user", "content": content}]
    whole = client.responses.create(model="nano", input=messages, max_output_tokens=4)
    assert whole.usage.input_tokens_details.image_tokens == reference[1].queries["video"]
    *_, last = client.responses.create(model="nano", input=messages, max_output_tokens=4, stream=True)
    assert last.response.usage.input_tokens_details.image_tokens == reference[1].queries["video"]
