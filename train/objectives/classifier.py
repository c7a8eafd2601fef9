"""Classification by the audio tower alone, a baseline for answers in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mllm.errors import ConfigError
from mllm.models.model import MllmForConditionalGeneration
from train.objectives.base import Objective


class ClassifierObjective(Objective):
    """Audio tower, mean over tokens, one linear layer; cross-entropy over a closed set of labels.

    Notation: `chunks` of sound of all recordings, in order.

    Raises:
        ConfigError: if the model has no audio tower.
    """

    def __init__(self, model: MllmForConditionalGeneration, labels: Sequence[str]):
        super().__init__(model)
        if "audio" not in model.model.towers:
            raise ConfigError("model.audio is null, so there is no sound to classify: give it a tower")
        self.tower = model.model.towers["audio"]
        self.labels = list(labels)
        self.head = nn.Linear(self.tower.width, len(labels))

    def logits(self, input_features: Tensor, chunk_counts: Tensor) -> Tensor:
        """Chunks of sound -> [recordings, labels].

        Args:
            input_features: [chunks, …], as the tower takes them.
            chunk_counts: [recordings], number of chunks of each.
        """
        tokens = self.tower(self.tower.ready(input_features))
        chunks = tokens.mean(1).split(chunk_counts.tolist())
        return self.head(torch.stack([recording.mean(0) for recording in chunks]))

    def forward(self, labels: Tensor, **sounds: Tensor) -> dict[str, Tensor]:
        """labels [recordings], indices into `self.labels`; sounds as for `logits` -> {"loss"}."""
        return {"loss": functional.cross_entropy(self.logits(**sounds), labels)}
