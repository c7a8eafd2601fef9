"""InfoNCE over the clips of all processes.

Notation: `rows` clips of this process, `all_rows` clips of all processes, `dim` width of the shared space.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional


def caption_id(text: str) -> int:
    """A 62-bit number of a caption, equal for equal captions in every process (no salted hashes)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in rank order: [rows, …] -> [all_rows, …]; gradients reach this process's own.

    Processes with fewer rows than the longest are filled up with zeros.

    Every process then computes the loss of the whole batch, and gets the part of its gradient that belongs to
    its own rows. Distributed wrappers average over processes what should be added up here: hence the factor.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    processes = torch.distributed.get_world_size()
    longest = torch.tensor(len(rows), device=rows.device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    rows = torch.cat([rows, rows.new_zeros(int(longest) - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(rows) for _ in range(processes)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    if rows.is_floating_point():
        parts[torch.distributed.get_rank()] = rows * processes - (rows * (processes - 1)).detach()
    return torch.cat(parts)


def info_nce(
    left: Tensor,
    right: Tensor,
    scale: Tensor | float,
    ids: Tensor,
    present: Tensor,
    negatives: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE over gathered pairs (van den Oord et al. 2018; CLIP, Radford et al. 2021).

    Args:
        left, right: unit vectors [rows, dim]; row i of both belongs together.
        scale: inverse temperature (a scalar).
        ids: [rows, kinds] whole numbers; two rows that share the number of any kind are false negatives of
            each other (identical captions) and leave each other's denominator.
        present: [rows] bool; rows without this pair (no sound, no picture) are neither asked nor offered.
        negatives: [rows, dim], more that each of `right` is told from; rows of zeros are left out.

    Returns:
        the mean over the present rows of both directions; zero, with zero gradients, where there are none.
    """
    left, right, ids, present = gather(left), gather(right), gather(ids), gather(present)  # zeros are absent
    same = (ids[:, None, :] == ids[None, :, :]).any(-1)
    own = torch.eye(len(left), dtype=torch.bool, device=left.device)
    hidden = (same | ~present) & ~own
    logits = (scale * left @ right.T).float()
    targets = torch.arange(len(left), device=left.device)
    forth, back = (directed.masked_fill(hidden, float("-inf")) for directed in (logits, logits.T))
    if negatives is not None:
        negatives = gather(negatives)
        against = (scale * right @ negatives.T).float()
        back = torch.cat([back, against.masked_fill(~negatives.any(-1), float("-inf"))], dim=1)
    total = left.new_zeros(())
    for directed in (forth, back):
        total = total + functional.cross_entropy(directed, targets, reduction="none")[present].sum()
    return total / (2 * present.sum().clamp(min=1))
