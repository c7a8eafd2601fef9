"""Answers about a part of `data.val` during training: their loss, and how many are right word for word.

One pass with the true answers decides both: greedy decoding gives exactly the true answer if, and only if,
each of its tokens is the likeliest one after those before it. Nothing here draws random numbers while it
scores, so a run with validation has the losses of one without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from mllm.models.encoded import IGNORE, Encoded, take_media
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.records.conversation import Conversation
from mllm.records.record import answered
from mllm.records.source import DataSource
from train.conversations import by_prefix
from train.objectives.instruct import token_losses
from train.order import SHUFFLED_UP_TO
from train.shapes import TOKENS

GROUPS = 16  # in a batch: recordings with all questions about them
READ = 4  # records read for each one that is asked, so that rare tasks are among them


@dataclass(frozen=True)
class _Batch:
    """Questions as the model takes them, and for each answer its task, its row and its places in `labels`."""

    tensors: dict[str, torch.Tensor]
    answers: list[tuple[str, int, torch.Tensor]]


class AnswerValidation:
    """Questions of `source`, encoded once, and their scores.

    Args:
        rows: how many records are asked, spread evenly over tasks.
        seed: of the choice.
    """

    def __init__(self, source: DataSource, processor: MllmProcessor, rows: int, seed: int):
        asked = _spread(list(_some(source, rows * READ, seed)), rows)
        tasks = {id(conversation): task for task, conversation in asked}
        groups = by_prefix(conversation for _, conversation in asked)
        self.batches = []
        for first in range(0, len(groups), GROUPS):
            batch = groups[first : first + GROUPS]
            encoded = [processor.encode_group(group) for group in batch]
            answers = [
                (tasks[id(one)], row, places)
                for row, (group, example) in enumerate(zip(batch, encoded, strict=True))
                for one, places in zip(group, _places(example, len(group)), strict=True)
            ]
            self.batches.append(_Batch(processor.collate(encoded, pad_to_multiple_of=TOKENS), answers))

    @torch.no_grad()
    def scores(self, model: MllmForConditionalGeneration, bf16: bool = False) -> dict[str, float]:
        """`val_loss` per token, `val_exact` over all answers, and `val_<task>`, the same of each task.

        Args:
            model: the model itself, with LoRA layers inside or without.
            bf16: run in bfloat16, as training does.
        """
        right: dict[str, list[bool]] = defaultdict(list)
        loss = tokens = 0.0
        training = model.training
        model.eval()
        try:
            for batch in self.batches:
                inputs: dict[str, Any] = {
                    name: tensor.to(model.device) for name, tensor in batch.tensors.items()
                }
                with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                    queries = model.model.query_outputs(**take_media(inputs))
                    found = token_losses(model, media_queries=queries, use_cache=False, **inputs)
                loss -= float(found.log_probs.sum())
                tokens += int(found.label_mask.sum())
                for task, row, places in batch.answers:
                    right[task].append(bool(found.is_top1[row, places].all()))
        finally:
            model.train(training)
        every = [is_right for answers in right.values() for is_right in answers]
        scores = {f"val_{task}": sum(answers) / len(answers) for task, answers in sorted(right.items())}
        return {"val_loss": loss / max(tokens, 1), "val_exact": sum(every) / max(len(every), 1)} | scores


def _places(example: Encoded, answers: int) -> Iterator[torch.Tensor]:
    """Where each answer of a group is predicted, as indices into its row of `token_losses`."""
    trained = torch.tensor(example.labels[1:]) != IGNORE
    segments = torch.tensor(example.segment_ids or [1] * len(example.labels))[1:]
    for number in range(1, answers + 1):
        yield (trained & (segments == number)).nonzero()[:, 0]


def _some(source: DataSource, count: int, seed: int) -> Iterator[tuple[str, Conversation]]:
    """(task, conversation) of at least `count` records, of scenes in a random order, or of all scenes."""
    scenes = np.random.default_rng(seed).permutation(min(len(source), SHUFFLED_UP_TO))
    for scene in scenes.tolist():
        for record in source.conversations(scene):
            yield record.get("task") or "answer", answered(record)
            count -= 1
        if count <= 0:
            return


def _spread(records: list[tuple[str, Conversation]], count: int) -> list[tuple[str, Conversation]]:
    """`count` of the records, of every task as many, or all it has."""
    tasks: dict[str, list[tuple[str, Conversation]]] = defaultdict(list)
    for record in records:
        tasks[record[0]].append(record)
    turns = zip_longest(*(tasks[task] for task in sorted(tasks)))
    return [record for turn in turns for record in turn if record is not None][:count]
