"""`mllm data features`: what frozen towers make of every recording, kept before training asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from data_prep.engine import Engine, run
from mllm.media.clip import Clip
from mllm.media.windows import WindowSpec
from mllm.models.checkpoint import load
from mllm.models.encoded import MediaFeatures, collate_media
from mllm.models.feature_cache import FeatureCache, freeze_and_keep
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.records.chat import validate_messages
from mllm.records.shards import require_windows
from mllm.records.source import DataSource, open_source

WINDOWS = 32  # that go through a tower at once
SCENES = 64  # that one task works on


def fill(
    model: str,
    source: str,
    folder: Path,
    max_gb: float,
    engine: Engine = "local",
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> tuple[int, int]:
    """Runs both towers on every recording of a source that the cache does not have.

    A feature is in the cache as soon as it is computed: killed at any moment, the same call goes on.

    Args:
        model: checkpoint folder or hub id.
        source: as for `records.open_source`.
        engine, workers: see `engine.run`; one local worker computes in this process.
        progress: wraps the stretches of scenes, given their number.

    Returns:
        How many windows were computed, and how many were there.
    """
    length = len(open_source(source))
    stretches = {
        first: (model, source, folder, max_gb, first, min(first + SCENES, length))
        for first in range(0, length, SCENES)
    }
    outcomes = run(fill_stretch, stretches, engine, workers, isolated=False)
    counts = [outcome.result() for outcome in progress(outcomes, len(stretches))]
    return sum(new for new, _ in counts), sum(old for _, old in counts)


def fill_stretch(
    model: str, source: str, folder: Path, max_gb: float, first: int, last: int
) -> tuple[int, int]:
    """The same for some scenes."""
    loaded, processor, cache = _towers(model, folder, max_gb)
    scenes = _opened(source, processor.spec)
    new, old = cache.misses, cache.hits
    waiting: list[MediaFeatures] = []
    for scene in range(first, last):
        waiting += _recordings(scenes, scene, processor)
        if sum(len(item.layout) for item in waiting) >= WINDOWS or scene == last - 1:
            _run(loaded, waiting)
            waiting = []
    return cache.misses - new, cache.hits - old


@lru_cache(maxsize=1)
def _towers(
    model: str, folder: Path, max_gb: float
) -> tuple[MllmForConditionalGeneration, MllmProcessor, FeatureCache]:
    """Loaded once in each process."""
    loaded, processor = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    cache = FeatureCache(folder, max_gb)
    freeze_and_keep(loaded, cache)
    return loaded, processor, cache


@lru_cache(maxsize=1)
def _opened(source: str, spec: WindowSpec) -> DataSource:
    """Opened once in each process: every row is looked at."""
    scenes = open_source(source)
    require_windows(scenes, spec)
    return scenes


@torch.inference_mode()
def _run(model: MllmForConditionalGeneration, items: list[MediaFeatures]) -> None:
    tensors: dict[str, Any] = {**collate_media(items)}
    tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    model.model.query_outputs(**tensors)


def _recordings(source: DataSource, scene: int, processor: MllmProcessor) -> Iterator[MediaFeatures]:
    """Every different recording of a scene, with an answer or without."""
    seen = set()
    for record in source.records(scene):
        for part in validate_messages(record["messages"]).media:
            value = part.source
            key = (part.modality, id(value) if isinstance(value, Clip) else value, *part.options.items())
            if key not in seen:
                seen.add(key)
                yield processor.media(value, part.modality, isolated=True, **part.options)
