"""Maps the names of our weights to vLLM's, and refuses an adapter that fits no module."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vllm.model_executor.models.utils import WeightsMapper


@dataclass
class NameMapper(WeightsMapper):
    """Maps our names to vLLM's; a weight of an adapter that fits none of `modules` is an error.

    vLLM compares only the last part of such a name, and if the rest fits nothing, the base answers. Adapters
    pass here however they are loaded: by flags, by /v1/load_lora_adapter, by a resolver.
    """

    modules: frozenset[str] = frozenset()  # all modules of the decoder, with N for a layer's number
    adapter: bool = False

    def get_rename_mapper(self) -> WeightsMapper:
        """The mapper that vLLM uses for adapters."""
        return replace(super().get_rename_mapper(), adapter=bool(self.modules))

    def map_name(self, key: str) -> str | None:
        mapped = super().map_name(key)
        module = numberless((mapped or "").partition(".lora_")[0])
        if self.adapter and module not in self.modules:
            raise ValueError(f"{key} of the adapter fits no module here: it was trained on another model")
        return mapped


def numberless(name: str) -> str:
    """The name of a module with N for a layer's number."""
    return re.sub(r"\.\d+\.", ".N.", name)
