"""A tower as an experiment specifies it: a base, a hub id, a folder, `{type: …}`, or `{from: …, …}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from mllm.errors import ConfigError
from mllm.models.bases import base_folder
from mllm.models.checkpoint_check import in_one_line, read_json
from mllm.models.towers import TextTower, Tower, WindowSize, config_from, find_tower

Part = str | Mapping[str, Any]

WRONG_PART = "give a base, a folder that transformers loads, or a hub id while online"
PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")  # of a hub id or a folder


def base_of(part: Part | None) -> str | None:
    """The base, hub id or folder of a tower's weights; None if they are initialised at random."""
    return part if isinstance(part, str) or part is None else part.get("from")


def tower_config(part: Part, name: str, window: WindowSize, **decided: Any) -> PreTrainedConfig:
    """The config of a tower: that of its base or its type, updated with the experiment's fields.

    Args:
        name: `video`, `audio` or `text`, for errors.
        decided: fields fixed by the rest of the model, in addition to `Tower.decided_fields`.

    Raises:
        ConfigError: for an unknown type or field, or a base that cannot be read.
    """
    kind = TextTower if name == "text" else Tower
    apart = ("from", "type", *(("prefix",) if name == "text" else ()))
    fields = {} if isinstance(part, str) else {key: part[key] for key in part if key not in apart}
    base = base_of(part)
    if base is None:
        assert not isinstance(part, str)
        values: dict[str, Any] = {"model_type": part["type"]}
    else:
        with in_one_line(f"model.{name}: {base}", WRONG_PART):
            values, _ = PreTrainedConfig.get_config_dict(base_folder(base))
    try:
        tower = find_tower(str(values.get("model_type")), kind)
    except ConfigError as error:
        raise ConfigError(f"model.{name}: {error}") from None
    own: Mapping[str, Any] = {}
    if issubclass(tower, Tower):
        own, decided = tower.own_fields, decided | tower.decided_fields(window)
    if base is not None:
        values = values | preprocessing(base, own)
    known = {*tower.config_class().to_dict(), *own}
    check_fields(fields, known, decided, name, tower.config_class.__name__)
    try:
        return config_from(values | fields | decided, kind)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.{name}: {error}") from None


def preprocessing(base: str, wanted: Iterable[str]) -> dict[str, Any]:
    """Those of the `wanted` fields that are in the base's preprocessor files."""
    found: dict[str, Any] = {}
    for file in PREPROCESSORS if wanted else ():
        path = cached_file(base_folder(base), file, _raise_exceptions_for_missing_entries=False)
        values = {} if path is None else read_json(Path(path))
        found = {key: values[key] for key in wanted if values.get(key) is not None} | found
    return found


def check_fields(
    fields: Mapping[str, Any], known: set[str], decided: Mapping[str, Any], part: str, config_name: str
) -> None:
    """Raises ConfigError for a field that the config does not have, or that the rest of the model fixes."""
    for name, value in fields.items():
        if value != decided.get(name, value):
            raise ConfigError(
                f"model.{part}.{name} is {value}, but the rest of the model needs {decided[name]}: drop it"
            )
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]}?" if near else f": see the fields of {config_name}"
            raise ConfigError(f"model.{part} has no field '{name}'{hint}")
