"""`mllm data features`: what frozen towers make of every recording, kept before training asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from mllm.cache import FeatureCache, keep_features
from mllm.chat import media_parts
from mllm.media import Clip
from mllm.processor import MediaFeatures, MllmProcessor, collate_media
from mllm.records import Source

WINDOWS = 32  # that go through a tower at once


def fill(
    model: Any,
    processor: MllmProcessor,
    source: Source,
    cache: FeatureCache,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Runs both towers on every recording of a source that the cache does not have.

    A feature is in the cache as soon as it is computed: killed at any moment, the same call goes on.

    Args:
        progress: wraps the numbers of the scenes.
    """
    model.requires_grad_(False)
    for tower in (model.model.video_tower, model.model.audio_tower):
        keep_features(tower, cache)
    waiting: list[MediaFeatures] = []
    for scene in progress(range(len(source))):
        waiting += _recordings(source, scene, processor)
        if sum(len(item.layout) for item in waiting) >= WINDOWS:
            _run(model, waiting)
            waiting = []
    if waiting:
        _run(model, waiting)


@torch.inference_mode()
def _run(model: Any, items: list[MediaFeatures]) -> None:
    tensors = {name: tensor.to(model.device) for name, tensor in collate_media(items).items()}
    model.model.query_outputs(**tensors)


def _recordings(source: Source, scene: int, processor: MllmProcessor) -> Iterator[MediaFeatures]:
    """Every different recording of a scene."""
    seen = set()
    for record in source.conversations(scene):
        for modality, value, options in media_parts(record["messages"]):
            key = (modality, id(value) if isinstance(value, Clip) else value, *options.items())
            if key not in seen:
                seen.add(key)
                yield processor.media(value, modality, **options)
