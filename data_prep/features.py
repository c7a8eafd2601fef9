"""`mllm data features`: computes the outputs of frozen towers for all recordings ahead of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data_prep.engine import Engine, run
from mllm.errors import ConfigError
from mllm.experiment import Model
from mllm.media.clip import Clip
from mllm.media.windows import WindowSpec
from mllm.models.checkpoint import build_model, load, save
from mllm.models.encoded import MediaFeatures, collate_media
from mllm.models.feature_cache import FeatureCache, freeze_and_keep
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.models.sides import SIDES
from mllm.models.towers.settings import base_of
from mllm.records.chat import validate_messages
from mllm.records.shards import require_windows
from mllm.records.source import DataSource, open_source

WINDOWS = 32  # batch size of the towers
SCENES = 64  # scenes of one task


@contextmanager
def untrained(settings: Model) -> Iterator[str]:
    """A checkpoint folder of a model as training begins with it, whose towers are those of its bases.

    Raises:
        ConfigError: if a tower has no base, so that its weights are random.
    """
    for side in SIDES:
        part = getattr(settings, side)
        if part is not None and base_of(part) is None:
            raise ConfigError(
                f"model.{side} begins with random weights, which no other run has: name a checkpoint, --model"
            )
    with TemporaryDirectory() as folder:
        yield str(save(*build_model(settings), Path(folder, "model")))


def fill(
    model: str,
    source: str,
    folder: Path,
    max_gb: float,
    engine: Engine = "local",
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> tuple[int, int]:
    """Runs both towers on every recording of a source that is not in the cache.

    Features are cached as soon as they are computed, so the same call resumes after a kill.

    Args:
        model: checkpoint folder or hub id.
        source: as for `records.open_source`.
        engine, workers: see `engine.run`; a single local worker runs in this process.
        progress: wraps the batches of scenes, given their number.

    Returns:
        The numbers of windows computed now and found in the cache.
    """
    length = len(open_source(source))
    stretches = {
        first: (model, source, folder, max_gb, first, min(first + SCENES, length))
        for first in range(0, length, SCENES)
    }
    new = old = 0
    outcomes = run(fill_stretch, stretches, engine, workers, isolated=False)
    # Not in a comprehension: its frame, and so an error's traceback, would keep the progress bar open until
    # Python itself ends, where the bar may wait for ever for a thread of its own.
    for outcome in progress(outcomes, len(stretches)):
        computed, found = outcome.result()
        new, old = new + computed, old + found
    return new, old


def fill_stretch(
    model: str, source: str, folder: Path, max_gb: float, first: int, last: int
) -> tuple[int, int]:
    """The same for the scenes from `first` up to, not including, `last`."""
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
    """The model and its cache, loaded once in each process."""
    loaded, processor = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    cache = FeatureCache(folder, max_gb)
    freeze_and_keep(loaded, cache)
    return loaded, processor, cache


@lru_cache(maxsize=1)
def _opened(source: str, spec: WindowSpec) -> DataSource:
    """Opens the source once in each process, since this reads every row."""
    scenes = open_source(source)
    require_windows(scenes, spec)
    return scenes


@torch.inference_mode()
def _run(model: MllmForConditionalGeneration, items: list[MediaFeatures]) -> None:
    tensors: dict[str, Any] = {**collate_media(items)}
    tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    model.model.query_outputs(**tensors)


def _recordings(source: DataSource, scene: int, processor: MllmProcessor) -> Iterator[MediaFeatures]:
    """Yields every distinct recording of a scene."""
    seen = set()
    for record in source.records(scene):
        for part in validate_messages(record["messages"]).media:
            value = part.source
            key = (part.modality, id(value) if isinstance(value, Clip) else value, *part.options.items())
            if key not in seen:
                seen.add(key)
                yield processor.media(value, part.modality, isolated=True, **part.options)
