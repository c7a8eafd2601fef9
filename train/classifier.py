"""A plain classifier of recordings by their sound: what answering in words is measured against.

The audio tower, the mean of its tokens, one linear layer. The tower starts from the same weights as the
experiment, or from nothing, and sees the same records, in the same order and views, for as many steps as its
stage `instruct`, under the same optimizer and schedule. It knows the closed set of answers, which a model
that answers in words does not.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from mllm.errors import RecordError
from mllm.experiment import Experiment
from mllm.files import write_atomically
from mllm.models.processor import MediaFeatures, MllmProcessor
from mllm.models.towers import Tower
from mllm.records.chat import validate_messages
from mllm.records.record import Record, answered
from mllm.records.shards import require_windows
from mllm.records.source import DataSource, open_source
from train.data import Collator
from train.optimizer import MuonAdamW, parameter_groups
from train.run import BETAS, MAX_GRAD_NORM, MIN_LR_RATE, WEIGHT_DECAY, set_trainable
from train.sections import Instruct

Labelled = tuple[list[MediaFeatures], list[str]]


class Classifier(nn.Module):
    """Labels of recordings, from the mean of a tower's tokens."""

    def __init__(self, tower: Tower, labels: Sequence[str]):
        super().__init__()
        self.tower = tower
        self.labels = list(labels)
        self.head = nn.Linear(tower.width, len(labels))

    def forward(self, media: Sequence[MediaFeatures]) -> torch.Tensor:
        """Recordings with sound -> [recordings, labels]."""
        chunks = [item.input_features for item in media if item.input_features is not None]
        tokens = self.tower(torch.cat(chunks).to(self.head.weight.device)).mean(1)
        recordings = tokens.split([len(chunk) for chunk in chunks])
        return self.head(torch.stack([recording.mean(0) for recording in recordings]))


class LabelCollator(Collator):
    """One record of every scene: its sound and its answer."""

    def __call__(self, rows: Sequence[dict[str, int]]) -> Labelled:
        return self.read(self._chosen(row["number"]) for row in rows)

    def _chosen(self, number: int) -> list[dict]:
        records = self.source.conversations(self.scene(number))
        if not records:
            raise RecordError(f"{self.source.name}: a row has no answer: leave it out")
        record = records[np.random.default_rng((self.seed, number)).integers(len(records))]
        return self.views([answered(record)], number)[0]

    def read(self, conversations: Iterable[list[dict]]) -> Labelled:
        """Sounds and last words of conversations.

        Raises:
            RecordError: one has no sound.
        """
        media, labels = [], []
        for messages in map(validate_messages, conversations):
            recordings = [
                self.processor.media(part.source, "audio", **part.options)
                for part in messages.media
                if part.modality != "image"
            ]
            if not recordings or recordings[0].input_features is None:
                asked = said(messages[:1])
                raise RecordError(f"{self.source.name}: no sound before '{asked}': leave this record out")
            media.append(recordings[0])
            labels.append(said(messages))
        return media, labels


def said(messages: Sequence[dict]) -> str:
    """The words at the end of a conversation."""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def train(experiment: Experiment, model: Any, processor: MllmProcessor, folder: Path) -> dict[str, Any]:
    """Trains on data.train, scores data.val, and writes metrics.json.

    Returns:
        {"accuracy", "majority", "right", "recordings", "labels", "seconds"}: of val; seconds of training.

    Raises:
        RecordError: a recording without sound, or an answer of val that train never has.
    """
    settings = experiment.section(Instruct)
    source, val = open_source(experiment.data.train), open_source(experiment.data.val)
    require_windows(val, processor.spec)
    labels = sorted({said(answered(record)) for record in _records(source)})
    held_out = [answered(record) for record in _records(val)]
    counts = Counter(map(said, held_out))
    if unknown := sorted(set(counts) - set(labels)):
        raise RecordError(f"{val.name}: the answer '{unknown[0]}' is none of {source.name}: give it one")
    torch.manual_seed(experiment.seed)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    classifier = Classifier(model.model.audio_tower, labels).to(model.device)
    set_trainable(model, [group for group in settings.train if group == "audio_tower"])
    optimizer = _optimizer(classifier, settings)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, settings.warmup, settings.steps, min_lr_rate=MIN_LR_RATE
    )
    precision = torch.autocast(model.device.type, torch.bfloat16) if settings.bf16 else nullcontext()
    collator = LabelCollator(source, processor, experiment.seed, experiment.data.augment)

    begin = time.perf_counter()
    classifier.train()
    for step in range(settings.steps):
        numbers = range(step * settings.batch, (step + 1) * settings.batch)
        media, answers = collator([{"number": number} for number in numbers])
        targets = torch.tensor([labels.index(answer) for answer in answers], device=model.device)
        with precision:
            loss = functional.cross_entropy(classifier(media), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % settings.log_every == 0:
            print(f"classifier {step + 1}/{settings.steps}  loss {loss.item():.4g}", flush=True)
    seconds = time.perf_counter() - begin

    right = 0
    classifier.eval()
    with torch.inference_mode():
        for first in range(0, len(held_out), settings.batch):
            media, answers = collator.read(held_out[first : first + settings.batch])
            chosen = classifier(media).argmax(-1).tolist()
            right += sum(labels[place] == answer for place, answer in zip(chosen, answers, strict=True))
    scores = {
        "accuracy": right / len(held_out),
        "majority": max(counts.values()) / len(held_out),
        "right": right,
        "recordings": len(held_out),
        "labels": labels,
        "seconds": round(seconds, 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "metrics.json", json.dumps(scores, indent=1))
    return scores


def _optimizer(classifier: Classifier, settings: Any) -> torch.optim.Optimizer:
    """The stage's: Muon and AdamW, or AdamW alone; a new head is AdamW's, as a decoder's is."""
    tower, head = classifier.tower, classifier.head
    rate = settings.tower_lr or settings.lr
    groups = [{"params": list(head.parameters()), "weight_decay": 0.0, "lr": settings.lr, "muon": False}]
    if any(weight.requires_grad for weight in tower.parameters()):
        groups += parameter_groups(
            tower,
            decayed={name for name, weight in tower.named_parameters() if weight.dim() > 1},
            weight_decay=WEIGHT_DECAY,
            rate=rate,
            muon_rate=settings.muon_lr and settings.muon_lr * rate / settings.lr,
        )
    muon = any(group["muon"] for group in groups)
    return (MuonAdamW if muon else torch.optim.AdamW)(groups, betas=BETAS)


def _records(source: DataSource) -> Iterable[Record]:
    return (record for scene in range(len(source)) for record in source.conversations(scene))
