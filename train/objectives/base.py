"""The contract of an objective: a model whose forward pass computes the losses of a stage."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

    from mllm.models.model import MllmForConditionalGeneration


class Objective(nn.Module):
    """A module whose forward pass returns the loss to minimise; DDP, FSDP and DeepSpeed wrap all of it.

    `forward(**batch)` takes a batch of the stage's collator and returns `{"loss": scalar}`. Distributed
    wrappers only handle what is computed inside `forward`.

    Attributes:
        model: saved as the result of the stage.
        accepts_loss_kwargs: whether `forward` takes `num_items_in_batch`, the trained tokens of all
            processes, and divides by it; otherwise the loss is the mean of this process, averaged over all.
    """

    accepts_loss_kwargs = False

    def __init__(self, model: MllmForConditionalGeneration | PeftModel):
        super().__init__()
        self.model = model
        self.config = model.config
        self._no_split_modules = model._no_split_modules  # read by FSDP's wrapping policy
        self._noted: dict[str, list[Tensor]] = defaultdict(list)

    def note(self, values: dict[str, Tensor]) -> None:
        """Records numbers of this step for the log, such as the components of its loss."""
        for name, value in values.items():
            self._noted[name].append(value.detach())

    def take_notes(self) -> dict[str, float]:
        """Returns the mean of each number noted since the last call."""
        means = {name: torch.stack(values).float().mean().item() for name, values in self._noted.items()}
        self._noted.clear()
        return means
