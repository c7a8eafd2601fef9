"""Learning rates by part of the model, and Muon beside AdamW as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the updates of matrices.
Towers trained from scratch learn motions and shapes in a fraction of the steps (docs/log.md). Embeddings,
biases, norms, convolutions and LoRA's thin matrices stay with AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from mllm.errors import ConfigError


def hidden_matrices(model: nn.Module) -> Iterator[str]:
    """Yields the names of weights for Muon: those of linear layers, except output head and adapters."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("lm_head"):
            yield f"{name}.weight"


def parameter_groups(
    model: nn.Module,
    *,
    decayed: set[str],
    weight_decay: float,
    rate: float,
    muon_rate: float | None = None,
    part_rates: Mapping[tuple[str, ...], float | None] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Groups the trainable parameters for an optimizer; `muon` marks groups for Muon.

    Args:
        decayed: names of the parameters with weight decay.
        muon_rate: of the hidden matrices; None leaves them to AdamW at `rate`.
        part_rates: replaces `rate` for parameters with one of these substrings in their names; None is
            `rate`. Their `muon_rate` is scaled likewise.

    Raises:
        ConfigError: if there is a `muon_rate`, but no parameter for it.
    """
    matrices = set(hidden_matrices(model)) if muon_rate else set()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = (rated for keys, rated in part_rates.items() if any(key in name for key in keys))
            scale = (next(own, None) or rate) / rate
            groups[scale, name in decayed, name in matrices].append(parameter)
    if muon_rate and not any(muon for _, _, muon in groups):
        raise ConfigError("muon_lr is set, but no matrix inside a layer trains: set it to null")
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr": (muon_rate if muon and muon_rate else rate) * scale,
            "muon": muon,
        }
        for (scale, decays, muon), parameters in groups.items()
    ]


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer, with one list of parameter groups.

    Args:
        groups: from `parameter_groups`.
        adamw: further options of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any):
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self.parts: list[torch.optim.Optimizer] = [
            # Matches the step size of AdamW, so that learning rates are comparable.
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **adamw),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Shares groups and state, which schedulers and checkpoints access here, with both parts."""
        for part, is_muon in zip(self.parts, (True, False), strict=True):
            part.param_groups = [group for group in self.param_groups if group["muon"] is is_muon]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Steps both optimizers."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss
