"""Finds recordings in a folder by the names in annotation files, with or without a suffix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from unicodedata import normalize

from mllm.errors import ConfigError, RecordError
from mllm.media.sources import MEDIA_SUFFIXES, READ_ALREADY, SUFFIXES, walk_folders

EXPECTED = {"video": ".mp4", "audio": ".wav", "image": ".jpg"}  # assumed if nothing of that name is found


class MediaFolder:
    """A folder of recordings, searched once, with its subfolders.

    Attributes:
        missing: names that were not found, in order of lookup.
        elsewhere: names found in another folder than the one named.
        passed_over: unreadable folders, and why.
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
        """All recordings of a kind, sorted by path."""
        return self.ending(SUFFIXES[kind])

    def ending(self, suffixes: Container[str]) -> list[Path]:
        """All files with one of these suffixes, sorted by path."""
        return sorted(p for found in self._scan().values() for p in found if p.suffix.lower() in suffixes)

    def find(self, kind: str, name: str, within: str | None = None) -> str:
        """The path of a recording; if it is not found, the path where it was expected.

        Args:
            kind: video (also a folder of frames), audio or image.
            name: a file name or a path in the folder, either with or without suffix; with a trailing slash a
                folder of frames.
            within: if any folder has this in its name, only those folders are searched.

        Raises:
            ConfigError: several recordings have that name.
            RecordError: the name cannot be a path.
        """
        if len(name) > 4000 or "\0" in name or any(len(part) > 250 for part in Path(name).parts):
            raise RecordError(f"{name[:40]!r}… is no path: give a file, or data as a data: URI")
        if self.folder is None or not (self.folder / name).exists():
            name = name.replace("\\", "/")  # Windows path
        wanted = Path(name)
        whole = name.endswith("/") or wanted.suffix.lower() in MEDIA_SUFFIXES
        expected = wanted if whole else wanted.with_name(wanted.name + EXPECTED[kind])
        if self.folder is None:
            return str(expected)
        for path in (self.folder / expected, self.folder / wanted):
            if path.is_file() or (kind == "video" and path.is_dir()):
                return str(path)
        found = self._called(kind, wanted.name)
        if len(wanted.parts) > 1:
            there = [path for path in found if _key(path.parent.name) == _key(wanted.parent.name)]
            if not there and len(found) == 1:  # the only one of its name: folders were rearranged
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
        """Whether there is a recording of that name; does not record it as missing."""
        return bool(self._called(kind, name))

    def _called(self, kind: str, name: str) -> list[Path]:
        """Files with exactly this name; else with any suffix of the kind; else folders."""
        stem = Path(name).stem if Path(name).suffix.lower() in MEDIA_SUFFIXES else name
        same_stem = self._scan().get(_key(stem), [])
        return (
            [path for path in same_stem if _key(path.name) == _key(name)]
            or [path for path in same_stem if path.suffix.lower() in SUFFIXES[kind]]
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
        """Records what `walk_folders` does not read."""
        if why != READ_ALREADY:  # nothing is lost then
            self.passed_over[path] = why


def _key(name: str) -> str:
    """Normalises a name for comparison: macOS decomposes ä in file names into two characters."""
    return normalize("NFC", name)
