"""Recordings found by name in a folder, as annotation files name them: with or without a suffix."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from mllm.errors import RecordError
from mllm.sources import SUFFIXES

EXPECTED = {"video": ".mp4", "audio": ".wav", "image": ".jpg"}  # where nothing of that name is found


class MediaFolder:
    """A folder of recordings, searched once, with its subfolders.

    Attributes:
        missing: names that were asked for and not found, in that order.
    """

    def __init__(self, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise RecordError(f"--media {folder} is not a folder: give the one that holds the recordings")
        self.folder = folder
        self.missing: dict[str, None] = {}
        self._files: dict[str, list[Path]] | None = None  # by stem
        self._folders: dict[str, list[Path]] = defaultdict(list)  # by name: frames may lie in them

    def files(self, kind: str) -> list[Path]:
        """All recordings of a kind, in the order of their paths."""
        by_stem = self._scan()
        return sorted(p for found in by_stem.values() for p in found if p.suffix.lower() in SUFFIXES[kind])

    def find(self, kind: str, name: str) -> str:
        """The path of a recording; where there is none, the one at which it was looked for.

        Args:
            kind: video (a folder of frames is one, too), audio or image.
            name: a file's name, a path in the folder, or either without its suffix.

        Raises:
            RecordError: several recordings have that name.
        """
        asked = Path(name)
        has_suffix = asked.suffix.lower() in SUFFIXES[kind]
        expected = asked if has_suffix else asked.with_name(asked.name + EXPECTED[kind])
        if self.folder is None:
            return str(expected)
        for path in (self.folder / expected, self.folder / asked):
            if path.is_file() or (kind == "video" and path.is_dir()):
                return str(path)
        found = self._called(kind, asked.stem if has_suffix else asked.name)
        if len(asked.parts) > 1:  # the folder that is named must be the one that it lies in
            found = [path for path in found if path.parent.name == asked.parent.name]
        if len(found) > 1:
            raise RecordError(
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

    def _called(self, kind: str, stem: str) -> list[Path]:
        files = [path for path in self._scan().get(stem, []) if path.suffix.lower() in SUFFIXES[kind]]
        return files or (self._folders.get(stem, []) if kind == "video" else [])

    def _scan(self) -> dict[str, list[Path]]:
        if self._files is None:
            self._files = defaultdict(list)
            for parent, folders, files in os.walk(self.folder) if self.folder else ():
                for folder in folders:
                    self._folders[folder].append(Path(parent, folder))
                for file in files:
                    self._files[Path(file).stem].append(Path(parent, file))
        return self._files
