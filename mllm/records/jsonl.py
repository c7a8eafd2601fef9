"""A JSONL file of records as a data source: scenes by index, read from disk on demand."""

from __future__ import annotations

import os
from pathlib import Path

from mllm.errors import RecordError
from mllm.files import open_ordinary
from mllm.records.conversation import Conversation
from mllm.records.record import (
    Outline,
    PairRecord,
    Record,
    answered,
    first_media,
    has_answer,
    outline,
    parse_record,
    read_rows,
)


class JsonlSource:
    """A JSONL file as a data source: neighbouring rows about the same recording are one scene.

    Every row is checked when the file is opened, and read again from disk on demand.

    Raises:
        RecordError: on opening, for the first invalid row.
    """

    def __init__(self, path: str | os.PathLike, media_must_exist: bool = True) -> None:
        self.path = Path(path).absolute()
        self.media_must_exist = media_must_exist
        self.name = self.path.stem
        self._scenes: list[list[tuple[int, int]]] = []  # (byte offset, row) of each record
        self._outlines: list[list[Outline]] = []
        previous: object = None
        for (offset, row), record in read_rows(self.path, media_must_exist):
            media = first_media(record)
            if media is None or media != previous:
                self._scenes.append([])
                self._outlines.append([])
            self._scenes[-1].append((offset, row))
            self._outlines[-1].append(outline(record))
            previous = media
        if not self._scenes:
            raise RecordError(f"{self.path.name} holds no records: write at least one row")

    def __len__(self) -> int:
        return len(self._scenes)

    def outlines(self, index: int) -> list[Outline]:
        """What `records` of one scene are about, without reading them."""
        return self._outlines[index]

    def conversations(self, index: int) -> list[Record]:
        """The records of one scene that have an answer to train on."""
        return [record for record in self.records(index) if has_answer(record)]

    def pair(self, index: int) -> PairRecord:
        """The scene's clip with one caption of each kind.

        Raises:
            RecordError: if the scene has no captions or no media.
        """
        round_, index = divmod(index, len(self))
        records = self.records(index)
        record = next((record for record in records if record.get("captions")), None)
        where = f"{self.path.name} row {self._scenes[index][0][1]}"
        if record is None:
            raise RecordError(
                f"{where}: no 'captions', which the contrastive stage needs: add them to the row"
            )
        part = first_media(record)
        if part is None:
            raise RecordError(f"{where}: captions but no recording: put a media part into the message")
        captions = {
            key: texts[round_ % len(texts)] if texts else None for key, texts in record["captions"].items()
        }
        return {
            "clip": part.source,
            "part": part,
            "captions": captions,
            "paraphrases": record["captions"],
            "labels": record.get("labels") or {},
        }

    def text(self, index: int) -> list[Conversation]:
        """The scene's conversations without media, each with its answer."""
        return [answered(record) for record in self.conversations(index) if first_media(record) is None]

    def records(self, index: int) -> list[Record]:
        """All records of one scene, including those without an answer."""
        records = []
        with open_ordinary(self.path, error=RecordError) as file:
            for offset, row in self._scenes[index]:
                file.seek(offset)
                where = f"{self.path.name} row {row}"
                records.append(parse_record(file.readline(), where, self.path.parent, self.media_must_exist))
        return records
