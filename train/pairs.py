"""Pairs of recordings and captions, as the losses of the shared space take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mllm.models.encoded import MediaFeatures
from mllm.models.processor import MllmProcessor
from mllm.records.chat_form import escape
from mllm.search.embedder import text_inputs
from train.conversations import CAPTION_REQUESTS
from train.objectives.info_nce import caption_id
from train.shapes import ROWS

RANK = int(os.environ.get("RANK", "0"))  # of this process among those that torchrun started


def space_batch(
    media: Sequence[MediaFeatures],
    captions: Sequence[dict[str, Any]],
    processor: MllmProcessor,
    text_tokens: int,
    say: Callable[[str, int], str] = lambda caption, clip: caption,
    paraphrases: Sequence[dict[str, Any]] | None = None,
) -> dict[str, torch.Tensor]:
    """The inputs of the shared space's losses for a batch of recordings.

    Args:
        media: all recordings of the batch, in order.
        captions: for each recording one caption per kind in CAPTION_REQUESTS; {} excludes it from the loss.
        text_tokens: maximum caption length for the text tower.
        say: maps a caption and the index of its clip to the text for the text tower.
        paraphrases: for each recording all its captions by kind; {} if there are no others.

    Returns:
        video_windows, image_windows, audio_windows: [clips], query rows of each clip, 0 if it has none;
        text_ids, text_mask: [texts, tokens], the distinct captions;
        captions: [clips, 3], row of the caption in text_ids for video, audio, both; -1 if there is none;
        caption_ids: [clips, 6], equal in every process for equal captions (the first three) and for equal
            sets of paraphrases (the others);
        words: int64 [texts, tokens], the captions in the decoder's tokens, padded with -1.
    """
    texts: dict[str, int] = {}
    rows = np.full((len(media), len(CAPTION_REQUESTS)), -1)
    ids = np.zeros((len(media), 2 * len(CAPTION_REQUESTS)), np.int64)
    for clip, of_clip in enumerate(captions):
        for column, kind in enumerate(CAPTION_REQUESTS):
            text = of_clip.get(kind)
            # A missing caption gets a unique id.
            own = same = -1 - 3 * clip - column - (RANK << 32)
            if text:
                others = paraphrases[clip].get(kind) if paraphrases else None
                own, same = caption_id(text), caption_id("\n".join(sorted({*(others or [text])})))
                rows[clip, column] = texts.setdefault(say(text, clip), len(texts))
            ids[clip, [column, column + len(CAPTION_REQUESTS)]] = own, same
    tokens = text_inputs(processor, list(texts) or [""], text_tokens, pad_to_multiple_of=ROWS)
    # As words within a sentence, which have tokens of their own.
    words = [
        processor.tokenizer.encode(" " + escape(text, processor.special_tokens), add_special_tokens=False)
        for text in list(texts) or [""]
    ]
    return {
        "video_windows": torch.tensor([sum(window.video for window in item.layout) for item in media]),
        "image_windows": torch.tensor([int(item.modality == "image") for item in media]),
        "audio_windows": torch.tensor([int(item.window_counts.sum()) for item in media]),
        "text_ids": tokens["input_ids"],
        "text_mask": tokens["attention_mask"],
        "captions": torch.from_numpy(rows),
        "caption_ids": torch.from_numpy(ids),
        "words": pad_sequence(
            [torch.tensor(row or [-1]) for row in words], batch_first=True, padding_value=-1
        ),
    }
