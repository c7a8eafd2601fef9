"""Subtitles beside recordings. Private to `index`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mllm.errors import RecordError
from mllm.media.sources import MEDIA_SUFFIXES
from mllm.records.subtitles import KINDS, LANGUAGE, subtitle_lines, unrolled
from mllm.records.transcript import Segment

SUFFIXES = (".srt", ".vtt")


class SubtitlesBeside:
    """Finds the subtitles of a recording: talk.srt or talk.vtt of talk.mp4, else talk.mp4.srt or talk.en.srt.

    Of several languages the first by name is taken. Every folder is listed once.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[tuple[int, str]]]] = {}

    def __call__(self, recording: Path) -> Path | None:
        folder = recording.parent
        if folder not in self._folders:
            names: list[str] = []
            with suppress(OSError):
                names = os.listdir(folder)
            self._folders[folder] = _by_recording(names)
        by_name = self._folders[folder]
        found = by_name.get(recording.stem, []) + [
            (tags + 1, n) for tags, n in by_name.get(recording.name, ())
        ]
        return folder / min(found)[1] if found else None


def _by_recording(names: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """Subtitles among the files of a folder, with their number of tags, by stem or name of a recording."""
    recordings = [Path(name) for name in names if Path(name).suffix.lower() in MEDIA_SUFFIXES]
    known = {part for path in recordings for part in (path.stem, path.name)}
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if not stem or f".{suffix.lower()}" not in SUFFIXES:
            continue
        found[stem].append((0, name))
        tags = 0
        while stem not in known:
            stem, dot, tag = stem.rpartition(".")
            if not dot or not (tag in KINDS or LANGUAGE.fullmatch(tag)):
                break
            tags += 1
            found[stem].append((tags + 1, name))
    return found


def subtitle_segments(path: Path, data: bytes) -> list[Segment]:
    """The lines of subtitles in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        RecordError: if they are neither, in one line that names the file.
    """
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        raise RecordError(f"{path.name}: not text in UTF-8: save it as UTF-8") from None
    return [
        Segment(line["start"], line["end"], line["text"])
        for line in unrolled(subtitle_lines(path, text))
        if line["text"] and line["end"] > line["start"]
    ]
