"""The chat form of a decoder, and how a conversation becomes a prompt in it.

A decoder that was instruction-tuned knows one form (ChatML, Llama 3, Mistral, Gemma, …) and keeps it:
`chat_probe` reads it from the tokenizer's own chat template. Any other decoder gets ours, `OWN`:

    <|bos|><|system|>…<|end|><|user|><|video|>What is heard?<|end|><|assistant|>A bell.<|end|>

`render` turns messages into segments, each either text or one placeholder, each trained or not; training
masks and prompts come from the same segments. `chat_template` writes the same rules as Jinja, for vLLM and
`apply_chat_template`. Text is escaped, so nothing that is typed can become a placeholder or a role marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mllm.errors import ChatError
from mllm.records.chat import (
    ANSWERS_USER,
    ASSISTANT_TOKEN,
    BOS_TOKEN,
    END_TOKEN,
    PLACEHOLDERS,
    SPECIAL_TOKENS,
    SYSTEM_TOKEN,
    USER_TOKEN,
    validate_messages,
)
from mllm.records.conversation import TextPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_SYSTEM = (
    " is a system message, and the chat template of this decoder has no place for one: "
    "begin the first user message with its text"
)


@dataclass(frozen=True)
class ChatForm:
    """What stands around the texts of a conversation.

    Attributes:
        opening: before the first user's text if there is no system message: BOS, default system, marker.
        system: before and behind a system message; None if the form has no place for one.
        after_system: before the user's text that follows a system message.
        next_user: before the text of each later user message.
        user_end: behind a user's text.
        assistant: before an answer; a prompt ends with it.
        lead: white space that an answer begins with; the model writes it.
        end: what ends an answer, up to and with `end_token`; the model writes it.
        end_token: a special token.
        strip: white space around a text is dropped.
        escaped: what is escaped in users' text: special tokens, and role markers that are plain text.
    """

    opening: str
    system: tuple[str, str] | None
    after_system: str
    next_user: str
    user_end: str
    assistant: str
    lead: str
    end: str
    end_token: str
    strip: bool
    escaped: tuple[str, ...]


def own_form(bos_token: str | None = BOS_TOKEN, special_tokens: Iterable[str] = ()) -> ChatForm:
    """The form of a decoder without a chat template.

    Args:
        bos_token: what the sequence begins with; None for nothing.
        special_tokens: those of the tokenizer, for escaping.
    """
    bos = bos_token or ""
    return ChatForm(
        opening=bos + USER_TOKEN,
        system=(bos + SYSTEM_TOKEN, END_TOKEN),
        after_system=USER_TOKEN,
        next_user=USER_TOKEN,
        user_end=END_TOKEN,
        assistant=ASSISTANT_TOKEN,
        lead="",
        end=END_TOKEN,
        end_token=END_TOKEN,
        strip=False,
        escaped=tuple(sorted({*special_tokens, *SPECIAL_TOKENS})),
    )


OWN = own_form()


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered conversation.

    Attributes:
        text: what stands in the prompt; for media, the one placeholder token that the processor expands.
        trained: whether the loss looks at it (the assistant's words and the end marker behind them).
        modality: "video", "audio" or "image" for a placeholder, else None.
    """

    text: str
    trained: bool = False
    modality: str | None = None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every special token of a transformers tokenizer: what `escape` keeps users from typing."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens})


def escape(text: str, special_tokens: Iterable[str]) -> str:
    """Breaks every special token in `text` with a space after its first character.

    Text that holds no special token comes back unchanged. Repeats until none is left ("<a<a<a" may hold
    overlapping ones); inserting a space cannot make a new one, since special tokens hold no white space.
    """
    for token, broken, _ in _escapes(frozenset(special_tokens)):
        while token in text:
            text = text.replace(token, broken)
    return text


def render(
    messages: Sequence[Mapping[str, Any]], form: ChatForm = OWN, add_generation_prompt: bool = False
) -> list[Segment]:
    """Turns a conversation into segments; joined, they are what the Jinja template gives.

    Args:
        messages: see `chat`.
        add_generation_prompt: end with what stands before an answer, so that the model answers.

    Raises:
        ChatError: the messages break a rule, or the form has no place for a system message.
    """
    segments: list[Segment] = []
    user_start = form.opening
    for turn in validate_messages(messages, to_answer=add_generation_prompt):
        lead = ""
        if turn.role == "system":
            if form.system is None:
                raise ChatError(f"message 0{NO_SYSTEM}")
            start, end = form.system
            user_start = form.after_system
        elif turn.role == "user":
            start, end = user_start, form.user_end
            user_start = form.next_user
        else:
            start, lead, end = form.assistant, form.lead, form.end
        segments.append(Segment(start))
        text = ""
        for part in turn.parts:
            if isinstance(part, TextPart):
                # Neighbouring texts are escaped as one: "<|vi" and "deo|>" must not meet unseen.
                text += part.text
                continue
            segments.append(_text_segment(text, form))
            text = ""
            segments.append(Segment(PLACEHOLDERS[part.modality], modality=part.modality))
        segments.append(_text_segment(text, form, lead, turn.trained))
        segments.append(Segment(end, turn.trained))
    if add_generation_prompt:
        segments.append(Segment(form.assistant))
    return [segment for segment in segments if segment.text]


def _text_segment(text: str, form: ChatForm, lead: str = "", trained: bool = False) -> Segment:
    return Segment(lead + escape(text.strip() if form.strip else text, form.escaped), trained)


