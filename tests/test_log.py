"""mllm.log: quiet unless MLLM_LOG asks, and then on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm import log
from mllm.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import logging
from mllm.log import set_up
set_up(); set_up()
logging.getLogger("mllm.media.fetch").warning("a host is slow")
logging.getLogger("mllm.media.fetch").info("attempt 1 of 3")
"""


@pytest.mark.parametrize(("level", "lines"), [("", 0), ("error", 0), ("warning", 1), ("INFO", 2)])
def test_what_is_written(level: str, lines: int) -> None:
    environment = os.environ | {"MLLM_LOG": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, len(done.stderr.splitlines())) == ("", lines)
    assert not lines or " WARNING mllm.media.fetch: a host is slow\n" in done.stderr


def test_an_unknown_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_LOG", "loud")
    with pytest.raises(ConfigError, match="MLLM_LOG is 'loud': choose debug, info, warning, error"):
        log.set_up()
