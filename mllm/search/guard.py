"""One writer at a time, and errors of the store in one line. Private to `index`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mllm.errors import ConfigError, MllmError
from mllm.files import one_at_a_time

TABLE = "windows"
_LOCK = "writer.lock"


def table_path(folder: str | Path) -> Path:
    """Where the table of the index in `folder` lies."""
    return Path(folder) / f"{TABLE}.lance"


def require_writable(folder: Path) -> None:
    """Raises ConfigError if the index in `folder` cannot be written."""
    written = table_path(folder) if os.path.isdir(table_path(folder)) else folder
    if not os.access(written, os.W_OK):
        read_only = os.statvfs(written).f_flag & os.ST_RDONLY
        raise ConfigError(unwritable(folder, errno.EROFS if read_only else errno.EACCES))


@contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """Waits until no other process writes to the index in `folder`.

    Two that insert rows of one id at the same time would both insert them.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    require_writable(folder)
    with ExitStack() as held:
        try:
            waiting = f"waiting until another process has written to index {folder}"
            held.enter_context(one_at_a_time(folder / _LOCK, waiting))
        except OSError as error:
            raise ConfigError(unwritable(folder, error.errno or errno.EACCES)) from error
        yield


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turns whatever LanceDB raises into one line that names the index and the remedy."""
    try:
        yield
    except MllmError:
        raise
    except Exception as error:  # RuntimeError, ValueError, OSError; a panic in Rust has no public type
        said = " ".join(str(error).split()) or type(error).__name__
        found = re.search(r"os error (\d+)", said)
        number = int(found[1]) if found else getattr(error, "errno", None) or 0
        cause = re.sub(r"^lance error: |LanceError\(\w+\): |,? \S+\.rs:\d+:\d+.*$", "", said)[:120]
        if number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = unwritable(folder, number)
        elif number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            problem = f"cannot open index {folder}: {os.strerror(number)}: raise the limit, and try again"
        elif re.search("conflict|concurrent", said, re.IGNORECASE):
            problem = f"index {folder} is written by another process ({cause}): try again when it has ended"
        else:
            problem = damaged(folder, cause)
        raise ConfigError(problem) from error


def unwritable(folder: Path, number: int) -> str:
    """A message that the index cannot be written, because of an error of the operating system."""
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room, and add again" if full else "change its mode or owner, or name another with --index"
    return f"cannot write index {folder}: {os.strerror(number)}: {remedy}"


def damaged(folder: Path, cause: str) -> str:
    """A message that the index cannot be read."""
    rebuild = f"fill it again with mllm index add DIR --index {folder} --rebuild"
    return f"index {folder} cannot be read ({cause}): it is damaged, or another version wrote it: {rebuild}"