def chat_template(form: ChatForm = OWN) -> str:
    """The Jinja template that renders as `render` does.

    It loops over `content`, from which vLLM concludes the "openai" content format, where media keep their
    place between the texts. Part types are matched by what they contain, since vLLM also says "video_url",
    "input_audio" or "video_embeds".
    """
    before_system, system_end = form.system or ("", "")
    values: dict[str, Any] = {
        "ESCAPES": _escapes(frozenset(form.escaped)),
        "STRIP": form.strip,
        "OPENING": form.opening,
        "HAS_SYSTEM": form.system is not None,
        "NO_SYSTEM": NO_SYSTEM,
        "BEFORE_SYSTEM": before_system,
        "AFTER_SYSTEM": form.after_system,
        "NEXT_USER": form.next_user,
        "ASSISTANT": form.assistant,
        "LEAD": form.lead,
        "ENDS": {"system": system_end, "user": form.user_end, "assistant": form.end},
        "ANSWERS_USER": ANSWERS_USER,
    }
    # JSON literals are Jinja literals, too.
    return re.sub(
        rf"\b({'|'.join(values)})\b", lambda name: json.dumps(values[name[0]], ensure_ascii=False), _TEMPLATE
    )


_TEMPLATE = """\
{#- Written by mllm.records.chat_form.chat_template. Escaping: [token, broken token, passes]. -#}
{%- set escapes = ESCAPES -%}
{%- macro escape(text) -%}
  {%- set state = namespace(text=text.strip() if STRIP else text) -%}
  {%- for token, broken, passes in escapes -%}
    {%- for _ in range(passes) -%}
      {%- set state.text = state.text.replace(token, broken) -%}
    {%- endfor -%}
  {%- endfor -%}
  {{- state.text -}}
{%- endmacro -%}
{%- set turn = namespace(expected="user", text="", empty=true, start=OPENING) -%}
{%- for message in messages -%}
  {%- set role = "system" if message["role"] == "developer" else message["role"] -%}
  {%- set where = "message " ~ loop.index0 -%}
  {%- if role == "system" -%}
    {%- if not loop.first -%}
      {{- raise_exception(where ~ " is a system message: put it first, there can be one") -}}
    {%- endif -%}
  {%- elif role not in ["user", "assistant"] -%}
    {{- raise_exception(where ~ " has role '" ~ role ~ "': use system, user or assistant") -}}
  {%- elif role != turn.expected -%}
    {{- raise_exception(where ~ " has role '" ~ role ~ "' where '" ~ turn.expected ~ "' must stand: the two alternate") -}}
  {%- else -%}
    {%- set turn.expected = "assistant" if role == "user" else "user" -%}
  {%- endif -%}
  {%- if role == "system" -%}
    {%- if not HAS_SYSTEM -%}
      {{- raise_exception(where ~ NO_SYSTEM) -}}
    {%- endif -%}
    {{- BEFORE_SYSTEM -}}
    {%- set turn.start = AFTER_SYSTEM -%}
  {%- elif role == "user" -%}
    {{- turn.start -}}
    {%- set turn.start = NEXT_USER -%}
  {%- else -%}
    {{- ASSISTANT ~ LEAD -}}
  {%- endif -%}
  {%- set turn.empty = role == "user" -%}
  {%- if message["content"] is string -%}
    {%- set turn.empty = turn.empty and not message["content"].strip() -%}
    {{- escape(message["content"]) -}}
  {%- else -%}
    {%- set turn.text = "" -%}
    {%- for part in message["content"] -%}
      {%- if part is string -%}
        {%- set turn.text = turn.text ~ part -%}
        {%- set turn.empty = turn.empty and not part.strip() -%}
      {%- elif "text" in part["type"] -%}
        {%- set turn.text = turn.text ~ part["text"] -%}
        {%- set turn.empty = turn.empty and not part["text"].strip() -%}
      {%- else -%}
        {%- set turn.empty = false -%}
        {%- if role != "user" -%}
          {{- raise_exception(where ~ " holds media but its role is '" ~ role ~ "': media go into user messages") -}}
        {%- endif -%}
        {{- escape(turn.text) -}}
        {%- set turn.text = "" -%}
        {%- if "video" in part["type"] -%}
          {{- "<|video|>" -}}
        {%- elif "audio" in part["type"] -%}
          {{- "<|audio|>" -}}
        {%- elif "image" in part["type"] -%}
          {{- "<|image|>" -}}
        {%- else -%}
          {{- raise_exception(where ~ " part " ~ loop.index0 ~ " has type '" ~ part["type"] ~ "': use text, video, audio or image") -}}
        {%- endif -%}
      {%- endif -%}
    {%- endfor -%}
    {{- escape(turn.text) -}}
  {%- endif -%}
  {%- if turn.empty -%}
    {{- raise_exception(where ~ " is empty: give it text or media") -}}
  {%- endif -%}
  {{- ENDS[role] -}}
  {%- if add_generation_prompt and loop.last and role != "user" -%}
    {{- raise_exception(where ~ " is the last and its role is '" ~ role ~ "': " ~ ANSWERS_USER) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- ASSISTANT -}}
{%- endif -%}
"""  # noqa: E501


@lru_cache
def _escapes(special_tokens: frozenset[str]) -> list[tuple[str, str, int]]:
    """(token, broken token, passes) for our tokens and the tokenizer's.

    One `replace` can leave occurrences that overlapped the one it broke, if the token begins as it ends
    ("aba" in "ababa"); each further pass breaks at least one in every cluster of fewer than len(token).
    """
    escapes = []
    for token in sorted({*special_tokens, *SPECIAL_TOKENS}):
        if len(token) < 2 or any(character.isspace() for character in token):
            raise ChatError(
                f"special token {token!r} cannot be escaped: special tokens need two characters or more "
                "and no white space; take it out of the tokenizer's special tokens"
            )
        overlaps_itself = any(token[:size] == token[-size:] for size in range(1, len(token)))
        escapes.append((token, f"{token[0]} {token[1:]}", len(token) if overlaps_itself else 1))
    return escapes
