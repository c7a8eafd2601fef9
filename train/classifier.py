"""Collator and trainer of the classifier, which is scored on `val` instead of saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from mllm.errors import RecordError
from mllm.experiment import Augment
from mllm.files import write_atomically
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.models.towers import find_tower
from mllm.records.conversation import Conversation
from mllm.records.record import answered
from mllm.records.shards import require_windows
from mllm.records.source import DataSource, open_source
from train.data import Collator
from train.objectives.classifier import ClassifierObjective
from train.optimizer import MuonAdamW, parameter_groups
from train.run import BETAS, WEIGHT_DECAY, Run, metrics_of, trainer_arguments
from train.sections import Instruct
from train.trainer import StageTrainer


class LabelCollator(Collator):
    """One record of every scene: its sound and its answer.

    Args:
        labels: all answers, in the order of the classifier's outputs.
    """

    def __init__(
        self,
        source: DataSource,
        processor: MllmProcessor,
        seed: int,
        labels: Sequence[str],
        augmentation: Augment | None = None,
    ):
        super().__init__(source, processor, seed, augmentation)
        self.labels = list(labels)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        return self.read(self._chosen(row["number"]) for row in rows)

    def _chosen(self, number: int) -> Conversation:
        records = self.source.conversations(self.order(number).scene)
        if not records:
            raise RecordError(f"{self.source.name}: a row has no answer: leave it out")
        record = records[np.random.default_rng((self.seed, number)).integers(len(records))]
        return self.views([answered(record)], number)[0]

    def read(self, conversations: Iterable[Conversation]) -> dict[str, torch.Tensor]:
        """Sounds and answers of conversations.

        Returns:
            input_features: [chunks, …], as the tower takes them; chunk_counts, labels: [conversations].

        Raises:
            RecordError: if one has no sound.
        """
        chunks, labels = [], []
        for conversation in conversations:
            recordings = [
                self.processor.media(part.source, "audio", **part.options)
                for part in conversation.media
                if part.modality != "image"
            ]
            if not recordings or recordings[0].input_features is None:
                question = conversation[0].text
                raise RecordError(f"{self.source.name}: no sound before '{question}': leave this record out")
            chunks.append(recordings[0].input_features)
            labels.append(self.labels.index(conversation[-1].text))
        return {
            "input_features": torch.cat(chunks),
            "chunk_counts": torch.tensor([len(each) for each in chunks]),
            "labels": torch.tensor(labels),
        }


def answers_of(source: DataSource) -> Iterator[Conversation]:
    """Every conversation of a source that ends with an answer."""
    return (answered(record) for scene in range(len(source)) for record in source.conversations(scene))


def renew_tower(model: MllmForConditionalGeneration) -> None:
    """Gives the model an audio tower with random weights, where it has one."""
    if side := model.config.sides.get("audio"):
        model.model.audio_tower = find_tower(side.tower.model_type)(side.tower, model.config.window)


class ClassifierTrainer(StageTrainer):
    """Trains a tower and a new head; its result is a score, written to metrics.json.

    Raises:
        RecordError: for an answer of `val` that `train` never has.
    """

    objective: ClassifierObjective

    def __init__(
        self, run: Run, objective: ClassifierObjective, processor: MllmProcessor, collator: LabelCollator
    ):
        val = open_source(run.experiment.data.val)
        require_windows(val, processor.spec)
        self.collator = collator
        self.held_out = list(answers_of(val))
        self.counts = Counter(conversation[-1].text for conversation in self.held_out)
        if unknown := sorted(set(self.counts) - set(objective.labels)):
            raise RecordError(
                f"{val.name}: the answer '{unknown[0]}' is none of {collator.source.name}: give it one"
            )
        settings = TrainingArguments(**trainer_arguments(run) | {"save_strategy": "no"})
        super().__init__(run, objective, processor, collator, args=settings)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The stage's optimizer, Muon and AdamW or AdamW alone; a new head is AdamW's, as a decoder's is."""
        if self.optimizer is None:
            settings = self.run.experiment.section(Instruct)
            tower, head = self.objective.tower, self.objective.head
            rate = settings.tower_lr or settings.lr
            groups: list[dict[str, Any]] = [
                {"params": list(head.parameters()), "weight_decay": 0.0, "lr": settings.lr, "muon": False}
            ]
            if any(weight.requires_grad for weight in tower.parameters()):
                groups += parameter_groups(
                    tower,
                    decayed={name for name, weight in tower.named_parameters() if weight.dim() > 1},
                    weight_decay=WEIGHT_DECAY,
                    rate=rate,
                    muon_rate=settings.muon_lr and settings.muon_lr * rate / settings.lr,
                )
            muon = any(group["muon"] for group in groups)
            self.optimizer = (MuonAdamW if muon else torch.optim.AdamW)(groups, betas=BETAS)
        return self.optimizer

    def finish(self) -> str:
        """Scores `val` and adds accuracy, majority, right, recordings, labels and seconds to metrics.json."""
        right, batch = 0, self.run.settings.batch
        self.objective.eval()
        with torch.inference_mode():
            for first in range(0, len(self.held_out), batch):
                sounds = self._prepare_inputs(self.collator.read(self.held_out[first : first + batch]))
                answers = sounds.pop("labels")
                right += int((self.objective.logits(**sounds).argmax(-1) == answers).sum())
        recordings = len(self.held_out)
        scores = {
            "accuracy": right / recordings,
            "majority": max(self.counts.values()) / recordings,
            "right": right,
            "recordings": recordings,
            "labels": self.objective.labels,
            "seconds": round(self.state.log_history[-1]["train_runtime"], 1),
        }
        path = self.run.folder / "metrics.json"
        write_atomically(path, json.dumps(metrics_of(self.run, self.state) | scores, indent=1))
        return (
            f"{scores['accuracy']:.3f} of {recordings} recordings right (majority {scores['majority']:.3f}), "
            f"{len(self.objective.labels)} labels, {scores['seconds']:.0f} s of training; {path}"
        )
