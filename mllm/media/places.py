"""Media paths in records: relative to the record file, made absolute and back."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mllm.errors import RecordError


def existing(media: Any, folder: Path, where: str, must_exist: bool) -> Any:
    """Makes the path of a media source absolute; returns other sources unchanged.

    Args:
        folder: base of relative paths.
        where: prefix of errors, such as "train.jsonl row 12".

    Raises:
        RecordError: if it is not a valid path, or (`must_exist`) does not exist.
    """
    if not isinstance(media, (str, os.PathLike)):
        return media
    name = os.fspath(media)
    if name.startswith("file://"):
        try:
            name = unquote(urlparse(name).path)
        except ValueError as error:
            raise RecordError(
                f"{where}: {name[:40]!r} is no file:// address ({error}): give a path"
            ) from None
    elif is_data_uri(name):
        return "data:" + name.lstrip()[5:]  # normalised: readers look for this prefix
    elif "://" in name:
        return media
    path = folder.absolute() / name
    if max(map(len, path.parts)) > 255 or len(name) > 4096 or "\0" in name:
        raise RecordError(f"{where}: {name[:40]!r}… is no path: give a file, or data as a data: URI")
    if must_exist and not os.path.exists(path):  # Path.exists raises for a folder without permission
        raise RecordError(
            f"{where}: there is no {name!r} in {folder}: paths are relative to the record file; "
            "`mllm data check --fix` writes a file without such rows"
        )
    return str(_parent_resolved(path) if ".." in path.parts else path)


def portable(media: Any, folder: Path, where: str) -> str:
    """A media source relative to `folder`; absolute if they share only the root of the file system.

    Raises:
        RecordError: if it exists only in memory.
    """
    if not isinstance(media, (str, os.PathLike)):
        raise RecordError(f"{where}: media in memory cannot be written: save the clip and give its path")
    name = os.fspath(media)
    path, folder = Path(name), folder.absolute()
    if "://" in name or is_data_uri(name):
        return name
    if path.is_relative_to(folder):  # possibly through a link, which is kept
        return path.relative_to(folder).as_posix()
    folder = folder.resolve()  # .. of a link leads elsewhere
    together = os.path.commonpath([path, folder])
    return path.as_posix() if together == path.anchor else Path(os.path.relpath(path, folder)).as_posix()


def _parent_resolved(path: Path) -> Path:
    """The path without `..` and links to folders; a link to a file keeps its name."""
    return _resolved(path.parent) / path.name


@lru_cache(maxsize=4096)  # recordings share their folders
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def is_data_uri(text: str) -> bool:
    """Whether the text is a data: URI, ignoring leading white space."""
    return text[:80].lstrip()[:5].lower() == "data:"


def media_name(source: str) -> str:
    """The name of a recording in reports and keys: its path, or a digest of a data: URI."""
    if not is_data_uri(source):
        return source
    source = "data:" + source.lstrip()[5:]
    kind = source[5:45].partition(",")[0].partition(";")[0]
    return f"data:{kind};sha256={hashlib.sha256(source.encode()).hexdigest()[:16]}"
