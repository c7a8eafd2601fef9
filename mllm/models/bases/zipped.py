"""A transformers folder in a zip: the model's own files as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

KEPT = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def convert(files: Sequence[Path], folder: Path) -> None:
    """Writes weights, config and tokenizer from one zip."""
    (file,) = files
    with ZipFile(file) as archive:
        for name in KEPT:
            archive.extract(name, folder)
