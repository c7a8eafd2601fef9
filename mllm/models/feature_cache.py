"""A disk cache of frozen towers' features, so that training, evaluation and the index run a tower only once.

Features are what `Tower.encode` returns: a mixer on top of it may train.

The key is a digest of content: the window's pixels or log-mel values, as the tower gets them, and the tower's
weights. Another recording, span, size, sampling or tower has another key, so a hit is never stale. Features
are stored in bfloat16, and a miss returns the rounded values, too: it gives the same numbers as a hit.

The store is diskcache's (SQLite and files): several processes may write at once, and a size limit evicts the
least recently used features.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import torch
from torch import Tensor, nn

from mllm.errors import ConfigError, MllmError

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration, SharedSpace
    from mllm.models.towers import Tower

BYTES_PER_GB = 10**9
MAX_GB = 20.0  # default size limit of a new cache
REMEMBERED_TEXTS = 100_000  # by `keep_texts`: 150 MB at a width of 384


class FeatureCache:
    """A folder of tower features.

    Args:
        folder: created if it does not exist.
        max_gb: size limit, beyond which the least recently used features are evicted; None keeps the
            folder's own.

    Attributes:
        hits, misses: windows that were found, and that were not.
    """

    def __init__(self, folder: str | Path, max_gb: float | None = None):
        self.folder = Path(folder)
        self.max_gb = max_gb
        self.hits = self.misses = 0
        self._store: Any = None

    @property
    def store(self) -> Any:
        """The store, opened by each process for itself."""
        if self._store is None:
            limit = {}
            if self.max_gb is not None or not (self.folder / diskcache.core.DBNAME).is_file():
                limit = {"size_limit": int((self.max_gb or MAX_GB) * BYTES_PER_GB)}
            try:
                self._store = diskcache.Cache(
                    str(self.folder),
                    eviction_policy="least-recently-used",
                    disk_min_file_size=1 << 16,
                    **limit,
                )
            except (OSError, sqlite3.Error) as error:
                raise ConfigError(
                    f"{self.folder}: no cache can be kept there ({error}): give another folder; one that is "
                    "damaged may be deleted, it is made again"
                ) from None
        return self._store

    def through(self, tower: Tower, digest: str, batch: Tensor) -> Tensor:
        """Features of a batch; if any is missing from the cache, the tower runs on the whole batch.

        Args:
            digest: of the tower (`tower_digest`).
            batch: [items, …], the tower's input.

        Returns:
            [items, *encoded_shape], in the batch's type.
        """
        shape = tower.encoded_shape(batch)
        keys = [_key(digest, item) for item in batch]
        with self._kept():  # a look-up is recorded as a use
            stored = [self.store.get(key) for key in keys]
        found = [_from_bytes(data, shape) for data in stored]
        unknown = [place for place, features in enumerate(found) if features is None]
        self.hits += len(keys) - len(unknown)
        self.misses += len(unknown)
        if unknown:
            # The whole batch, so that a run resumed after a kill in the middle of one gets the same bits.
            with _frozen(tower, batch.device.type):
                computed = tower.encode(batch).to(torch.bfloat16).cpu()
            with self._kept():
                for place in unknown:
                    found[place] = computed[place]
                    self.store.set(keys[place], _to_bytes(computed[place]))
        return torch.stack([features for features in found if features is not None]).to(batch)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Turns SQLite's errors, such as a full disk, into an MllmError."""
        try:
            yield
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            reason = error if str(error) else "locked by another process for a minute"
            raise MllmError(
                f"{self.folder}: features cannot be kept ({reason}): what is done stays; make room, or give "
                "another data.cache.folder"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}


@contextmanager
def _frozen(tower: nn.Module, device: str) -> Iterator[None]:
    """No gradients, dropout and autocast, whatever mode the model is in, for reproducible features."""
    training = tower.training
    tower.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        tower.train(training)


def keep_features(tower: Tower, cache: FeatureCache) -> None:
    """Makes a tower read its features from the cache, and write missing ones to it.

    Raises:
        ConfigError: if a parameter of the encoder trains, which changes its features at every step.
    """
    if any(weight.requires_grad for _, weight in tower.encoding_weights()):
        raise ConfigError("features of a tower that trains cannot be kept: take the tower out of `train`")
    tower.kept = partial(cache.through, tower, tower_digest(tower))


def keep_texts(space: SharedSpace) -> None:
    """Makes the shared space remember what its frozen text tower makes of a text, since captions repeat.

    Texts are remembered in this process, in float32. The tower runs without dropout and autocast.

    Raises:
        ConfigError: if a parameter of the text tower trains.
    """
    if any(parameter.requires_grad for parameter in space.text_tower.parameters()):
        raise ConfigError("texts of a text tower that trains cannot be kept: take `space` out of `train`")
    memory: dict[bytes, Tensor] = {}

    def kept(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        keys = [
            ids[mask.bool()].cpu().numpy().tobytes()
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        if unknown := [row for row, key in enumerate(keys) if key not in memory]:
            if len(memory) > REMEMBERED_TEXTS:
                memory.clear()
                unknown = list(range(len(keys)))
            with _frozen(space.text_tower, input_ids.device.type):
                found = space.pooled(input_ids[unknown], attention_mask[unknown])
            memory.update((keys[row], vector) for row, vector in zip(unknown, found, strict=True))
        return torch.stack([memory[key] for key in keys])

    space.kept = kept


def freeze_and_keep(model: MllmForConditionalGeneration, cache: FeatureCache) -> None:
    """Freezes a model and calls `keep_features` for all its towers."""
    model.requires_grad_(False)
    for tower in model.model.towers.values():
        keep_features(tower, cache)


def tower_digest(tower: Tower) -> str:
    """sha256, hex, of the weights and the configuration that `Tower.encode` depends on."""
    config = tower.encoder.config.to_dict()
    # Neither the attention implementation nor the origin or dtype of the weights changes a feature.
    ignored = ("_", "attn_", "transformers_", "mixer_")
    kept = {key: config[key] for key in sorted(config) if not key.startswith(ignored)}
    # Those of the tower's own fields that describe its inputs act on them, which are part of the key anyway.
    inputs = {field.name for field in fields(tower.inputs_class)}
    own = [name for name in tower.own_fields if name in inputs or config[name] is None]
    passed_over = ("dtype", "torch_dtype", "architectures", *own)
    kept = {key: value for key, value in kept.items() if key not in passed_over}
    digest = hashlib.sha256(json.dumps(kept, default=str).encode())
    for name, tensor in sorted(tower.encoding_weights()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(tower: str, item: Tensor) -> bytes:
    digest = hashlib.blake2b(f"{tower} {item.dtype} {tuple(item.shape)}".encode(), digest_size=20)
    digest.update(item.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _to_bytes(features: Tensor) -> bytes:
    return features.contiguous().view(torch.uint8).numpy().tobytes()


def _from_bytes(data: bytes | None, shape: tuple[int, int]) -> Tensor | None:
    """The stored features; None if there are none, or a power failure has truncated them."""
    if data is None or len(data) != torch.bfloat16.itemsize * shape[0] * shape[1]:
        return None
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(shape)
