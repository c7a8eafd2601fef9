"""What the processor makes of conversations and recordings, and how examples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

import torch

from mllm.media.windows import Seen, WindowLayout

IGNORE = -100  # the label of a token that is not trained
GROUP = 1 << 20  # added to the segments of each further example in a row


@dataclass
class MediaFeatures:
    """One recording, ready for the model.

    Attributes:
        modality: "video", "audio" or "image".
        pixel_values: uint8 [windows with picture, frames, 3, height, width]; for an image
            [1, 3, height, width].
        input_features: float32 [chunks, …], the audio tower's input, or None.
        window_counts: int64 [chunks], windows with sound in each chunk.
        layout: one entry per window, in order.
        seen: which part of the recording the model sees.
    """

    modality: str
    pixel_values: torch.Tensor | None
    input_features: torch.Tensor | None
    window_counts: torch.Tensor
    layout: list[WindowLayout]
    seen: Seen | None = None


class MediaTensors(TypedDict, total=False):
    """All recordings of a batch, concatenated; kinds that do not occur have no key.

    Keys:
        pixel_values: uint8 [windows with picture, frames, 3, height, width].
        image_values: uint8 [images, 3, height, width].
        input_features: float32 [chunks, mel bins, mel frames].
        window_counts: int64 [chunks], windows with sound in each chunk.
    """

    pixel_values: torch.Tensor
    image_values: torch.Tensor
    input_features: torch.Tensor
    window_counts: torch.Tensor


@dataclass
class Encoded:
    """One training or inference example; position_ids and segment_ids are set if questions share a prefix."""

    input_ids: list[int]
    labels: list[int]
    media: list[MediaFeatures] = field(default_factory=list)
    position_ids: list[int] | None = None
    segment_ids: list[int] | None = None


def take_media(batch: dict[str, Any]) -> MediaTensors:
    """Removes the media tensors from a batch and returns them."""
    return cast(
        MediaTensors, {name: batch.pop(name) for name in MediaTensors.__annotations__ if name in batch}
    )


def collate_media(media: Sequence[MediaFeatures]) -> MediaTensors:
    """Concatenates the features of several items in order of appearance."""
    tensors: MediaTensors = {}
    for name, modality in (("pixel_values", "video"), ("image_values", "image")):
        pictures = [
            item.pixel_values for item in media if item.modality == modality and item.pixel_values is not None
        ]
        if pictures:
            tensors[name] = torch.cat(pictures)  # type: ignore[literal-required]
    sounds = [item for item in media if item.input_features is not None]
    if sounds:
        tensors["input_features"] = torch.cat([item.input_features for item in sounds])  # type: ignore[misc]
        tensors["window_counts"] = torch.cat([item.window_counts for item in sounds])
    return tensors


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """The attention mask of packed questions, boolean [batch, 1, S, S].

    Args:
        segments: [batch, S], 0 for the shared prefix, i for question i, -1 for padding; GROUP more for the
            second example in a row, and so on.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    groups = segments.div(GROUP, rounding_mode="floor")
    shared = (segments % GROUP == 0)[:, None, :] & (groups[:, :, None] == groups[:, None, :])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # Padding attends to itself; a row that attends to nothing would be NaN.
    return ((same | shared) & causal | torch.eye(length, dtype=torch.bool)).unsqueeze(1)
