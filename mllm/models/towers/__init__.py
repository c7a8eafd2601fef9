"""Towers: pretrained or random encoders behind one contract (`base`), one file each.

Another package adds one with a class and an entry point named after its config's `model_type`:

    [project.entry-points."mllm.towers"]
    vivit = "vivid:VivitTower"
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from transformers import PreTrainedConfig

from mllm.errors import ConfigError
from mllm.models.towers.base import FrameTower, SoundTower, TextTower, Tower, WindowSize

__all__ = [
    "FrameTower",
    "SoundTower",
    "TextTower",
    "Tower",
    "WindowSize",
    "config_from",
    "find_tower",
    "known_towers",
]

GROUP = "mllm.towers"  # entry points of other packages
TOWERS = {
    "bert": "mllm.models.towers.bert:BertTower",
    "efficientnet_lite": "mllm.models.towers.efficientnet:EfficientNetLiteTower",
    "hubert": "mllm.models.towers.hubert:HubertTower",
    "timesformer": "mllm.models.towers.timesformer:TimesformerTower",
    "videomae": "mllm.models.towers.videomae:VideoMAETower",
    "whisper": "mllm.models.towers.whisper:WhisperTower",
    "xlm-roberta": "mllm.models.towers.bert:XlmRobertaTower",
}


@cache
def known_towers() -> dict[str, str]:
    """The class of each tower as `module:class`, by its config's `model_type`."""
    return TOWERS | {entry.name: entry.value for entry in entry_points(group=GROUP)}


@cache
def find_tower(kind: str, base: type = Tower) -> Any:
    """The class of a tower, a subclass of `base`.

    Raises:
        ConfigError: if no tower has that `model_type`, it cannot be imported, or it is no subclass of `base`.
    """
    known = known_towers()
    if kind not in known:
        near = get_close_matches(kind, known, 1)
        meant = f"did you mean {near[0]}? There are" if near else "choose from"
        raise ConfigError(f"no tower for '{kind}': {meant} {', '.join(sorted(known))}")
    module, _, name = known[kind].partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the tower '{kind}' ({known[kind]}) cannot be imported ({error}): mend the package that names it"
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"the tower '{kind}' is no {base.__name__}: it is for another side of the model")
    return found


def config_from(values: Mapping[str, Any], base: type = Tower) -> PreTrainedConfig:
    """The config of a tower from plain values; `model_type` names the tower.

    Raises:
        ConfigError: see `find_tower`.
    """
    fields = dict(values)
    tower = find_tower(fields.pop("model_type"), base)
    return tower.config_class(**dict(getattr(tower, "own_fields", {})) | fields)
