"""Reads YAML with numbers like `1e-3`, without repeated keys, and with each key's line for errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mllm.errors import ConfigError
from mllm.files import open_ordinary


class _Loader(yaml.SafeLoader):
    """YAML with `1e-3` as a number (PyYAML takes it for text) and repeated keys refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"repeated key {key.value!r}", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path, lines: dict[tuple, int] | None = None) -> Any:
    """The value of a YAML file; `lines` as in `parse_yaml`.

    Raises:
        ConfigError: if it is not an ordinary file, not readable, not UTF-8 or not YAML, or repeats a key.
    """
    try:
        with open_ordinary(path, error=ConfigError) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text: give a YAML file") from None
    return parse_yaml(text, str(path), lines)


def parse_yaml(text: str, where: str, lines: dict[tuple, int] | None = None) -> Any:
    """The value of YAML text; fills `lines` with the line (from 1) of each key path.

    Args:
        where: the text's name in errors.

    Raises:
        ConfigError: if it is not YAML, or repeats a key.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if lines is not None:
            _note_lines(node, (), lines)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None and lines is not None else where
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def _note_lines(node: Any, path: tuple, lines: dict[tuple, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[(*path, key.value)] = key.start_mark.line + 1
                _note_lines(value, (*path, key.value), lines)
