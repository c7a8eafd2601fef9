"""What a frozen tower makes of a window, kept on disk: training, evaluation and the index run it once.

A feature is found by content: the window's own pixels or log-mel values, as the tower gets them, and the
tower's weights. Another recording, span, size, sampling or tower has another key, so nothing found is ever
stale. Features are kept in bfloat16, and taken as rounded by it from the first time on: a hit and a miss
give the same numbers.

The store is diskcache's (SQLite and files): several processes may write at once, and a size cap evicts what
was used least recently.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import torch
from torch import Tensor

from mllm.errors import ConfigError, MllmError

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.towers import Tower

BYTES_PER_GB = 10**9
MAX_GB = 20.0  # of a new cache, where nothing else is said


class FeatureCache:
    """A folder of tower features.

    Args:
        folder: made if it is not there.
        max_gb: size from which on the least recently used features go; None: as the folder has it.

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
        """Features of a batch; where one is not known yet, the tower runs on all of it.

        Args:
            digest: of the tower (`tower_digest`).
            batch: [items, …], the tower's input.

        Returns:
            [items, tokens, width], in the batch's type.
        """
        shape = (tower.tokens_per_chunk, tower.width)
        keys = [_key(digest, item) for item in batch]
        with self._kept():  # looking up counts as use, and is written down
            stored = [self.store.get(key) for key in keys]
        found = [_from_bytes(data, shape) for data in stored]
        unknown = [place for place, features in enumerate(found) if features is None]
        self.hits += len(keys) - len(unknown)
        self.misses += len(unknown)
        if unknown:
            # The whole batch: who goes on after a kill in the middle of one gets the same bits as without.
            computed = _run_frozen(tower, batch).to(torch.bfloat16).cpu()
            with self._kept():
                for place in unknown:
                    found[place] = computed[place]
                    self.store.set(keys[place], _to_bytes(computed[place]))
        return torch.stack([features for features in found if features is not None]).to(batch)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """SQLite's errors as ours: a full disk, most of all."""
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


@torch.no_grad()
def _run_frozen(tower: Tower, batch: Tensor) -> Tensor:
    """Without dropout and autocast, in whatever mode the model around it is: whoever asks gets the same."""
    training = tower.training
    try:
        with torch.autocast(batch.device.type, enabled=False):
            return tower.eval()(batch)
    finally:
        tower.train(training)


def keep_features(tower: Tower, cache: FeatureCache) -> None:
    """From now on a tower's features come from the cache where it has them.

    Raises:
        ConfigError: a parameter of the tower trains: its features change at every step.
    """
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ConfigError("features of a tower that trains cannot be kept: take the tower out of `train`")
    tower.kept = partial(cache.through, tower, tower_digest(tower))


def freeze_and_keep(model: MllmForConditionalGeneration, cache: FeatureCache) -> None:
    """`keep_features` for all towers of a model that will not be trained."""
    model.requires_grad_(False)
    for tower in model.model.towers.values():
        keep_features(tower, cache)


def tower_digest(tower: Tower) -> str:
    """sha256, hex, of a tower's weights and of what its configuration says."""
    config = tower.encoder.config.to_dict()
    # How attention is computed, where weights came from and in which type they lie change no feature.
    kept = {key: config[key] for key in sorted(config) if not key.startswith(("_", "attn_", "transformers_"))}
    # What the tower's own fields change shows in its inputs, by which features are found.
    passed_over = ("dtype", "torch_dtype", "architectures", *tower.own_fields)
    kept = {key: value for key, value in kept.items() if key not in passed_over}
    digest = hashlib.sha256(json.dumps(kept, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
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
    """None, too, for what a power failure left cut off."""
    if data is None or len(data) != torch.bfloat16.itemsize * shape[0] * shape[1]:
        return None
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(shape)
