"""Checks that torch.compile can work here, before training starts."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from mllm.errors import ConfigError


def require_compiler(stage: str) -> None:
    """Checks the requirements of torch.compile on a CPU, before it fails in the first step.

    Raises:
        ConfigError: naming what is missing.
    """
    if torch.cuda.is_available():
        return
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = "" if any(map(shutil.which, compilers)) else "a C++ compiler"
    if not missing and not header.is_file():
        missing = f"Python's headers ({header})"
    if missing:
        raise ConfigError(
            f"{stage}.compile needs {missing}: install it (on Debian: g++ and python3-dev), or give "
            f"{stage}.compile=false"
        )
