"""Checks the adapters that vLLM's flags or its config file name, before it starts.

vLLM silently loads an adapter whose weights match no module, and answers like the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import Shapes, check_folder, in_one_line
from mllm.models.lora import Adapter, check_served
from mllm.yaml_text import read_yaml

MODULES, BY_MODALITY, CONFIG = "--lora-modules", "--default-mm-loras", "--config"


def check_served_folders(base: str, adapter: Path | None, flags: Sequence[str]) -> Adapter | None:
    """Checks a checkpoint's files, the adapter beside it and every adapter named by vLLM's flags.

    Returns:
        The adapter beside the base, if there is one.

    Raises:
        MllmError: a file is missing or damaged, or vLLM would ignore an adapter or parts of it.
    """
    from mllm.models.checkpoint import fetch

    named = list(adapters_in(flags))
    shapes: Shapes = {}
    if Path(base).is_dir() or named:
        shapes = check_folder(fetch(base))
    for flag, name in named:
        with in_one_line(f"{flag}: {name}"):
            check_served(fetch(name), shapes, base)
    return check_served(adapter, shapes, base) if adapter is not None else None


def adapters_in(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (flag, folder or hub id) of each adapter named by vLLM's flags or in the file of --config.

    Raises:
        MllmError: the file of --config cannot be read, or names another model.
    """
    for flag, value in _values(flags):
        if flag == MODULES:
            yield from _modules(value)
        elif flag == BY_MODALITY:
            yield from ((flag, str(path)) for path in _json(flag, value).values())
        elif flag.startswith(f"{BY_MODALITY}."):
            yield flag, value
        elif flag == CONFIG:
            yield from _in_file(Path(value))


def _values(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (flag, value); a flag may have several values."""
    flag = ""
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            if equals:
                yield flag, value
        else:
            yield flag, word


def _modules(value: Any) -> Iterator[tuple[str, str]]:
    """Reads NAME=PATH, or JSON with "path"."""
    if isinstance(value, str):
        if "=" in value and "," not in value:
            yield MODULES, value.partition("=")[2]
            return
        value = _json(MODULES, value)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise MllmError(f"{MODULES} is {value!r}: give NAME=FOLDER")
    yield MODULES, value["path"]


def _json(flag: str, value: Any) -> dict[str, Any]:
    try:
        values = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise MllmError(f"{flag} is {value!r}: give NAME=FOLDER, or a JSON object")
    return values


def _in_file(path: Path) -> Iterator[tuple[str, str]]:
    values = read_yaml(path)
    for name, value in (values if isinstance(values, dict) else {}).items():
        flag = f"--{str(name).replace('_', '-')}"
        if flag in ("--model", "--model-tag"):
            raise MllmError(f"{path} names the model {value}: name it to mllm, `mllm serve {value} …`")
        if flag == MODULES:
            for module in value if isinstance(value, list) else [value]:
                yield from _modules(module)
        elif flag == BY_MODALITY:
            yield from ((flag, str(folder)) for folder in _json(flag, value).values())
