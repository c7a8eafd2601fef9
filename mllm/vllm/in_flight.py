"""Keeps a small file for each recording being read, so that a crash can be traced to what caused it.

`mllm serve` sets the folder in MLLM_IN_FLIGHT; without it nothing is written.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

FOLDER = "MLLM_IN_FLIGHT"  # environment variable

_numbers = itertools.count()


@contextlib.contextmanager
def in_flight(what: str) -> Iterator[None]:
    """Keeps a file with `what`, one line, in the folder while the block runs."""
    folder = os.environ.get(FOLDER)
    if not folder:
        yield
        return
    file = Path(folder) / f"{os.getpid()}-{next(_numbers)}"
    # A failure to write it (missing folder, full disk) must not fail the request.
    with contextlib.suppress(OSError):
        file.write_text(what, encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def left_behind(folder: str | Path) -> list[str]:
    """What was being read when the writing processes ended; empties the folder."""
    lines = []
    for file in sorted(Path(folder).iterdir()):
        with contextlib.suppress(OSError):
            lines.append(file.read_text(encoding="utf-8", errors="replace"))
            file.unlink(missing_ok=True)
    return lines
