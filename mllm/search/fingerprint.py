"""The identity of a model as far as its vectors go, computed from the files of a checkpoint without torch.

An index is only searched with vectors of the model that filled it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mllm.models.checkpoint_check import DELTAS
from mllm.models.deltas import read_bases
from mllm.models.sides import SIDES

OF_VECTORS = (*(f"{side}_{part}." for side in SIDES for part in ("tower", "qformer")), "space.")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OF_DECODER = "base_model.model.model.language_model."  # names of an adapter's weights
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


def model_fingerprint(settings: bytes, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """sha256 of all that decides a vector: weights of towers, Q-Formers and space, and how media is cut.

    Args:
        settings: see `sides.cut_settings`.
        weights: (name within `model`, values) of weights whose names begin with OF_VECTORS, sorted by name.
    """
    digest = hashlib.sha256(settings)
    for name, values in weights:
        digest.update(f"{name} {list(values.shape)}".encode())
        digest.update(np.ascontiguousarray(values, np.float32).data)
    return digest.hexdigest()


def delta_fingerprint(folder: Path, settings: bytes) -> str:
    """The same of a checkpoint of bases and deltas: the bases by their hashes, the deltas by their values."""
    bases = {part: asdict(base) for part, base in read_bases(folder).items() if part != "decoder"}
    for base in bases.values():
        del base["name"]  # where a base lies changes no vector
    own = {name.removeprefix("model."): values for name, values in stored_weights(folder / DELTAS).items()}
    return model_fingerprint(
        settings + json.dumps(bases, sort_keys=True).encode(),
        ((name, as_float32(own[name])) for name in sorted(own) if name.startswith(OF_VECTORS)),
    )


def tunes_vectors(adapter: Path) -> bool:
    """Whether an adapter changes more than the decoder, which no vector depends on."""
    return not all(name.startswith(OF_DECODER) for name in stored_weights(adapter / ADAPTER_WEIGHTS))


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """The values in a safetensors file as they are stored, memory-mapped.

    Raises:
        ValueError: the file is cut.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is damaged")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    found = {}
    for name, stored in header.items():
        begin, end = stored["data_offsets"]
        found[name] = data[begin:end].view(_DTYPES[stored["dtype"]]).reshape(stored["shape"])
    return found


def as_float32(stored: np.ndarray) -> np.ndarray:
    """Stored values as float32; uint16 holds bfloat16, the upper half of a float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
