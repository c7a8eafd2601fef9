"""Checkpoints that hold only what differs from their bases: pretrained models known by name and sha256.

    bases.json           {"decoder": {"name": "smollm2-135m", "sha256": "…", "prefix": "model."}, "audio": …}
    deltas.safetensors   every weight that no base holds, or that was trained

Of a table of which few rows differ, such as embeddings with a few new tokens, only those rows are kept, as
NAME#rows [rows] and NAME#values [rows, …]. Both files are read without torch by `search.text_embedder`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mllm.errors import MllmError
from mllm.models.bases import BASES as BY_NAME
from mllm.models.bases import base_folder
from mllm.models.checkpoint_check import (
    BASES,
    DELTAS,
    INDEX,
    REMEDY,
    WEIGHTS,
    Shapes,
    in_one_line,
    read_json,
    shards,
    weight_shapes,
)
from mllm.models.sides import SIDES

if TYPE_CHECKING:
    import torch

    from mllm.models.config import MllmConfig

ROWS, VALUES = "#rows", "#values"
HEAD = "lm_head.weight"

# The names of a part's weights in our model begin with this.
ROOTS = {
    "decoder": "model.language_model.",
    **{side: f"model.{side}_tower.encoder." for side in SIDES},
    "text": "model.space.text_tower.encoder.",
}


@dataclass(frozen=True)
class PartBase:
    """The pretrained model that a part of our model was built from.

    Attributes:
        name: of a base in `mllm bases list`, a hub id, or a folder.
        sha256: of its weights; if these are in shards, of the shards one after the other.
        prefix: of the part's weights in the base's files, such as "model.encoder." in Whisper's.
    """

    name: str
    sha256: str
    prefix: str


class Stored(NamedTuple):
    """Where a base holds a weight of our model."""

    part: str
    file: Path
    key: str


# --- bases --------------------------------------------------------------------------------------------------


def find_base(part: str, name: str, names: Iterable[str]) -> PartBase | None:
    """Describes the base of a part so that its weights are found again; None if it has no safetensors.

    Args:
        names: of all weights of our model.
    """
    files = _files(name)
    wanted = {weight.removeprefix(ROOTS[part]) for weight in names if weight.startswith(ROOTS[part])}
    prefix = _prefix(wanted, (key for file in files for key in weight_shapes(file)))
    if prefix is None:
        return None
    known_as = str(Path(name).absolute()) if name not in BY_NAME and Path(name).is_dir() else name
    return PartBase(known_as, _sha256(name, files), prefix)


def _prefix(wanted: Collection[str], held: Iterable[str]) -> str | None:
    """What comes before most of the wanted names in a base's files; None if these hold none of them."""
    found: Counter[str] = Counter()
    for key in held:
        words = key.split(".")
        starts = (".".join([*words[:count], ""]) for count in range(len(words)))
        found.update(start for start in starts if key.removeprefix(start) in wanted)
    return found.most_common(1)[0][0] if found else None


def is_delta(folder: Path) -> bool:
    """Whether a checkpoint folder holds bases and deltas, and not all weights."""
    return (folder / BASES).is_file()


def read_bases(folder: Path) -> dict[str, PartBase]:
    """The bases of a checkpoint by part.

    Raises:
        MllmError: if bases.json is missing or damaged.
    """
    try:
        bases = {part: PartBase(**values) for part, values in read_json(folder / BASES).items()}
    except TypeError:
        bases = {}
    if not bases or bases.keys() - ROOTS.keys():
        raise MllmError(f"{folder / BASES} is damaged (no bases by part): {REMEDY}")
    return bases


def stored_in(bases: Mapping[str, PartBase]) -> dict[str, Stored]:
    """Where the bases hold weights of our model, by our names.

    Raises:
        MllmError: if a base is not there, or is not the one that was recorded.
    """
    found = {}
    for part, base in bases.items():
        for file in _verified(base):
            for key in weight_shapes(file):
                if key.startswith(base.prefix):
                    found[ROOTS[part] + key.removeprefix(base.prefix)] = Stored(part, file, key)
                if part == "decoder" and key == HEAD:
                    found[HEAD] = Stored(part, file, key)
    return found


def _verified(base: PartBase) -> list[Path]:
    files = _files(base.name)
    if not files:
        raise MllmError(f"the base {base.name} has no {WEIGHTS}: {_remedy(base.name)}")
    if (found := _sha256(base.name, files)) != base.sha256:
        raise MllmError(
            f"{base.name}: {files[0].name} has sha256 {found[:12]}…, and the checkpoint was trained on "
            f"{base.sha256[:12]}…: {_remedy(base.name)}"
        )
    return files


def _remedy(name: str) -> str:
    if name in BY_NAME:
        return "take the version of mllm that it was trained with"
    return "put the one back that it was trained on"


