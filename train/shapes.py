"""Few shapes instead of many: on a CPU, torch compiles a bfloat16 kernel for every new shape it multiplies.

Batches of clips differ in windows, captions and tokens, so that nearly every step brought new shapes, and
compiling their kernels took almost half of it (docs/log.md). Rounded up, shapes come again, and kernels are
found in oneDNN's cache.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn import functional

ROWS = 8  # windows or captions that a tower reads at once come in multiples of this
TOKENS = 32  # so do the tokens of a decoder's batch
CACHED_KERNELS = "4096"  # oneDNN's own 1024 are fewer than three stages' shapes


def cache_kernels() -> None:
    """Let oneDNN keep more kernels; counts only before its first use in this process."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", CACHED_KERNELS)


def pad_rows(module: nn.Module) -> None:
    """Make `module` compute zero rows up to a multiple of ROWS, and drop what comes of them."""
    forward = module.forward

    def padded(*tensors: torch.Tensor) -> torch.Tensor:
        rows = len(tensors[0])
        more = -rows % ROWS
        return forward(*(functional.pad(t, (0, 0) * (t.dim() - 1) + (0, more)) for t in tensors))[:rows]

    module.forward = padded
