"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mllm.errors import MllmError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed over it at the end: a reader never sees half a file.

    Raises:
        MllmError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MllmError(f"{path.parent}: cannot be made ({error.strerror}): write elsewhere") from None
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise MllmError(
            f"{path}: cannot be written ({error.strerror}): make room, or write elsewhere"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
