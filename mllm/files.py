"""Files that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mllm.errors import MllmError

HOST = socket.gethostname()
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed over it at the end: a reader never sees half a file.

    Raises:
        MllmError: the disk is full, or the folder cannot be written.
    """
    # Two processes may write one path, on two hosts perhaps.
    partial = path.with_name(f"{path.name}.{HOST}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
    except OSError as error:
        raise MllmError(f"{path.parent}: cannot be made ({error.strerror}): write elsewhere") from None
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        another = error.filename is not None and os.fspath(error.filename) not in map(str, (path, partial))
        if another or error.errno not in UNWRITABLE:
            raise
        raise MllmError(
            f"{path}: cannot be written ({error.strerror}): make room, or write elsewhere"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """What processes of this host that were killed left half-written."""
    for partial in path.parent.glob(f"{glob.escape(f'{path.name}.{HOST}')}.*.part"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and not _runs(int(process)):
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # somebody else's
    return True


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def alone_in(folder: Path, work: str) -> Iterator[None]:
    """Lets one process at a time work in a folder, made if it is not there; a killed one leaves no trace.

    Raises:
        MllmError: another process works there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MllmError(f"{folder}: cannot be written ({error.strerror}): give another folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MllmError(f"{folder}: `{work}` works there already: wait, or give another --out") from None
        except OSError as error:  # some network disks know no locks
            raise MllmError(
                f"{folder}: cannot be locked ({error.strerror}): give a folder elsewhere"
            ) from None
        yield
    finally:
        os.close(handle)
