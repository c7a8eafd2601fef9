"""Puts questions and captions into words, from phrasings.yaml and things.yaml."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.small.sets import Split
from mllm.yaml_text import read_yaml

AS_IN_SETS = 0.4  # share of questions in the words of the sets' own records, where there are such


@dataclass(frozen=True)
class Ask:
    """A question and its answer.

    Attributes:
        options: closed list in the order in which the sets' records give it; None for an open question.
        words: what the phrasing fills in beside the options.
        task: key of phrasings.yaml.
    """

    task: str
    answer: str
    options: Sequence[str] | None = None
    words: dict[str, str] | None = None


@cache
def phrasings() -> dict[str, dict[str, list[str]]]:
    """Task -> {"own", "train", "test"} -> templates."""
    return read_yaml(Path(__file__).with_name("phrasings.yaml"))


@cache
def things() -> dict[str, Any]:
    """Captions, names of sounds, and names in the plural."""
    return read_yaml(Path(__file__).with_name("things.yaml"))


def put(ask: Ask, split: Split, rng: random.Random) -> tuple[str, list[str] | None]:
    """(question, options as shown) in a phrasing of the split.

    Phrasings of our own give the options in a random order. Where a phrasing names none, options are None.
    """
    of_task = phrasings()[ask.task]
    own = split == "train" and bool(of_task["own"]) and rng.random() < AS_IN_SETS
    template = rng.choice(of_task["own" if own else split])
    options = None if ask.options is None else list(ask.options)
    if options and not own:
        rng.shuffle(options)
    shown = options if "{options}" in template or "{either}" in template else None
    fields = dict(ask.words or {})
    if "thing" in fields:
        fields["Thing"] = capital(fields["thing"])
    if options:
        fields |= {"options": ", ".join(options), "either": either(options)}
    if own and "{" not in template:
        shown = options  # "Is the speaker a child or an adult?"
    return template.format(**fields), shown


def either(options: Sequence[str]) -> str:
    """ "a, b or c" """
    return " or ".join([", ".join(options[:-1]), options[-1]]) if len(options) > 1 else options[0]


def captions(kind: str, **fields: str) -> list[str]:
    """Every caption of this kind."""
    return [template.format(**fields) for template in things()["captions"][kind]]


def with_article(name: str) -> str:
    """ "an accordion", but "binoculars" """
    if name in things()["plural"]:
        return name
    return ("an " if name[0] in "aeiou" and not name.startswith(("eu", "ew")) else "a ") + name


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
