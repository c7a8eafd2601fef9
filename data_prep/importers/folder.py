"""Recordings found by name in a folder, as annotation files name them: with or without a suffix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from unicodedata import normalize

from mllm.errors import ConfigError, RecordError
from mllm.media.sources import MEDIA_SUFFIXES, READ_ALREADY, SUFFIXES, walk_folders

EXPECTED = {"video": ".mp4", "audio": ".wav", "image": ".jpg"}  # where nothing of that name is found


class MediaFolder:
    """A folder of recordings, searched once, with its subfolders.

    Attributes:
        missing: names that were asked for and not found, in that order.
        elsewhere: names found by their last part alone, in another folder than the one that was named.
        passed_over: folders that could not be read, and why.
    """

    def __init__(self, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise RecordError(f"--media {folder} is not a folder: give the one that holds the recordings")
        self.folder = folder
        self.missing: dict[str, None] = {}
        self.elsewhere: dict[str, None] = {}
        self.passed_over: dict[Path, str] = {}
        self._files: dict[str, list[Path]] | None = None  # by stem
        self._folders: dict[str, list[Path]] = defaultdict(list)  # by name: frames may lie in them

    def files(self, kind: str) -> list[Path]:
        """All recordings of a kind, in the order of their paths."""
        return self.ending(SUFFIXES[kind])

    def ending(self, suffixes: Container[str]) -> list[Path]:
        """All files with one of these suffixes, in the order of their paths."""
        return sorted(p for found in self._scan().values() for p in found if p.suffix.lower() in suffixes)

    def find(self, kind: str, name: str, within: str | None = None) -> str:
        """The path of a recording; where there is none, the one at which it was looked for.

        Args:
            kind: video (a folder of frames is one, too), audio or image.
            name: a file's name, a path in the folder, or either without its suffix; with a slash at its end,
                a folder of frames.
            within: part of the names of folders: where there are such, only what lies in them is meant.

        Raises:
            ConfigError: several recordings have that name.
            RecordError: it is no name.
        """
        if len(name) > 4000 or "\0" in name or any(len(part) > 250 for part in Path(name).parts):
            raise RecordError(f"{name[:40]!r}… is no path: give a file, or data as a data: URI")
        if self.folder is None or not (self.folder / name).exists():
            name = name.replace("\\", "/")  # as Windows writes paths
        asked = Path(name)
        whole = name.endswith("/") or asked.suffix.lower() in MEDIA_SUFFIXES
        expected = asked if whole else asked.with_name(asked.name + EXPECTED[kind])
        if self.folder is None:
            return str(expected)
        for path in (self.folder / expected, self.folder / asked):
            if path.is_file() or (kind == "video" and path.is_dir()):
                return str(path)
        found = self._called(kind, asked.name)
        if len(asked.parts) > 1:
            there = [path for path in found if _key(path.parent.name) == _key(asked.parent.name)]
            if not there and len(found) == 1:  # the only one of its name: the folders were not kept
                self.elsewhere[name] = None
                there = found
            found = there
        if within is not None and any(within in folder for folder in self._folders):
            found = [path for path in found if within in str(path.parent.relative_to(self.folder))]
        if len(found) > 1:
            raise ConfigError(
                f"--media {self.folder}: {found[0].relative_to(self.folder)} and "
                f"{found[1].relative_to(self.folder)} are both called '{name}': give the folder of one split"
            )
        if not found:
            self.missing[str(expected)] = None
            return str(self.folder / expected)
        return str(found[0])

    def has(self, kind: str, name: str) -> bool:
        """Whether there is a recording of that name, without noting it as missing."""
        return bool(self._called(kind, name))

    def _called(self, kind: str, name: str) -> list[Path]:
        """Files of that very name; else those of the kind, with any of its suffixes; else folders."""
        stem = Path(name).stem if Path(name).suffix.lower() in MEDIA_SUFFIXES else name
        alike = self._scan().get(_key(stem), [])
        return (
            [path for path in alike if _key(path.name) == _key(name)]
            or [path for path in alike if path.suffix.lower() in SUFFIXES[kind]]
            or (self._folders.get(_key(stem), []) if kind == "video" else [])
        )

    def _scan(self) -> dict[str, list[Path]]:
        if self._files is None:
            self._files = defaultdict(list)
            for parent, files in walk_folders(self.folder, self.pass_over) if self.folder else ():
                if parent != self.folder:
                    self._folders[_key(parent.name)].append(parent)
                for file in files:
                    self._files[_key(Path(file).stem)].append(parent / file)
        return self._files

    def pass_over(self, path: Path, why: str) -> None:
        """Notes what `walk_folders` does not read."""
        if why != READ_ALREADY:  # of which nothing is missed
            self.passed_over[path] = why


def _key(name: str) -> str:
    """A name as it is compared: macOS writes ä in file names as two characters."""
    return normalize("NFC", name)
