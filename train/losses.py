"""Objectives of the training stages, as plain functions of tensors.

Each objective is one function that returns one scalar; a stage adds them up with the weights of its YAML
section. Sigmoid, triplet and supervised-contrastive objectives belong here too, beside `info_nce`.

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
    """Rows of all processes, in rank order, with gradients: [rows, …] -> [all_rows, …]."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    if torch.distributed.get_world_size() == 1:
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


def _first_row(rows: int) -> int:
    """Where this process's rows begin among the gathered ones (every process holds equally many)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return torch.distributed.get_rank() * rows


def info_nce(left: Tensor, right: Tensor, scale: Tensor | float, ids: Tensor, present: Tensor) -> Tensor:
    """Symmetric InfoNCE over gathered pairs (van den Oord et al. 2018; CLIP, Radford et al. 2021).

    Args:
        left, right: unit vectors [rows, dim]; row i of both belongs together.
        scale: inverse temperature (a scalar).
        ids: [rows, kinds] whole numbers; two rows that share the number of any kind are false negatives of
            each other (identical captions) and leave each other's denominator.
        present: [rows] bool; rows without this pair (no sound, no picture) are neither asked nor offered.

    Returns:
        the mean over the present rows of both directions; zero, with zero gradients, where there are none.
    """
    rows = len(left)
    all_left, all_right, all_ids, all_present = gather(left), gather(right), gather(ids), gather(present)
    own = torch.arange(rows, device=left.device) + _first_row(rows)
    same = (ids[:, None, :] == all_ids[None, :, :]).any(-1)
    hidden = same | ~all_present[None, :]
    hidden[torch.arange(rows, device=left.device), own] = False
    weights = present.to(left.dtype)
    total = left.new_zeros(())
    for queries, keys in ((left, all_right), (right, all_left)):
        logits = (scale * queries @ keys.T).float().masked_fill(hidden, float("-inf"))
        total = total + (functional.cross_entropy(logits, own, reduction="none") * weights).sum()
    return total / (2 * weights.sum().clamp(min=1))
