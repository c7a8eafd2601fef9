"""Few shapes instead of many: on a CPU, torch compiles a bfloat16 kernel for every new shape it multiplies.

Batches of clips differ in windows, captions and tokens, so that nearly every step brought new shapes, and
compiling their kernels took almost half of it (docs/log.md). Rounded up, shapes come again, and kernels are
found in oneDNN's cache.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

ROWS = 8  # windows or captions that a tower reads at once come in multiples of this
TOKENS = 32  # so do the tokens of a decoder's batch


def pad_rows(module: nn.Module) -> None:
    """Make `module` compute zero rows up to a multiple of ROWS, and drop what comes of them.

    Fewer rows than ROWS stay as they are: of such shapes there are few, and filling them would cost much.
    """
    forward = module.forward

    def padded(*tensors: torch.Tensor) -> torch.Tensor:
        rows = len(tensors[0])
        more = -rows % ROWS if rows > ROWS else 0
        return forward(*(functional.pad(t, (0, 0) * (t.dim() - 1) + (0, more)) for t in tensors))[:rows]

    module.forward = padded
