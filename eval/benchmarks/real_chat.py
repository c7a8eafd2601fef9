"""Whether a decoder that learned to hear and see still talks: its loss on chat, and plain facts.

Beside the pretrained decoder that it was made of, on texts that training never sees.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from eval.benchmarks.real_rows import spread
from eval.metrics import interval
from eval.targets import Target
from mllm.errors import RecordError
from mllm.models.encoded import IGNORE, Encoded
from mllm.records.answers import Generation
from mllm.scores import normalise
from mllm.yaml_text import read_yaml

if TYPE_CHECKING:
    from mllm.answerer import Answerer
    from mllm.records.answers import Backend

_log = logging.getLogger(f"mllm.{__name__}")

LONGEST = 512  # tokens; longer chats are cut


def chat_target(settings: dict[str, Any], folder: Path, local: Answerer) -> Iterator[Target]:
    """The loss on Alpaca rows, divided by that of the decoder's base; nothing if it was trained from nothing.

    Args:
        settings: `chat` of real.yaml.
        folder: holds the file that it names.
    """
    from transformers import AutoModelForCausalLM

    from mllm.models.bases import base_folder

    base, path = local.model.bases.get("decoder"), folder / settings["file"]
    if base is None or not path.is_file():
        return
    chats = [_encoded(local, chat) for chat in _alpaca(path, settings["rows"])]
    chats = [chat for chat in chats if set(chat.labels) != {IGNORE}]  # its question alone is too long
    _log.info("plain chat: the loss of %d rows, and that of %s", len(chats), base.name)
    own = _losses(local.model, chats, local)
    pretrained = AutoModelForCausalLM.from_pretrained(base_folder(base.name), dtype=local.model.dtype)
    before = _losses(pretrained.to(local.model.device).eval(), chats, local)
    low, high = interval(own, range(len(chats)), before)
    score = sum(own) / sum(before)
    title, floor, aim = settings["title"], settings["floor"], settings["aim"]
    yield Target(title, score, len(chats), low, high, floor=floor, aim=aim, less_is_better=True)


def _alpaca(path: Path, count: int) -> Iterable[list[dict[str, str]]]:
    """Conversations of rows {instruction, input, output}, spread over the file."""
    try:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["output"].strip()]
        for row in spread(rows, count):
            asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
            yield [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path}: no rows of instruction, input and output ({error!r})") from None


def _encoded(local: Answerer, chat: list[dict[str, str]]) -> Encoded:
    encoded = local.processor.encode(chat)
    return Encoded(encoded.input_ids[:LONGEST], encoded.labels[:LONGEST])


@torch.inference_mode()
def _losses(model: Any, chats: Sequence[Encoded], local: Answerer) -> list[float]:
    """Summed loss of each conversation's answers, in nats.

    One by one: side by side they would be padded, and most of the time goes into the logits of a large
    vocabulary, which here are those of the answer alone.
    """
    found = []
    for chat in chats:
        batch = local.processor.collate([chat])
        labels = batch.pop("labels")[0, 1:].to(model.device)
        answered = int((labels != IGNORE).nonzero()[0])
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = model(**inputs, logits_to_keep=len(labels) + 1 - answered).logits[0, :-1]
        found.append(functional.cross_entropy(logits.float(), labels[answered:], reduction="sum").item())
    return found


def facts_target(settings: dict[str, Any], backend: Backend) -> Iterator[Target]:
    """How many of the questions in real_facts.yaml get an answer that its pattern is found in."""
    facts: dict[str, str] = read_yaml(Path(__file__).with_name("real_facts.yaml"))
    asked = [[{"role": "user", "content": question}] for question in facts]
    answers = backend.answer(asked, Generation(max_tokens=64))
    right = [
        float(re.search(pattern, normalise(str(answer))) is not None)
        for pattern, answer in zip(facts.values(), answers, strict=True)
    ]
    low, high = interval(right, range(len(right)))
    floor, aim = settings["floor"], settings["aim"]
    yield Target(settings["title"], sum(right) / len(right), len(right), low, high, floor=floor, aim=aim)
