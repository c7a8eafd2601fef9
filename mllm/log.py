"""The library's messages go through `logging`, under "mllm", and are off by default.

    MLLM_LOG=info mllm serve

A program that uses the library configures `logging` itself; only our commands and servers call `set_up`.
"""

from __future__ import annotations

import logging
import os

from mllm.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up() -> None:
    """Logs to stderr at the level in MLLM_LOG; does nothing if it is not set.

    Raises:
        ConfigError: if MLLM_LOG is not a level.
    """
    level = os.environ.get("MLLM_LOG", "").lower()
    if not level:
        return
    if level not in LEVELS:
        raise ConfigError(f"MLLM_LOG is {level!r}: choose {', '.join(LEVELS)}")
    logger = logging.getLogger("mllm")
    logger.setLevel(level.upper())
    if not any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
