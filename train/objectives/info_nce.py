"""InfoNCE over the clips of all processes.

Notation: `rows` clips of this process, `all_rows` clips of all processes, `dim` width of the shared space.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional


def caption_id(text: str) -> int:
    """A 62-bit hash of a caption, equal in every process (not salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, [rows, …] -> [all_rows, …], with gradients for this process's own.

    Processes with fewer rows than others are padded with zeros. Every process computes the loss of the whole
    batch and gets the gradient of its own rows. Distributed wrappers average gradients that should be summed
    here: hence the factor.
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
        left, right: unit vectors [rows, dim]; rows i form a pair.
        scale: inverse temperature (a scalar).
        ids: [rows, kinds] integers; two rows that share an id of any kind (identical captions) are false
            negatives and are excluded from each other's denominator.
        present: [rows] bool; rows without this pair (no sound, no picture) are ignored.
        negatives: [rows, dim], further negatives for each of `right`; rows of zeros are ignored.

    Returns:
        the mean over present rows and both directions; zero, with zero gradients, if there are none.
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
