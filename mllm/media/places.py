"""Where records say that their recordings lie: paths relative to the record file, made absolute and back."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mllm.errors import RecordError


def existing(media: Any, folder: Path, where: str, must_exist: bool) -> Any:
    """A media source with its path absolute; anything that is not a path passes.

    Args:
        folder: what relative paths are relative to.
        where: how errors begin, such as "train.jsonl row 12".

    Raises:
        RecordError: it is no path, or (`must_exist`) nothing lies there.
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
        return "data:" + name.lstrip()[5:]  # however it was written: readers know it by these letters
    elif "://" in name:
        return media
    path = folder.absolute() / name
    if max(map(len, path.parts)) > 255 or len(name) > 4096 or "\0" in name:
        raise RecordError(f"{where}: {name[:40]!r}… is no path: give a file, or data as a data: URI")
    if must_exist and not os.path.exists(path):  # Path.exists raises where a folder is closed
        raise RecordError(
            f"{where}: there is no {name!r} in {folder}: paths are relative to the record file; "
            "`mllm data check --fix` writes a file without such rows"
        )
    return str(_parent_resolved(path) if ".." in path.parts else path)


def portable(media: Any, folder: Path, where: str) -> str:
    """A media source as a file in `folder` names it: relative, unless they share only the root of the disk.

    Raises:
        RecordError: it lies in memory alone.
    """
    if not isinstance(media, (str, os.PathLike)):
        raise RecordError(f"{where}: media in memory cannot be written: save the clip and give its path")
    name = os.fspath(media)
    path, folder = Path(name), folder.absolute()
    if "://" in name or is_data_uri(name):
        return name
    if path.is_relative_to(folder):  # perhaps through a link, which stays
        return path.relative_to(folder).as_posix()
    folder = folder.resolve()  # out of a link, .. would lead elsewhere
    together = os.path.commonpath([path, folder])
    return path.as_posix() if together == path.anchor else Path(os.path.relpath(path, folder)).as_posix()


def _parent_resolved(path: Path) -> Path:
    """The path without `..` and links to folders; a link to a file keeps its name."""
    return _resolved(path.parent) / path.name


@lru_cache(maxsize=4096)  # recordings share their folders
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def is_data_uri(text: str) -> bool:
    """Whether the text is a data: URI; blanks before it don't count."""
    return text[:80].lstrip()[:5].lower() == "data:"


def media_name(source: str) -> str:
    """A recording in reports and keys: its path; a data: URI, which is too long, by a digest."""
    if not is_data_uri(source):
        return source
    source = "data:" + source.lstrip()[5:]
    kind = source[5:45].partition(",")[0].partition(";")[0]
    return f"data:{kind};sha256={hashlib.sha256(source.encode()).hexdigest()[:16]}"
