"""`mllm eval records FILE`: the questions of a user's records, scored by task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from eval.benchmark import Benchmark
from eval.question import Question
from mllm.errors import ConfigError
from mllm.records.source import open_source


class Records(Benchmark):
    """Questions of your own records by task, beside the majority answer and blind guesses.

    Questions whose recordings are missing or cannot be read are counted and left out.
    """

    name = "records"
    groups = {
        "caption": ("caption", "caption_video", "caption_audio", "caption_image", "caption_both"),
        "moments": ("moments",),
    }

    def __init__(self, file: Annotated[Path, typer.Argument(help="A JSONL file of records.")]):
        if file.is_dir():
            raise ConfigError(f"{file} is a folder: give the JSONL file that it was built from")
        self.file = file
        self.source = open_source(str(file), media_must_exist=False)
        self.splits = (file.stem,)

    @property
    def title(self) -> str:
        """The path of the file."""
        return str(self.file)

    @property
    def folder(self) -> str:
        """The name of the file."""
        return self.file.stem

    def questions(self, split: str) -> Iterable[Question]:
        """The questions of all records."""
        for index in range(len(self.source)):
            yield from map(Question.of, self.source.conversations(index))