def _files(name: str) -> list[Path]:
    """The safetensors files of a base; none if it has other files only."""
    folder = Path(base_folder(name))
    if not folder.is_dir():
        if folder.is_absolute():
            raise MllmError(f"the base {name} is not there: {_remedy(name)}")
        from huggingface_hub import snapshot_download

        with in_one_line(f"the base {name}", "go online once, or put it into the hub's cache"):
            folder = Path(snapshot_download(name, allow_patterns=["model*.safetensors", INDEX]))
    if (folder / INDEX).is_file():
        return [folder / shard for shard in shards(folder)]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def _sha256(name: str, files: Iterable[Path]) -> str:
    if name in BY_NAME:
        return BY_NAME[name].sha256  # `base_folder` compares the file with it
    return _sha256_of(tuple((file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files))


@cache  # a base is read once by a process, unless it changes
def _sha256_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# --- weights ------------------------------------------------------------------------------------------------


class BaseWeights:
    """The weights of a model's bases under our names, read one at a time.

    Raises:
        MllmError: see `stored_in`.
    """

    def __init__(self, bases: Mapping[str, PartBase], config: MllmConfig):
        self._stored = stored_in(bases)
        self._config = config
        self._opened: dict[Path, Any] = {}
        self._bases = bases

    def part(self, name: str) -> str:
        """The part of the model whose base holds this weight."""
        return self._stored[name].part

    def read(self, name: str, wanted: tuple[int, ...]) -> torch.Tensor | None:
        """A weight in the base's dtype, adapted to our model's shape; None if no base holds it.

        A table may have fewer rows than `wanted`, since new tokens are in no base.
        """
        from mllm.models.towers import find_tower

        if name not in self._stored:
            return None
        part, path, key = self._stored[name]
        if path not in self._opened:
            self._opened[path] = open_tensors(path)
        value = self._opened[path].get_tensor(key)
        if part in SIDES and tuple(value.shape) != wanted:
            tower = find_tower(self._config.sides[part].tower.model_type)
            value = tower.fit(key.removeprefix(self._bases[part].prefix), value.float(), wanted)
        fits = value.dim() == len(wanted) and tuple(value.shape[1:]) == wanted[1:]
        return value if fits and (not wanted or len(value) <= wanted[0]) else None


def open_tensors(path: Path) -> Any:
    """safetensors' reader of one file, which gives torch's tensors; nothing is read yet."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def own_weights(
    bases: Mapping[str, PartBase], config: MllmConfig, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, PartBase]]:
    """Those of a model's weights, or rows of them, that no base holds, and the bases that hold the others.

    Two weights are equal if they are so bit by bit in the model's dtype.

    Args:
        state: the model's weights.

    Returns:
        The content of deltas.safetensors; and `bases` without those of which nothing is left.
    """
    held = BaseWeights(bases, config)
    own: dict[str, torch.Tensor] = {}
    used = set()
    for name, value in state.items():
        base = held.read(name, tuple(value.shape))
        rows = None if base is None else _changed_rows(value, base)
        if rows is None:
            own[name] = value.contiguous()
            continue
        used.add(held.part(name))
        if len(rows):
            own[name + ROWS] = rows
            own[name + VALUES] = value[rows].contiguous()
    return own, {part: base for part, base in bases.items() if part in used}


def _changed_rows(value: torch.Tensor, base: torch.Tensor) -> torch.Tensor | None:
    """Rows in which a weight differs from its base's; None if there are so many that all are kept."""
    import torch

    known = len(base) if base.dim() else 1
    here, there = (
        _bytes(tensor, known) for tensor in (value[:known] if value.dim() else value, base.to(value))
    )
    changed = torch.ones(len(value) if value.dim() else 1, dtype=torch.bool)
    changed[:known] = (here != there).any(1)
    rows = changed.nonzero().flatten()
    return rows if 2 * len(rows) <= len(changed) and (value.dim() > 1 or not len(rows)) else None


def _bytes(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    import torch

    return tensor.detach().cpu().contiguous().reshape(rows, -1).view(torch.uint8)


def join(
    folder: Path, bases: Mapping[str, PartBase], config: MllmConfig, wanted: Shapes
) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of bases and deltas, each in the dtype in which it is stored.

    Tensors are mapped from their files, not read into memory, unless rows of them are the checkpoint's own.

    Args:
        wanted: shapes of the model that config.json describes. A weight of it that is found nowhere, or not
            in its shape, is left out; one that is of no part of it is returned too.

    Raises:
        MllmError: if a base is missing or changed, or the deltas are damaged.
    """
    weight_shapes(folder / DELTAS)  # raises for a damaged file
    own, held = open_tensors(folder / DELTAS), BaseWeights(bases, config)
    names = set(own.keys())
    joined = {name: own.get_tensor(name) for name in sorted(names) if not name.endswith((ROWS, VALUES))}
    for name, shape in wanted.items():
        if name in joined or (value := held.read(name, shape)) is None:
            continue
        if name + ROWS in names:
            value = _with_rows(value, own.get_tensor(name + ROWS), own.get_tensor(name + VALUES), shape)
        if tuple(value.shape) == shape:
            joined[name] = value
    return joined


def _with_rows(
    base: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    import torch

    whole = torch.zeros(shape, dtype=torch.promote_types(base.dtype, values.dtype))
    whole[: len(base)] = base
    whole[rows] = values.to(whole.dtype)
    return whole
