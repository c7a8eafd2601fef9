"""Reads a decoder's chat form from the chat template of its tokenizer, by rendering probes.

A form is read only where the template renders prefix-stable turns: what it renders for the first turns stays
as it is when more turns follow, so that each prompt is a prefix of the conversation that is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from mllm.errors import ChatError
from mllm.records.chat import SPECIAL_TOKENS
from mllm.records.chat_form import ChatForm, own_form, render, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Template = Callable[[Messages, bool], str]  # messages, add_generation_prompt -> text

_SYSTEM, _USER, _ASSISTANT = "zqsystem", ("zquser", "zqagain"), "zqanswer"  # in no template
_PADDED = " zqpadded "
_FIRST_WORDS = ("a", "The", "7", "(", '"', "é", "日", "🎬", "-", "_")  # that an answer may begin with
_DATE = datetime(2024, 7, 26)  # where a template asks for today's: a prompt must not change overnight
_MARKER = re.compile(r"[<\[]\S+?[>\]]")  # such as [INST]


def chat_form_of(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> ChatForm:
    """The form of `template`, or of the tokenizer's chat template; ours where there is neither.

    Raises:
        ChatError: the template does not render prefix-stable turns; names what it does instead.
    """
    special = special_tokens(tokenizer)
    if template is None and not tokenizer.chat_template:
        return own_form(tokenizer.bos_token, special)

    def rendered(messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_DATE.strftime,
            )
        except Exception as error:  # whatever the template raises
            raise ChatError(f"the tokenizer's chat template fails: {' '.join(str(error).split())}") from error

    form = learn_form(rendered, special)
    _check_tokens(form, tokenizer)
    return form


def learn_form(template: Template, special: Sequence[str]) -> ChatForm:
    """The form that a chat template renders.

    Args:
        special: every special token of the tokenizer.

    Raises:
        ChatError: the template does not render prefix-stable turns.
    """
    first = template(_turns(_USER[0]), True)
    opening, prompt_end = _split(first, _USER[0])
    second = template(_turns(_USER[0], _ASSISTANT, _USER[1]), True)
    start, before_answer, between, second_end = _split(second, _USER[0], _ASSISTANT, _USER[1])
    lead = before_answer.removeprefix(prompt_end)
    if (start, second_end) != (opening, prompt_end) or lead.strip() or prompt_end + lead != before_answer:
        raise _unstable(f"{first!r} is how it asks for an answer, and {second!r} how that goes on")
    end, end_token = _end_of_answer(between, special)
    closed = template(_turns(_USER[0]), False)
    user_end = closed.removeprefix(opening + _USER[0]) if first.startswith(closed) else ""
    form = ChatForm(
        opening=opening,
        system=None,
        after_system="",
        next_user=between[len(end) :],
        user_end=user_end,
        assistant=prompt_end[len(user_end) :],
        lead=lead,
        end=end,
        end_token=end_token,
        # Only behind a special token can white space not join what stands before it in one token.
        strip=_PADDED not in template(_turns(_PADDED), True) or not prompt_end.endswith(tuple(special)),
        escaped=(),
    )
    form = _with_system(form, template)
    form = replace(form, escaped=_escaped(form, special))
    _check_turns(form, template, [])
    return form


def _with_system(form: ChatForm, template: Template) -> ChatForm:
    """The form with its place for a system message; unchanged if the template refuses, drops or moves it."""
    system = [{"role": "system", "content": _SYSTEM}]
    try:
        before, after, _ = _split(template(system + _turns(_USER[0]), True), _SYSTEM, _USER[0])
        # What belongs to the user's turn is what the other turns begin with, too.
        shared = len(_common_end(after, form.next_user))
        split = len(after) - shared
        known = replace(form, system=(before, after[:split]), after_system=after[split:])
        _check_turns(known, template, system)
    except ChatError:
        return form
    return known


def _check_turns(form: ChatForm, template: Template, before: Messages) -> None:
    """Raises ChatError unless the form gives what the template renders, for one turn to four."""
    talk = ("What is 3 < 4?\nYes or no", "Yes: 3 < 4.\n\nIt is.", "?", "…", "Größe 日本", "7", "and now")
    for count in range(1, len(talk) + 1, 2):
        messages = before + _turns(*talk[:count])
        ours = "".join(segment.text for segment in render(messages, form, add_generation_prompt=True))
        theirs = template(messages, True)
        if ours != theirs:
            raise _unstable(f"{len(messages)} messages are {theirs!r}, and fewer announce {ours!r}")


def _check_tokens(form: ChatForm, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ChatError unless the tokens of a prompt stay what they are when an answer follows."""
    prompt = form.opening + _USER[0] + form.user_end + form.assistant
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    for word in _FIRST_WORDS:
        longer = tokenizer.encode(prompt + form.lead + word + form.end, add_special_tokens=False)
        if longer[: len(tokens)] != tokens:
            raise _unstable(f"an answer that begins with {word!r} shares a token with what stands before it")


def _turns(*texts: str) -> Messages:
    return [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)
    ]


def _split(text: str, *probes: str) -> list[str]:
    """What stands before, between and behind the probes."""
    pieces = re.split("|".join(probes), text)
    if re.findall("|".join(probes), text) != list(probes):
        raise _unstable(f"of the texts {', '.join(probes)} it makes {text!r}")
    return pieces


def _end_of_answer(between: str, special: Sequence[str]) -> tuple[str, str]:
    """What ends an answer, of the text between it and the next question, and the special token in it."""
    found = [(between.index(token), -len(token), token) for token in special if token in between]
    place, _, token = min(found, default=(len(between), 0, ""))
    if not token or between[:place].strip():
        raise _unstable(f"no special token ends an answer: {between!r} stands behind it")
    return between[: place + len(token)], token


def _escaped(form: ChatForm, special: Sequence[str]) -> tuple[str, ...]:
    """Special tokens, and the form's markers that are plain text."""
    fixed = " ".join([form.opening, *(form.system or ()), form.after_system, form.next_user, form.user_end])
    fixed += " " + form.assistant
    for token in special:
        fixed = fixed.replace(token, " ")
    return tuple(sorted({*special, *SPECIAL_TOKENS, *_MARKER.findall(fixed)}))


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-size - 1] == other[-size - 1]:
        size += 1
    return one[len(one) - size :]


def _unstable(what: str) -> ChatError:
    return ChatError(
        f"the tokenizer's chat template does not render prefix-stable turns ({what}): give the decoder's "
        "tokenizer a template that does, or none, so that it gets ours"
    )
