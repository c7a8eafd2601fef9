"""What an importer is given: annotation rows, recordings by name, and a place to count what it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.importers.folder import MediaFolder
from data_prep.importers.tables import Row, read_object, read_rows, read_text
from mllm import templates
from mllm.errors import RecordError

Part = dict[str, Any]
Record = dict[str, Any]


@dataclass
class Job:
    """One import.

    Attributes:
        name: of the data set; begins the id of every record, and is its `source`.
        files: annotation files, in the order in which they were given.
        media: where recordings are found.
        localised: ask about the annotated span of a video and not about all of it.
        left_out: reasons, and how many rows each has kept out.
        noted: peculiarities of rows that were kept, and how many rows have each.
        where: the row that was read last.
    """

    name: str
    files: Sequence[Path]
    media: MediaFolder
    localised: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    where: str = ""

    def rows(self, only: str | None = None, columns: list[str] | None = None) -> Iterator[Row]:
        """The rows of all annotation files but .txt, or of those with the suffix `only`.

        Args:
            columns: names of those of a CSV file without a header.
        """
        for path in self.files:
            suffix = path.suffix.lower()
            if suffix == only or (only is None and suffix != ".txt"):
                for row in read_rows(path, columns):
                    self.where = row.where
                    yield row

    def lines(self) -> Iterator[tuple[str, str]]:
        """(line, where it stands) of all .txt annotation files, without blank lines."""
        for path in self.files:
            if path.suffix.lower() == ".txt":
                for number, line in enumerate(read_text(path).splitlines(), start=1):
                    if line.strip():
                        yield line.strip(), f"{path.name} line {number}"

    def objects(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """All .json annotation files, each one object."""
        for path in self.files:
            if path.suffix.lower() == ".json":
                yield path, read_object(path)

    def recordings(self, kind: str) -> list[Path]:
        """All recordings of a kind: for data sets whose labels are file names.

        Raises:
            RecordError: if there are none.
        """
        files = self.media.files(kind)
        if not files:
            raise RecordError(
                f"{self.name} is read from file names: give --media the folder of {kind} recordings"
            )
        return files

    # Parts of messages.

    def video(self, name: str, start: float | None = None, end: float | None = None) -> Part:
        """A video, and the sound that lies beside a folder of frames under the same name."""
        part: Part = {"type": "video", "video": self.media.find("video", name)} | _span(start, end)
        if Path(part["video"]).is_dir() and self.media.has("audio", name):
            part["audio"] = self.media.find("audio", name)
        return part

    def audio(self, name: str | Path, start: float | None = None, end: float | None = None) -> Part:
        path = str(name) if isinstance(name, Path) else self.media.find("audio", name)
        return {"type": "audio", "audio": path} | _span(start, end)

    def image(self, name: str) -> Part:
        return {"type": "image", "image": self.media.find("image", name)}

    # Records.

    def qa(self, id: Any, media: Sequence[Part], question: str, answer: str | None, **more: Any) -> Record:
        """An open question; `answer` None where the data set keeps it back."""
        prompt = templates.fill("qa", self._id(id), question=question.strip())
        return self._record(id, "qa", media, prompt, answer, **more)

    def choice(
        self,
        id: Any,
        media: Sequence[Part],
        question: str,
        options: Sequence[str],
        right: int | None,
        **more: Any,
    ) -> Record:
        """A question with options, which are shown in another order, lettered anew.

        The record's `options` are as shown; `option_order` has the official number of each.
        """
        order = templates.shuffled(len(options), self._id(id))
        shown = [f"{chr(65 + place)}. {options[number].strip()}" for place, number in enumerate(order)]
        prompt = templates.fill("choice", self._id(id), question=question.strip(), options="\n".join(shown))
        answer = None if right is None else shown[order.index(right)]
        more = {"options": shown, "option_order": order} | more
        return self._record(id, "choice", media, prompt, answer, **more)

    def label(
        self,
        id: Any,
        task: str,
        media: Sequence[Part],
        answer: str,
        options: Sequence[str] | None = None,
        **more: Any,
    ) -> Record:
        """A label; with `options`, of a closed set that the prompt names. `task` has its own templates."""
        fields = {"options": ", ".join(options)} if options else {}
        prompt = templates.fill(task, self._id(id), **fields)
        return self._record(id, task, media, prompt, answer, options=list(options or ()) or None, **more)

    def caption(
        self, id: Any, media: Sequence[Part], captions: Mapping[str, Sequence[str]], **more: Any
    ) -> Record:
        """A recording described in words: to tell, and to tell apart in the shared space.

        Args:
            captions: by what they describe: video, audio or both.
        """
        (about, texts), *_ = captions.items()
        prompt = templates.fill(f"caption_{media[0]['type'] if about != 'both' else 'both'}", self._id(id))
        answer = templates.pick(list(texts), self._id(id))
        lists = {key: list(value) for key, value in captions.items()}
        return self._record(id, "caption", media, prompt, answer, captions=lists, **more)

    def transcript(self, id: Any, media: Sequence[Part], words: str, **more: Any) -> Record:
        return self._record(
            id, "transcript", media, templates.fill("transcript", self._id(id)), words, **more
        )

    @staticmethod
    def number(row: Row, field: str, count: int) -> int | None:
        """A row's choice among `count` options, from 0; None where the data set keeps it back.

        Raises:
            RecordError: it is no such number.
        """
        value = row.get(field)
        if value is None or value == "":
            return None
        if not str(value).isdigit() or int(value) >= count:
            raise RecordError(f"{row.where}: {field} must be a number from 0 to {count - 1}, not {value!r}")
        return int(value)

    def _id(self, id: Any) -> str:
        return f"{self.name}/{id}"

    def _record(
        self, id: Any, task: str, media: Iterable[Part], prompt: str, answer: str | None, **more: Any
    ) -> Record:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*media, {"type": "text", "text": prompt}]}
        ]
        if answer is not None:
            answer = str(answer).strip()
            messages.append({"role": "assistant", "content": answer})
        record = {"id": self._id(id), "messages": messages, "task": task, "source": self.name}
        return record | {"answer": answer} | {key: value for key, value in more.items() if value is not None}


def _span(start: float | None, end: float | None) -> dict[str, float]:
    return {key: value for key, value in (("start", start), ("end", end)) if value is not None}
