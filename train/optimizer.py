"""Learning rates by part of the model, and Muon beside AdamW as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the step of a matrix equally large
in all its directions. Towers that begin from nothing see motions and shapes after a fraction of the steps
(docs/log.md). Embeddings, biases, norms, convolutions and LoRA's thin matrices stay with AdamW.
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
    """Names of the weights that Muon is for: those of linear layers, but no output head and no adapter."""
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
    """What trains, in groups for an optimizer; `muon` tells whether a group is for Muon.

    Args:
        decayed: names of the parameters that weight decay is for.
        muon_rate: of the hidden matrices; None leaves them to AdamW at `rate`.
        part_rates: in place of `rate`, for parameters with one of these texts in their names; None is `rate`.
            Their `muon_rate` changes by as much.

    Raises:
        ConfigError: if there is a `muon_rate` and nothing for it to train.
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
    """torch's Muon and torch's AdamW behind one interface, with one list of parameter groups.

    Args:
        groups: of `parameter_groups`.
        adamw: further options of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any):
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self.parts: list[torch.optim.Optimizer] = [
            # Its steps are then as large as AdamW's, so that a rate means the same to both.
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **adamw),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimizer's groups and state, which schedulers and checkpoints know."""
        for part, is_muon in zip(self.parts, (True, False), strict=True):
            part.param_groups = [group for group in self.param_groups if group["muon"] is is_muon]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> Any:
        """One step of both; `closure` as everywhere in torch."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss
