"""Locating the source of a recording, and the limits on what may be opened."""

from __future__ import annotations

import base64
import binascii
import os
import re
import resource
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, unquote_to_bytes

import av
from PIL import Image

from mllm.errors import ConfigError, MediaError
from mllm.files import open_ordinary, printable
from mllm.media.places import is_data_uri

# What PyAV and, less tidily, Pillow raise over damaged files.
READING_ERRORS = (
    av.error.FFmpegError,
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Files in a folder count as recordings by suffix; their content decides their actual format.
SUFFIXES = {
    "video": {
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv",
        ".flv", ".3gp", ".ogv", ".gif",
    },
    "audio": {".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aiff"},
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"},
}  # fmt: skip
MEDIA_SUFFIXES = frozenset().union(*SUFFIXES.values())


LARGEST_LIMIT = 1e15  # larger numbers overflow system calls


@dataclass(frozen=True)
class MediaLimits:
    """Upper limits on a recording, each a number above 0, or None for no limit.

    Attributes:
        max_bytes: size of the file.
        max_seconds: length of what is read: the recording, or the cut from start to end.
        max_pixels: size of one picture.
        max_frame_bytes: size of all decoded frames together.
        max_decode_seconds: time after which a worker process that decodes it is killed.
        max_decode_bytes: memory of such a process.

    Raises:
        ConfigError: if a limit is not above 0.
    """

    max_bytes: int | None = 200_000_000
    max_seconds: float | None = 3600.0
    max_pixels: int | None = 64_000_000
    max_frame_bytes: int | None = 2_000_000_000
    max_decode_seconds: float | None = 120.0
    max_decode_bytes: int | None = 4_000_000_000

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not 0 < limit <= LARGEST_LIMIT:
                allowed = "a number above 0, or None for no limit"
                raise ConfigError(f"{name} is {limit!r}: give {allowed}")


OWN_FILES = MediaLimits(max_bytes=None, max_seconds=None, max_decode_seconds=600)  # of any size and length


@dataclass(frozen=True)
class Source:
    """The location of a recording, and its name in messages.

    Bytes become a file in memory: given bytes, decord reads past their end if a damaged index points there,
    and crashes the process.

    Attributes:
        path: a file or a folder.
        file: the open file that keeps a file in memory alive, and its path valid.
    """

    name: str
    path: Path
    file: IO[bytes] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def in_memory(cls, name: str, data: bytes | bytearray | memoryview) -> Source:
        """A source whose bytes exist only in memory."""
        try:
            file = memory_file()
            file.write(data)
            file.flush()
        except OSError as error:
            raise MediaError(
                f"{name}: it cannot be held in memory ({error.strerror}): give a smaller file, or try again"
            ) from None
        return cls.of_file(name, file)

    @classmethod
    def of_file(cls, name: str, file: IO[bytes]) -> Source:
        """A source for an open file."""
        named = os.path.isabs(str(file.name))
        return cls(name, Path(file.name if named else f"/proc/self/fd/{file.fileno()}"), file)

    def handle(self) -> str:
        """The path for PyAV and decord; absolute, because FFmpeg reads `a:b.mp4` as protocol `a`."""
        return str(self.path.absolute())

    def size(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size

    def head(self, size: int = 4096) -> bytes:
        """The first bytes."""
        with open_ordinary(self.handle(), self.name) as file:
            return file.read(size)


def memory_file() -> IO[bytes]:
    """An empty anonymous file; its memory is freed when the last process closes it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mllm"), "wb+")
    return tempfile.NamedTemporaryFile()  # not on Linux


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turns whatever the libraries raise over bad media into a MediaError of one line."""
    try:
        yield
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(
            f"{name}: it does not fit into memory: ask for a smaller size or a shorter cut"
        ) from None
    except READING_ERRORS as error:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        cause = " ".join(cause.split())[:200]
        raise MediaError(
            f"{name}: cannot be read ({cause}): check that it plays, or convert it again"
        ) from None


def locate(source: Any, limits: MediaLimits) -> Source:
    """Checks that a source exists and has an acceptable size, and names it; messages never quote content."""
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and is_data_uri(source):
        data: bytes | bytearray | memoryview = data_uri(source, limits)
        name = "data: URI"
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = source
        name = f"<bytes, {memoryview(data).nbytes} bytes>"
    elif isinstance(source, (str, Path)):
        name = printable(source)
        return Source(name, _existing(Path(source), name, limits))
    else:
        raise MediaError(
            f"cannot read media from {type(source).__name__}: give a path, bytes, a data: URI or a Clip"
        )
    size = memoryview(data).nbytes
    if not size:
        raise MediaError(f"{name}: it is empty: send the whole file")
    check_bytes(name, size, limits)
    return Source.in_memory(name, data)


def _existing(path: Path, name: str, limits: MediaLimits) -> Path:
    if os.path.isdir(path):
        return path
    if "://" in name and not os.path.exists(path):
        raise MediaError(f"{name}: no such file: download it first, then give its path")
    with open_ordinary(path, name) as file:
        size = os.fstat(file.fileno()).st_size
    if not size:
        raise MediaError(f"{name}: it is empty (0 bytes): copy or download it again")
    check_bytes(name, size, limits)
    return path


READ_ALREADY = "a link to a folder that is read already"


def walk_folders(
    root: str | Path, passed_over: Callable[[Path, str], None]
) -> Iterator[tuple[Path, list[str]]]:
    """Yields (folder, names of its files) for a folder and all below it, sorted, without hidden entries.

    Links to folders are followed after everything else. Every folder is yielded once, however many links lead
    to it, so cycles end.

    Args:
        passed_over: called with each path that is skipped, and the reason.
    """
    seen: set[str] = set()
    above = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    waiting = [os.fspath(root)]
    while waiting:
        for folder, folders, files in os.walk(waiting.pop(0), onerror=_tell_unreadable(passed_over)):
            real = os.path.realpath(folder)
            if real in above or real in seen:
                why = READ_ALREADY if real in seen else "a link to a folder above the one that is read"
                passed_over(Path(folder), why)
                folders.clear()
                continue
            seen.add(real)
            shown = sorted(name for name in folders if not name.startswith("."))
            links = [name for name in shown if os.path.islink(os.path.join(folder, name))]
            waiting += [os.path.join(folder, name) for name in links]
            folders[:] = [name for name in shown if name not in links]
            names = sorted(name for name in files if not name.startswith("."))
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.splitext(name)[1] and os.path.islink(path) and not os.path.exists(path):
                    passed_over(Path(path), "a link to what is not there")  # without suffix: a folder's
            yield Path(folder), names


def _tell_unreadable(passed_over: Callable[[Path, str], None]) -> Callable[[OSError], None]:
    return lambda error: passed_over(Path(error.filename), error.strerror or "it cannot be read")


def data_uri(text: str, limits: MediaLimits) -> bytes:
    """The content of a data: URI. Accepts line breaks, the URL-safe alphabet and missing padding.

    Raises:
        MediaError: if it is malformed or too large; the message does not quote it.
    """
    header, comma, body = text.lstrip()[5:].partition(",")
    if not comma:
        raise MediaError("data: URI: no comma in it: write data:video/mp4;base64,…")
    if not header.lower().rstrip().endswith(";base64"):
        check_bytes("data: URI", len(body) - 2 * body.count("%"), limits)
        try:
            return unquote_to_bytes(body)
        except UnicodeEncodeError:  # a lone surrogate
            raise MediaError("data: URI: it is no text in UTF-8: encode the whole file as base64") from None
    body = "".join(unquote(body).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    check_bytes("data: URI", len(body) * 3 // 4, limits)
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        problem = str(error).lower()
        raise MediaError(f"data: URI: not valid base64 ({problem}): encode the whole file again") from None


def check_bytes(name: str, size: int, limits: MediaLimits) -> None:
    if limits.max_bytes is not None and size > limits.max_bytes:
        allowed = f"more than the limit of {limits.max_bytes / 1e6:g} MB"
        raise MediaError(f"{name}: {size / 1e6:.1f} MB is {allowed}: shorten it or reduce its quality")


def check_pixels(name: str, width: int, height: int, limit: int | None) -> None:
    """Raises MediaError for a picture that is too large to be decoded."""
    if limit is not None and width * height > limit:
        allowed = f"the limit of {limit / 1e6:g} million"
        raise MediaError(f"{name}: {width}×{height} pixels is more than {allowed}: scale it down")


def check_frame_bytes(name: str, count: int, width: int, height: int, limit: int | None) -> None:
    """Raises MediaError for frames that would take too much memory."""
    needed = count * width * height * 3
    if limit is not None and needed > limit:
        size = f"{needed / 1e9:.1f} GB, more than the limit of {limit / 1e9:g} GB"
        remedy = "ask for a smaller size, fewer frames or a shorter cut"
        raise MediaError(f"{name}: {count} frames of {width}×{height} take {size}: {remedy}")


def frame_order(path: Path) -> list[Any]:
    """Sort key of the files in a folder of frames: numbers in names sort by value."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def bound_memory(most_bytes: float | None) -> None:
    """Limits the memory of this process; allocations beyond it fail."""
    bound = resource.RLIM_INFINITY if most_bytes is None else int(most_bytes)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, bound),  # heap and writable mappings
        (resource.RLIMIT_FSIZE, bound),  # the shared memory of results
    ):
        hard = resource.getrlimit(what)[1]
        within = (
            most
            if hard == resource.RLIM_INFINITY
            else hard
            if most == resource.RLIM_INFINITY
            else min(most, hard)
        )
        resource.setrlimit(what, (within, hard))
