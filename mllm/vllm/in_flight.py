"""What is being read right now, kept in small files, so that it is known of a process that crashed meanwhile.

`mllm serve` names a folder in MLLM_IN_FLIGHT; without it nothing is written.
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
    """`what`, one line, stands in the folder for as long as the block runs."""
    folder = os.environ.get(FOLDER)
    if not folder:
        yield
        return
    file = Path(folder) / f"{os.getpid()}-{next(_numbers)}"
    # A diary that cannot be kept (its folder is gone, the disk is full) must not cost the request.
    with contextlib.suppress(OSError):
        file.write_text(what, encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def left_behind(folder: str | Path) -> list[str]:
    """What was being read when the processes that wrote there ended; the folder is empty afterwards."""
    lines = []
    for file in sorted(Path(folder).iterdir()):
        with contextlib.suppress(OSError):
            lines.append(file.read_text(encoding="utf-8", errors="replace"))
            file.unlink(missing_ok=True)
    return lines
