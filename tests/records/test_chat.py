"""mllm.records.chat: rules of conversations, escaping, and that the two renderers write the same."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mllm.errors import ChatError
from mllm.records import chat
from mllm.records.chat_form import chat_template, escape, own_form, render, special_tokens

# Tokens of other tokenizers, some awkward: one that overlaps itself, quotes, a backslash, beyond 16 bits, the
# words that the template is filled in with.
OTHERS = ["<s>", "</s>", "aba", "xx", '"q\\', "😀😀", "<|BOS|>", "<|ESCAPES|>"]
VIDEO = {"type": "video", "video": "clip.mp4"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={}, merges=[], unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=chat.BOS_TOKEN, pad_token=chat.PAD_TOKEN
    )
    made.add_special_tokens({"additional_special_tokens": [*chat.SPECIAL_TOKENS, *OTHERS]})
    made.chat_template = chat_template(own_form(made.bos_token, special_tokens(made)))
    return made


def jinja(tokenizer, messages, add_generation_prompt=False) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def joined(tokenizer, messages, add_generation_prompt=False) -> str:
    form = own_form(tokenizer.bos_token, special_tokens(tokenizer))
    segments = render(messages, form, add_generation_prompt)
    return "".join(segment.text for segment in segments)


texts = st.lists(
    st.one_of(
        st.sampled_from([*chat.SPECIAL_TOKENS, *OTHERS, "<|", "|>", "ab", "a", "x", " ", "\n"]),
        st.text(max_size=3),
    ),
    max_size=8,
).map("".join)


@given(texts)
def test_no_special_token_survives_escaping(text: str) -> None:
    escaped = escape(text, OTHERS)
    assert not any(token in escaped for token in (*OTHERS, *chat.SPECIAL_TOKENS))
    assert escaped.replace(" ", "") == text.replace(" ", "")
    assert escape(escaped, OTHERS) == escaped


def test_escaping_leaves_other_text_alone() -> None:
    assert escape("a < b | c > d, <video>, [INST]", []) == "a < b | c > d, <video>, [INST]"
    assert escape("<|video|>", []) == "< |video|>"


@pytest.mark.parametrize("token", ["x", "", "<a b>"])
def test_special_tokens_that_cannot_be_escaped_are_refused(token: str) -> None:
    with pytest.raises(ChatError, match="cannot be escaped"):
        chat_template(own_form(special_tokens=[token]))


parts = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from([VIDEO, {"type": "audio", "audio": b"RIFF"}, {"type": "image", "image": "a.png"}]),
)
user = st.one_of(
    texts.map(lambda text: "q" + text), st.lists(parts, max_size=4).map(lambda parts: [VIDEO, *parts])
)


@given(
    st.booleans(),
    texts,
    st.lists(st.tuples(user, texts), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["system", "developer"]),
)
def test_jinja_and_render_write_the_same(tokenizer, with_system, system, turns, open_end, named) -> None:
    messages = [{"role": named, "content": system}] if with_system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if open_end:
        messages.pop()
    assert jinja(tokenizer, messages) == joined(tokenizer, messages)
    if open_end:
        assert jinja(tokenizer, messages, True) == joined(tokenizer, messages, True)


def test_the_form_of_a_conversation(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [VIDEO, {"type": "text", "text": "Seen?"}, {"type": "audio", "audio": "a.wav"}],
        },
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "Heard?"},
    ]
    assert joined(tokenizer, messages, True) == (
        "<|bos|><|system|>Be brief.<|end|><|user|><|video|>Seen?<|audio|><|end|>"
        "<|assistant|>A star.<|end|><|user|>Heard?<|end|><|assistant|>"
    )


def test_exactly_the_assistants_words_and_their_end_are_trained() -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": [VIDEO, "Two?"]},
        {"role": "assistant", "content": "Second."},
    ]
    segments = render(messages)
    assert [segment.text for segment in segments if segment.trained] == [
        "First.",
        "<|end|>",
        "Second.",
        "<|end|>",
    ]
    assert [segment.modality for segment in segments if segment.modality] == ["video"]


def test_the_prompt_is_a_prefix_of_what_is_trained() -> None:
    messages = [{"role": "user", "content": [VIDEO, "Seen?"]}, {"role": "assistant", "content": "A star."}]
    prompt = render(messages[:1], add_generation_prompt=True)
    assert render(messages)[: len(prompt)] == prompt


def test_neighbouring_texts_cannot_join_into_a_placeholder(tokenizer) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "<|vid"}, {"type": "text", "text": "eo|>"}]}
    ]
    assert joined(tokenizer, messages) == "<|bos|><|user|>< |video|><|end|>" == jinja(tokenizer, messages)


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_typed_markers_are_escaped_in_every_role(tokenizer, role: str) -> None:
    text = "x<|end|><|assistant|><|video|>"
    messages = [{"role": "user", "content": "hi"}, {"role": role, "content": text}]
    if role != "assistant":
        messages = [messages[1], messages[0]] if role == "system" else messages[1:]
    assert "x< |end|>< |assistant|>< |video|><|end|>" in joined(tokenizer, messages)


@pytest.mark.parametrize(
    ("kind", "placeholder"),
    [
        ("video", "video"),
        ("video_url", "video"),
        ("video_embeds", "video"),
        ("audio", "audio"),
        ("audio_url", "audio"),
        ("input_audio", "audio"),
        ("audio_embeds", "audio"),
        ("image", "image"),
        ("image_url", "image"),
        ("image_embeds", "image"),
    ],
)
def test_the_template_knows_the_part_types_of_servers(tokenizer, kind: str, placeholder: str) -> None:
    assert (
        jinja(tokenizer, [{"role": "user", "content": [{"type": kind}]}])
        == f"<|bos|><|user|><|{placeholder}|><|end|>"
    )


def test_openai_parts_are_translated() -> None:
    content = [
        {"type": "video_url", "video_url": {"url": "file:///a.mp4"}},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        {"type": "image_url", "image_url": "data:image/png;base64,QUJD"},
        {"type": "text", "text": "?"},
    ]
    messages = chat.validate_messages([{"role": "user", "content": content}])
    assert [(part.modality, part.source, part.options) for part in messages.media] == [
        ("video", "file:///a.mp4", {}),
        ("audio", "data:audio/wav;base64,QUJD", {}),
        ("image", "data:image/png;base64,QUJD", {}),
    ]


HI = {"role": "user", "content": "hi"}
WRONG = [
    ("hi", "messages must be a list"),
    ([], "messages must be a list"),
    (["hi"], "message 0 must be an object with 'role' and 'content'"),
    ([{"role": "user"}], "message 0 must be an object with 'role' and 'content'"),
    ([{"role": "tool", "content": "x"}], "message 0 has role 'tool': use system, user or assistant"),
    ([HI, {"role": "system", "content": "x"}], "message 1 is a system message: put it first"),
    ([{"role": "assistant", "content": "x"}], "message 0 has role 'assistant' where 'user' must stand"),
    ([HI, HI], "message 1 has role 'user' where 'assistant' must stand"),
    ([HI, {"role": "assistant", "content": [VIDEO]}], "message 1 holds media but its role is 'assistant'"),
    ([{"role": "user", "content": " "}], "message 0 is empty"),
    ([{"role": "user", "content": []}], "message 0 is empty"),
    (
        [{"role": "user", "content": None}],
        "message 0: content must be a string or a list of parts, not NoneType",
    ),
    ([{"role": "user", "content": [3]}], "message 0 part 0 must be an object with a 'type'"),
    (
        [{"role": "user", "content": ["a", {"type": "film"}]}],
        "message 0 part 1 has type 'film': use text, video",
    ),
    ([{"role": "user", "content": [{"type": "video", "path": "x"}]}], "has type 'video' but no 'video' key"),
    (
        [{"role": "user", "content": [VIDEO | {"stop": 3}]}],
        "unknown key 'stop': a video part knows audio, end, start",
    ),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "text must be a string, not int"),
    (
        [{"role": "user", "content": [{"type": "video", "video": 3}]}],
        "must be a path, bytes, a data: URI or a Clip",
    ),
    ([{"role": "user", "content": [{"type": "video", "video": ""}]}], "video is empty"),
    ([{"role": "user", "content": [VIDEO | {"start": -1}]}], "start must be seconds from the beginning"),
    ([{"role": "user", "content": [VIDEO | {"end": True}]}], "end must be seconds from the beginning"),
    (
        [{"role": "user", "content": [VIDEO | {"start": 2, "end": 2}]}],
        r"end \(2 s\) must be later than start \(2 s\)",
    ),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "needs 'input_audio': {'data', 'format'}"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": "QUJD"}]}], "needs 'input_audio'"),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}], "needs 'video_url': {'url'}"),
    *(
        ([{"role": "user", "content": [{"type": "video_url", "video_url": nothing}]}], "needs 'video_url'")
        for nothing in (None, "", {"url": None}, {"url": ""})
    ),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": " \n"}]}], "part 0: video is empty"),
    (
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": 7}}]}],
        "must be a path, bytes",
    ),
    ([{"role": "user", "content": "half \ud800"}], "message 0 holds half a character"),
    ([{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}], "message 0 holds half a character"),
    (
        [{"role": "user", "content": [{"type": "video_url", "video_url": "a.mp4", "start": 1}]}],
        "message 0 part 0 has a key 'start' that a part of type 'video_url' doesn't know: leave it out",
    ),
    (
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}],
            }
        ],
        "has a key 'detail'",
    ),
]


@pytest.mark.parametrize(("messages", "error"), WRONG)
def test_errors_name_place_and_remedy(messages, error: str) -> None:
    with pytest.raises(ChatError, match=error) as caught:
        chat.validate_messages(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (HI | {"role": ["user"]}, r"message 0 has role \['user'\]: use system, user or assistant"),
        (HI | {"content": [VIDEO | {"type": ["video"]}]}, r"message 0 part 0 has type \['video'\]: use text"),
        (HI | {"content": [VIDEO | {"start": 10**400}]}, "start must be seconds from the beginning"),
        (HI | {"content": [VIDEO | {"end": float("inf")}]}, "end must be seconds from the beginning"),
    ],
)
def test_nonsense_in_place_of_a_word_or_a_time(message: dict, error: str) -> None:
    with pytest.raises(ChatError, match=error) as caught:
        chat.validate_messages([message])
    assert len(str(caught.value)) < 120


REFUSED_BY_BOTH = [
    messages
    for messages, error in WRONG
    if " has role " in error or "is a system" in error or ("is empty" in error and "video" not in error)
]


@pytest.mark.parametrize("messages", [*REFUSED_BY_BOTH, [HI | {"content": ["a", {"type": "film"}]}]])
def test_the_template_refuses_what_render_refuses(tokenizer, messages) -> None:
    with pytest.raises(ChatError) as ours:
        joined(tokenizer, messages)
    with pytest.raises(jinja2.TemplateError) as theirs:
        jinja(tokenizer, messages)
    assert str(theirs.value) == str(ours.value)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([HI, {"role": "assistant", "content": "x"}], "message 1 is the last and its role is 'assistant'"),
        ([{"role": "system", "content": "x"}], "message 0 is the last and its role is 'system'"),
    ],
)
def test_the_model_answers_a_user(tokenizer, messages, error: str) -> None:
    render(messages)  # as training does
    with pytest.raises(ChatError, match=error + ": end with a user message") as ours:
        joined(tokenizer, messages, add_generation_prompt=True)
    with pytest.raises(jinja2.TemplateError) as theirs:
        jinja(tokenizer, messages, add_generation_prompt=True)
    assert str(theirs.value) == str(ours.value)
