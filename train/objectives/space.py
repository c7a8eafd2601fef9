"""The shared space: InfoNCE between text, picture and sound.

As CLIP (Radford et al. 2021) for text and picture, and likewise for text and sound, text and both, picture
and sound.

Notation: `clips` recordings of the batch, `texts` different captions of the batch, `dim` width of the space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mllm.errors import ConfigError
from mllm.models.config import MllmConfig
from mllm.models.model import MediaQueries, MllmModel
from mllm.search.embedder import longest_text
from train.conversations import CAPTION_REQUESTS
from train.objectives.info_nce import info_nce

VIDEO, AUDIO, BOTH = range(len(CAPTION_REQUESTS))


def space_losses(model: MllmModel, queries: MediaQueries, space: dict[str, Tensor]) -> dict[str, Tensor]:
    """InfoNCE of every pair of modalities, from Q-Former outputs and `pairs.space_batch`.

    Returns:
        video_text_loss, audio_text_loss, fused_text_loss, video_audio_loss: scalars.
    """
    captions, ids = space["captions"], space["caption_ids"]
    video_windows, image_windows, audio_windows = (
        space[f"{name}_windows"] for name in ("video", "image", "audio")
    )
    clips = len(captions)
    texts = model.space.text(space["text_ids"], space["text_mask"])
    text = texts[captions.clamp(min=0)]  # [clips, 3, dim]
    video = texts.new_zeros(clips, texts.shape[1])
    audio = texts.new_zeros(clips, texts.shape[1])
    if "video" in queries:
        video = video + model.embed("video", queries["video"], video_windows)
    if "image" in queries:
        video = video + model.embed("video", queries["image"], image_windows)
    if "audio" in queries:
        audio = audio + model.embed("audio", queries["audio"], audio_windows)
    seen, heard = (video_windows + image_windows) > 0, audio_windows > 0
    captioned = captions >= 0
    shuffled = None
    if "permuted_pixels" in space:
        shuffled = torch.zeros_like(video)
        if len(space["permuted_pixels"]):
            permuted = model.side_queries("video", space["permuted_pixels"])
            shuffled = model.embed("video", permuted, space["permuted_windows"])
    scale = model.space.logit_scale.exp().clamp(max=100)

    def pair(
        left: Tensor, right: Tensor, columns: list[int], present: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        # Not negatives: the same caption, and captions of one set of paraphrases, as clips of one class have.
        same = [*columns, *(column + len(CAPTION_REQUESTS) for column in columns)]
        return info_nce(left, right, scale, ids[:, same], present, negatives)

    return {
        "video_text_loss": pair(video, text[:, VIDEO], [VIDEO], seen & captioned[:, VIDEO], shuffled),
        "audio_text_loss": pair(audio, text[:, AUDIO], [AUDIO], heard & captioned[:, AUDIO]),
        "fused_text_loss": pair(
            functional.normalize(video + audio, dim=-1),
            text[:, BOTH],
            [BOTH],
            seen & heard & captioned[:, BOTH],
        ),
        # Clips with the same picture or the same sound are not negatives.
        "video_audio_loss": pair(video, audio, [VIDEO, AUDIO], seen & heard),
    }


def weighted(losses: dict[str, Tensor], video_audio_weight: float) -> Tensor:
    """The weighted sum of the shared space's losses: the mean of three with text, and video–audio."""
    texts = losses["video_text_loss"] + losses["audio_text_loss"] + losses["fused_text_loss"]
    return texts / 3 + video_audio_weight * losses["video_audio_loss"]


def longest_caption(config: MllmConfig) -> int:
    """Maximum number of tokens that the text tower of the shared space reads.

    Raises:
        ConfigError: if the model has no shared space.
    """
    if config.space_config is None:
        raise ConfigError("model.text is null, so there is no shared space to train: give it a text tower")
    return longest_text(config)
