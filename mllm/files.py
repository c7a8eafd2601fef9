"""Opening files without ever blocking, and writing them whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import io
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from mllm.errors import MediaError, MllmError

HOST = socket.gethostname()
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def cache_folder() -> Path:
    """The folder for what can be made again: MLLM_CACHE, or `mllm` in the user's cache folder (XDG)."""
    if own := os.environ.get("MLLM_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "mllm"


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_the_way(module: str) -> str | None:
    """A remedy if a user's file or folder shadows one of our packages; else None.

    Args:
        module: one of our modules, such as "train.sections".
    """
    package = module.partition(".")[0]
    ours = Path(__file__).parents[1]
    spec = find_spec(package)
    found = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    if not found or not (ours / package).is_dir() or Path(found).is_relative_to(ours):
        return None
    return f"{found} is in the way of mllm's own package {package!r}: rename it, or start Python with -P"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, renamed to `path` at the end, so that readers never see half a file.

    Raises:
        MllmError: if the disk is full, or the folder cannot be written.
    """
    # Two processes, possibly on two hosts, may write the same path.
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
    """Removes temporary files of killed processes on this host."""
    for partial in path.parent.glob(f"{glob.escape(f'{path.name}.{HOST}')}.*.part"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and not _runs(int(process)):
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's process
    return True


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def alone_in(folder: Path, work: str) -> Iterator[None]:
    """Locks a folder, creating it if needed, for one process at a time; the lock ends with the process.

    Raises:
        MllmError: if another process holds the lock, or the folder cannot be created.
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
        except OSError as error:  # some network file systems have no locks
            raise MllmError(
                f"{folder}: cannot be locked ({error.strerror}): give a folder elsewhere"
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def one_at_a_time(lock: Path, waiting: str) -> Iterator[None]:
    """Waits until no other process holds the lock, a file that stays; the lock ends with the process.

    Args:
        waiting: a line to print if it has to wait.

    Raises:
        OSError: if the file cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def printable(path: str | Path) -> str:
    """A path for messages: one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in str(path)[:300])


def open_ordinary(
    path: str | Path, name: str = "", follow_links: bool = True, error: type[MllmError] = MediaError
) -> io.BufferedReader:
    """Opens an ordinary file for reading, without ever blocking: rejects FIFOs, devices and sockets.

    Every file that a user names is opened through this.

    Args:
        name: the file's name in messages; by default its path.
        follow_links: False rejects a path whose last part is a symbolic link.
        error: the class of error to raise.

    Raises:
        MllmError: of class `error`, if the file does not exist, is not readable, or is not an ordinary file.
    """
    name = name or printable(path)
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for a writer, for ever.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        # Looked at before it is opened, since opening a device or a FIFO can already do something …
        odd = _not_a_file(os.stat(path, follow_symlinks=follow_links).st_mode)
        handle = None if odd else os.open(path, flags)
    except FileNotFoundError:
        if os.path.islink(path):
            raise error(f"{name}: a link to what is not there: check where it leads") from None
        raise error(f"{name}: no such file: check the path") from None
    except PermissionError:
        raise error(f"{name}: no permission to read it: change its mode or owner") from None
    except ValueError:  # a NUL in it
        raise error(f"{name}: no such file: check the path") from None
    except OSError as problem:
        raise error(f"{name}: cannot be read ({problem.strerror}): check the path") from None
    if handle is not None:
        # … and again once it is open: nobody can put another file in its place now.
        odd = _not_a_file(os.fstat(handle).st_mode)
        if not odd:
            return open(handle, "rb")  # closed with what is returned
        os.close(handle)
    raise error(f"{name}: not an ordinary file but {odd}: give a file")


def _not_a_file(mode: int) -> str:
    """The kind of file that a mode describes; empty for an ordinary file."""
    if stat.S_ISREG(mode):
        return ""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
