"""How much of what the decoder gets from recordings differs between them: whether it can hear and see."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mllm.models.model import SIDE_OF, MediaQueries, MllmModel

SHARE = "media_share_"  # before the modality, in logs
FEWEST = 4  # windows that a share is computed of: a few may all be of one recording


@torch.no_grad()
def media_shares(model: MllmModel, queries: MediaQueries) -> dict[str, Tensor]:
    """The share of the media tokens' energy that varies between windows, by modality.

    It is the variance over windows divided by the mean square. Fresh projectors give .0005, trained ones .3;
    where training goes wrong, every recording becomes the same tokens, and the share falls to nothing.

    Args:
        queries: Q-Former outputs of a batch; modalities with fewer than FEWEST windows are left out.
    """
    shares = {}
    for modality, outputs in cast(dict[str, Tensor], queries).items():
        if len(outputs) >= FEWEST:
            tokens = model.projector(SIDE_OF[modality])(outputs.detach()).float()
            energy = tokens.square().mean().clamp(min=1e-12)
            shares[SHARE + modality] = tokens.var(0, correction=0).mean() / energy
    return shares
