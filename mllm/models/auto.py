"""Makes `AutoConfig`, `AutoProcessor`, `AutoModel` and `AutoModelForCausalLM` know our checkpoints.

`import mllm` calls `add_to_transformers`, which must cost nothing, so it imports neither transformers nor our
model; importing our model in the middle of transformers' own import would be circular. Only names are
registered, as for transformers' own models: the classes are imported when a checkpoint needs them, and then
register themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPE = "mllm"
HOME = f"transformers.models.{MODEL_TYPE}"  # where transformers looks for the classes of a model type
CLASSES = {"MllmConfig": "mllm.models.config", "MllmProcessor": "mllm.models.processor"}
TABLES = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING_NAMES", "MllmConfig"),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING_NAMES", "MllmProcessor"),
}


class _Home(ModuleType):
    """The module in which transformers looks for our classes."""

    def __getattr__(self, name: str) -> Any:
        if name not in CLASSES:
            raise AttributeError(name)
        importlib.import_module("mllm.models.model")  # registers the model classes
        return getattr(importlib.import_module(CLASSES[name]), name)


class _AfterImport:
    """A finder that adds our names to a table as soon as its module has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in TABLES:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def add_to_transformers() -> None:
    """Registers our names now, or when transformers is imported."""
    sys.meta_path.insert(0, _AfterImport())  # type: ignore[arg-type]
    for name in TABLES.keys() & sys.modules.keys():
        _register(sys.modules[name])


def _register(module: ModuleType) -> None:
    sys.modules.setdefault(HOME, _Home(HOME))
    table, name = TABLES[module.__name__]
    getattr(module, table)[MODEL_TYPE] = name
