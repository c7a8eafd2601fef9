"""Pads tensors to fewer distinct shapes: on a CPU, torch compiles a bfloat16 kernel for every new shape.

Batches differ in windows, captions and tokens, so nearly every step had new shapes and spent almost half of
its time compiling their kernels (docs/log.md). Rounded up, shapes recur and kernels come from oneDNN's cache.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

ROWS = 8  # windows or captions in a tower's batch are padded to a multiple of this
TOKENS = 32  # likewise the tokens in a decoder's batch


def pad_rows(module: nn.Module, method: str = "forward") -> None:
    """Makes a method of `module` pad its inputs with zero rows to a multiple of ROWS, and drop them again.

    Up to ROWS rows are not padded: there are few such shapes, and padding them would be expensive.
    """
    function = getattr(module, method)

    def padded(*tensors: torch.Tensor) -> torch.Tensor:
        rows = len(tensors[0])
        more = -rows % ROWS if rows > ROWS else 0
        return function(*(functional.pad(t, (0, 0) * (t.dim() - 1) + (0, more)) for t in tensors))[:rows]

    setattr(module, method, padded)
