"""Chat forms of families of decoders: learned from their templates, rendered as they render, media added."""

from __future__ import annotations

import copy
from functools import cache

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mllm.errors import ChatError
from mllm.records.chat import SPECIAL_TOKENS
from mllm.records.chat_form import ChatForm, chat_template, own_form, render, special_tokens
from mllm.records.chat_probe import chat_form_of
from tests.families import FAMILIES, SMOLLM2, family_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "One\n\ntwo?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "日本?"},
    {"role": "assistant", "content": "Second, and more."},
    {"role": "user", "content": "So?"},
]
VIDEO = {"type": "video", "video": "clip.mp4"}
TAKES_SYSTEM = [name for name in FAMILIES if name not in ("gemma2", "mistral_v3")]


def with_template(template: str, family: str = "smollm2") -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(family_tokenizer(family))
    tokenizer.chat_template = template
    return tokenizer


@cache
def form_of(name: str) -> ChatForm:
    return chat_form_of(family_tokenizer(name))


def joined(form: ChatForm, messages, prompt: bool = True) -> str:
    return "".join(segment.text for segment in render(messages, form, prompt))


def theirs(tokenizer, messages, prompt: bool = True, template: str | None = None) -> str:
    return tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=prompt,
        chat_template=template,
        strftime_now=lambda form: "26 Jul 2024",
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_each_prompt_is_what_the_family_renders(name: str) -> None:
    tokenizer, form = family_tokenizer(name), form_of(name)
    for count in (1, 3, 5):
        assert joined(form, TALK[:count]) == theirs(tokenizer, TALK[:count])


@pytest.mark.parametrize("name", TAKES_SYSTEM)
def test_a_system_message_stands_where_the_family_puts_it(name: str) -> None:
    tokenizer, form = family_tokenizer(name), form_of(name)
    for count in (1, 3, 5):
        assert joined(form, [SYSTEM, *TALK[:count]]) == theirs(tokenizer, [SYSTEM, *TALK[:count]])


@pytest.mark.parametrize("name", ["gemma2", "mistral_v3"])  # refused there; moved from turn to turn
def test_a_system_message_without_a_fixed_place_is_refused_by_both_renderers(name: str) -> None:
    tokenizer, form = family_tokenizer(name), form_of(name)
    with pytest.raises(ChatError, match="message 0 is a system message, and .* first user message") as ours:
        joined(form, [SYSTEM, *TALK])
    with pytest.raises(jinja2.TemplateError) as other:
        theirs(tokenizer, [SYSTEM, *TALK], template=chat_template(form))
    assert str(other.value) == str(ours.value)


def test_a_default_system_prompt_is_kept_and_gives_way_to_the_users() -> None:
    form = form_of("smollm2")
    assert joined(form, TALK[:1]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert joined(form, [SYSTEM, *TALK[:1]]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne\n\ntwo?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_written_template_is_read_back_as_the_same_form(name: str) -> None:
    tokenizer, form = family_tokenizer(name), form_of(name)
    assert chat_form_of(tokenizer, chat_template(form)) == form


def test_our_own_form_is_read_back_from_its_template() -> None:
    tokenizer = with_template(SMOLLM2)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS)})
    form = chat_form_of(tokenizer)
    assert form == own_form(tokenizer.bos_token, special_tokens(tokenizer))
    assert chat_form_of(tokenizer, chat_template(form)) == form


texts = st.lists(
    st.one_of(
        st.sampled_from(["<|im_end|>", "<|eot_id|>", "</s>", "[/INST]", "<end_of_turn>", "<|video|>"]),
        st.sampled_from(["<", "|im", "_end|>", " ", "\n", "a", "[INST", "]"]),
        st.text(max_size=3),
    ),
    max_size=6,
).map("".join)
text_parts = texts.map(lambda text: {"type": "text", "text": text})
parts = st.lists(st.one_of(text_parts, st.just(VIDEO)), max_size=3)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25)
@given(st.booleans(), texts, st.lists(st.tuples(parts, texts), min_size=1, max_size=3), st.booleans())
def test_jinja_and_render_write_the_same(name, with_system, system, turns, open_end) -> None:
    tokenizer = family_tokenizer(name)
    form = form_of(name)
    messages = [{"role": "system", "content": system}] if with_system and form.system else []
    for question, answer in turns:
        messages.append({"role": "user", "content": [VIDEO, *question]})
        messages.append({"role": "assistant", "content": answer})
    if open_end:
        messages.pop()
    ours = joined(form, messages, open_end)
    assert theirs(tokenizer, messages, open_end, chat_template(form)) == ours
    # What users typed holds none of the family's tokens: as many stand there as the form writes.
    plain = [{**m, "content": [VIDEO if p == VIDEO else "x" for p in m["content"]]} if m["role"] == "user"
             else {**m, "content": "x"} for m in messages]  # fmt: skip
    for token in form.escaped:
        assert ours.count(token) == joined(form, plain, open_end).count(token)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (SMOLLM2.replace("message['content']", "message['content'] | upper"), "of the texts"),
        (SMOLLM2.replace("<|im_end|>", "###"), "no special token ends an answer"),
        (SMOLLM2.replace("assistant\n' }}", "assistant\n<think>\n' }}"), "how that goes on"),
        ("{% if messages | length == 1 %}One: {% endif %}" + SMOLLM2, "how that goes on"),
        ("{% if messages | length == 5 %}Long: {% endif %}" + SMOLLM2, "5 messages are 'Long: "),
        ("{{ raise_exception('no chats\nhere') }}", "fails: no chats here"),
        ("{% if %}", "fails"),
    ],
    ids=["changed words", "no end", "thoughts", "first turn", "third turn", "raises", "no Jinja"],
)
def test_a_template_without_prefix_stable_turns_is_refused_in_one_line(template: str, reason: str) -> None:
    with pytest.raises(ChatError, match=reason) as caught:
        chat_form_of(with_template(template))
    assert "\n" not in str(caught.value)


def test_an_answer_that_would_share_a_token_with_its_prompt_is_refused() -> None:
    glued = SMOLLM2.replace("<|im_start|>assistant\n", "<|im_start|>assistant ").replace(
        "message['role'] + '\n'", "message['role'] + ' '"
    )
    with pytest.raises(ChatError, match="begins with 'a' shares a token"):
        chat_form_of(with_template(glued))
