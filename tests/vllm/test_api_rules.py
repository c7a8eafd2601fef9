"""mllm.vllm.api_rules: what a server refuses, in one line, before vLLM would pass over it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.errors import ChatError, MllmError
from mllm.records.chat import validate_messages
from mllm.vllm.api_rules import (
    RULES,
    ApiError,
    check_beside_adapters,
    check_characters,
    check_fields,
    check_messages,
    check_responses,
    named_parts,
)

HI = {"role": "user", "content": "hi"}
KNOWN = {
    *("messages", "model", "max_tokens", "response_format", "structured_outputs", "text", "documents"),
    *("tools", "tool_choice", "stream_options", "length_penalty", "priority", "user", "reasoning_effort"),
    "logprobs",
    *("use_beam_search", "max_completion_tokens"),
}
SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"tools": [{"type": "file_search"}]}, r"tools\[0\] is of type 'file_search'.*leave 'tools' out"),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "auto"}, "calls no tools"),
        ({"tool_choice": "required"}, "calls no tools.*leave 'tool_choice' out"),
        ({"tool_choice": {"type": "web_search"}}, "leave 'tool_choice' out"),
        ({"functions": [{"name": "f"}]}, "does not honour 'functions'"),
        ({"modalities": ["text", "audio"]}, r"'modalities': leave it out, or set it to \[\"text\"\]"),
        ({"store": True}, "'store': leave it out, or set it to false"),
        ({"reasoning_effort": "high"}, "'reasoning_effort'"),
        ({"reasoning": {"effort": "low", "summary": None}}, "'reasoning'"),
        ({"documents": [{"text": "x"}]}, "'documents'"),
        ({"chat_template_kwargs": {"x": 1}}, "'chat_template_kwargs'"),
        ({"priority": 3}, "'priority'"),
        ({"conversation": "c1"}, "'conversation'"),
        ({"max_token": 5}, "does not know a field 'max_token': did you mean 'max_tokens'"),
        ({"guided_json": SCHEMA}, "did you mean 'structured_outputs'"),
        ({"frobnicate": False}, "does not know a field 'frobnicate': leave it out"),
        ({"length_penalty": 2.0}, "'length_penalty' acts on 'use_beam_search' alone"),
        (
            {"use_beam_search": True, "response_format": {"type": "json_object"}},
            "'use_beam_search' does not honour",
        ),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "another name of 'max_completion_tokens'"),
        ({"kv_transfer_params": {"a": 1}}, "'kv_transfer_params'"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "needs 'structures' and 'triggers'"),
        ({"stream_options": {"include_obfuscation": True}}, "'include_obfuscation' in 'stream_options'"),
        ({"response_format": "json"}, "response_format has type 'json': use text"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "'schema' in 'response_format'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema needs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "needs 'name' and 'schema'",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format needs"),
        ({"text": {"verbosity": "low"}}, "'verbosity' in 'text'"),
        ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}}, "'whitespace_pattern'"),
    ],
)
def test_what_would_have_no_effect_is_refused(fields, error):
    with pytest.raises(ApiError, match=error) as caught:
        check_fields(fields, KNOWN)
    assert "\n" not in str(caught.value)
    assert caught.value.field


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "safety_identifier": "x", "prompt_cache_key": "k"},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tools": [], "functions": None, "modalities": ["text"], "store": False, "service_tier": "auto"},
        {"reasoning_effort": "none", "verbosity": "medium", "priority": 0, "documents": []},
        {"reasoning": {"effort": None, "summary": None}},
        {"frobnicate": None},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        {"response_format": {"type": "json_object"}, "stream_options": {"include_usage": True}},
        {"structured_outputs": {"choice": ["yes", "no"]}, "logprobs": False},
    ],
)
def test_what_asks_for_nothing_more_passes(fields):
    check_fields(fields, KNOWN)


@pytest.mark.parametrize(
    "asked", [{"prompt_logprobs": 0}, {"echo": True, "logprobs": 0}, {"echo": True, "messages": [HI]}]
)
def test_a_server_with_adapters_gives_no_log_likelihoods_of_prompts(asked):
    with pytest.raises(ApiError, match="holds adapters .*leave '(prompt_logprobs|echo)' out"):
        check_beside_adapters(asked)


@pytest.mark.parametrize("asked", [{}, {"logprobs": True, "top_logprobs": 5}, {"echo": True}])
def test_a_server_with_adapters_gives_all_others(asked):
    check_beside_adapters(asked)


def test_a_server_may_honour_more():
    with pytest.raises(ApiError):
        check_fields({"metadata": {"a": "b"}}, KNOWN)
    check_fields({"metadata": {"a": "b"}}, KNOWN, honoured={"metadata"})


# --- messages -------------------------------------------------------------------------------------

VIDEO = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
REFUSED_EVERYWHERE = [
    [],
    [HI | {"content": []}],
    [HI | {"content": ""}],
    [HI | {"content": [{"type": "text", "text": " \n"}]}],
    [HI | {"content": None}],
    [{"role": "user"}],
    [{"role": "system", "content": "be brief"}],
    [HI, {"role": "assistant", "content": "hello"}],
    [{"role": "assistant", "content": "hello"}],
    [HI, HI],
    [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, HI],
    [{"role": "tool", "content": "x"}],
    [HI | {"content": [{"type": "film", "film": 1}]}],
    [HI | {"content": [{"type": "text", "text": 5}]}],
    [HI | {"content": [VIDEO | {"start": 3}]}],
    [HI | {"content": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}]}],
    [{"role": "system", "content": [VIDEO]}, HI],
]


@pytest.mark.parametrize("messages", REFUSED_EVERYWHERE)
def test_a_server_refuses_in_the_words_of_generate(messages):
    with pytest.raises(ChatError) as ours:
        validate_messages(messages, to_answer=True)
    with pytest.raises(ChatError) as theirs:
        check_messages(messages)
    assert str(theirs.value) == str(ours.value)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (HI | {"name": "Ann"}, "message 0 has 'name', which nothing here honours"),
        (HI | {"tool_calls": [{"id": "1"}]}, "'tool_calls'.*calls no tools"),
        (HI | {"content": ["hi"]}, "message 0 part 0 is a bare text"),
        (
            HI | {"content": [{"type": "video", "video": "a.mp4"}]},
            "has type 'video': a server takes text, video_url",
        ),
        (HI | {"content": [{"type": "video_url", "video_url": "a.mp4"}]}, r"needs 'video_url': \{'url'\}"),
    ],
)
def test_what_a_server_alone_does_not_take(message, error):
    with pytest.raises(ApiError, match=error):
        check_messages([message])


def test_good_messages():
    answered = {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": [], "audio": None}
    check_messages([{"role": "developer", "content": "Be brief."}, HI, answered, HI | {"content": [VIDEO]}])
    check_messages([HI, answered], to_answer=False)


def test_a_recording_named_by_uuid_alone():
    again = {"type": "video_url", "video_url": None, "uuid": "a"}
    sound = {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}, "uuid": "b"}
    messages = [HI | {"content": [again, VIDEO | {"uuid": "c"}, sound]}]
    check_messages(messages)
    assert named_parts(messages) == [
        ("video", None, "a"),
        ("video", "https://example.org/a.mp4", "c"),
        ("audio", "data:audio/wav;base64,QUJD", "b"),
    ]


# --- responses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"input": ""}, "message 0 is empty"),
        ({"input": []}, "at least one"),
        ({"input": 3}, "'input' must be a text or a list"),
        ({"input": [HI | {"content": [{"type": "input_audio"}]}]}, "input 0 part 0 has type 'input_audio'"),
        (
            {"input": [HI | {"content": [{"type": "input_file"}]}]},
            "send video and sound to /v1/chat/completions",
        ),
        ({"input": [HI | {"content": [{"type": "input_image", "file_id": "f"}]}]}, "no files are kept here"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input 0 is of type 'item_reference'"),
        ({"input": [{"type": "function_call_output"}]}, "calls no tools"),
        (
            {"input": "hi", "include": ["file_search_call.results"]},
            "nothing to include for 'file_search_call",
        ),
        ({"input": "hi", "top_logprobs": 2}, 'needs "include"'),
    ],
)
def test_responses_are_texts_and_pictures(body, error):
    with pytest.raises(MllmError, match=error) as caught:
        check_responses(body)
    assert "\n" not in str(caught.value)


def test_good_responses():
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"}
    check_responses({"input": "hi", "instructions": "Be brief.", "top_logprobs": 0})
    check_responses({"input": [HI | {"content": [picture, {"type": "input_text", "text": "?"}]}]})
    said = {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "Hi."}]}
    check_responses({"input": [HI, said, HI]})
    check_responses({"input": [HI, said | {"status": "incomplete"}]})  # to be gone on with


# --- half characters ---


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content"),
        ('{"messages": [{"content": [{"video_url": {"url": "http://a/\\uDFFF"}}]}]}', "[0].video_url.url"),
        ('{"stop": ["a", "\\ud83d \\ude00"]}', "stop[1]"),
        ('{"response_format": {"\\udc00": 1}}', "response_format"),
        ('{"\\udc00": 1}', "a field's name"),
        (b'{"model": "\xed\xa0\x80"}', "model"),
    ],
)
def test_half_characters_are_refused_wherever_they_stand(body, place):
    data = body if isinstance(body, bytes) else body.encode()
    with pytest.raises(ApiError) as caught:
        check_characters(data, json.loads(data))
    assert str(caught.value).endswith(f"{place} holds half a character (a lone surrogate): send whole ones")
    assert caught.value.field.encode()


def test_whole_characters_pass():
    for text in ('{"a": "\\ud83d\\ude00"}', '{"a": "\\\\ud800"}', '{"a": "퟿😀"}'):
        check_characters(text.encode(), json.loads(text))


# --- nonsense -------------------------------------------------------------------------------------

WORDS = "messages role content type text user assistant video_url url uuid input tools include input_text"
words = st.sampled_from([*WORDS.split(), "response_format", "json_schema", "schema", "format"])
nonsense = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


@given(st.sampled_from(sorted(RULES)), st.dictionaries(words, nonsense, max_size=5))
def test_any_json_is_taken_or_refused_in_one_line(path, body):
    try:
        check_fields(body, KNOWN | set(body))
        RULES[path](body)
    except MllmError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
