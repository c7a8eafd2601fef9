"""The input of an importer: annotation rows, recordings by name, and counts of what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.importers.columns import Columns
from data_prep.importers.encodings import DAMAGED
from data_prep.importers.folder import MediaFolder
from data_prep.importers.tables import Row, is_nan, object_of, parquet_rows, read_text, rows_of
from mllm.errors import ConfigError, MllmError, RecordError
from mllm.media.sources import SUFFIXES
from mllm.records import templates
from mllm.records.subtitles import SUBTITLES, Line, subtitle_lines
from mllm.records.times import span_text
from mllm.scores import normalise

TEXTS = {".txt", *SUBTITLES}  # annotation files without rows
KINDS = 20  # of malformed rows that are counted separately
STRETCH = 30.0  # s, maximum length of the records of a timed transcript
Part = dict[str, Any]
Record = dict[str, Any]


@dataclass
class Job:
    """One import.

    Attributes:
        name: of the data set; prefix of the record ids, and their `source`.
        files: annotation files, in the given order.
        media: finds recordings.
        localised: use the annotated span of a video instead of all of it.
        encoding: of annotation files that are not in UTF-8.
        columns: given columns of a table, by role.
        stretch: maximum length (s) of the records of a timed transcript.
        left_out: reason -> number of rows left out.
        noted: peculiarity -> number of rows that have it but were kept.
        where: the row of the next record.
        opened: those of `files` that were read.
        odd: kind of malformed row -> the reason under which it is counted.
        first_odd: file -> the error of its first malformed row.
        fine: files with at least one valid row.
    """

    name: str
    files: Sequence[Path]
    media: MediaFolder
    localised: bool = False
    encoding: str | None = None
    columns: Columns = field(default_factory=dict)
    stretch: float = STRETCH
    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    where: str = ""
    opened: set[Path] = field(default_factory=set)
    odd: dict[str, str] = field(default_factory=dict)
    first_odd: dict[str, MllmError] = field(default_factory=dict)
    fine: set[str] = field(default_factory=set)

    def rows(self, only: str | None = None, columns: list[str] | None = None) -> Iterator[Row]:
        """Yields the rows of all annotation files except .txt and subtitles, or of those with suffix `only`.

        Args:
            columns: column names of CSV files without a header.
        """
        for path in self.files:
            suffix = path.suffix.lower()
            if suffix == only or (only is None and suffix not in TEXTS):
                for row in self._rows(path, columns):
                    self.where = row.where
                    yield row

    def _rows(self, path: Path, columns: list[str] | None) -> Iterator[Row]:
        if path.suffix.lower() == ".parquet":
            self.opened.add(path)
            return parquet_rows(path)
        return rows_of(path, self.read(path), columns, self.leave_out)

    def texts(self, suffix: str, usual: str | None = None) -> Iterator[tuple[Path, str]]:
        """Yields (path, text) of the annotation files with a suffix.

        Args:
            usual: encoding used by the authors of the data set (see `decoded`).
        """
        for path in self.files:
            if path.suffix.lower() == suffix:
                self.where = path.name
                yield path, self.read(path, usual)

    def subtitles(self, usual: str | None = None) -> Iterator[tuple[Path, list[Line]]]:
        """Yields (path, lines) of all subtitle files; invalid ones are left out."""
        for suffix in SUBTITLES:
            for path, text in self.texts(suffix, usual):
                with self.or_left_out():
                    yield path, subtitle_lines(path, text)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields (line, location) of all .txt annotation files, without blank lines."""
        for path, text in self.texts(".txt"):
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    self.where = f"{path.name} line {number}"
                    yield line.strip(), self.where

    def objects(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields (path, object) of all .json annotation files."""
        for path, text in self.texts(".json"):
            yield path, object_of(path, text)

    def read(self, path: Path, usual: str | None = None) -> str:
        """Reads the text of an annotation file."""
        self.opened.add(path)
        text, encoding = read_text(path, self.encoding, usual)
        if encoding == DAMAGED:
            self.noted["file with damaged characters: rows that have them are left out"] += 1
        elif encoding == self.encoding:
            self.noted[f"file read as {encoding}"] += 1
        elif encoding not in ("utf-8", usual):
            self.noted[f"file read as {encoding}, not UTF-8: check its texts"] += 1
        return text

    # Malformed rows.

    @contextmanager
    def or_left_out(self) -> Iterator[None]:
        """Context in which one row is converted: a malformed row is left out and counted."""
        try:
            yield
        except RecordError as error:
            self.leave_out(error)
        except MllmError:
            raise  # concerns the whole import, such as a wrong folder
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            why = f"not as {self.name} writes it ({type(error).__name__}: {error}): see `mllm data formats`"
            self.leave_out(RecordError(f"{self.where}: {why}"))
        else:
            self.fine.add(self._file())

    def leave_out(self, error: RecordError) -> None:
        """Counts a malformed row by its error, and notes the location of the first such row."""
        file, text = self._file(str(error)), str(error)
        self.first_odd.setdefault(file, error)
        where, _, why = text.partition(": ") if file else (self.where, "", text)
        if why not in self.odd and len(self.odd) < KINDS:
            self.odd[why] = f"{why} (first: {where})"
        self.left_out[self.odd.get(why, "odd in other ways, too")] += 1

    def require_some_fine(self) -> None:
        """Raises the first error of a file without any valid row: it is the wrong file."""
        for file, error in self.first_odd.items():
            if file not in self.fine:
                raise error

    def _file(self, where: str | None = None) -> str:
        where = self.where if where is None else where
        names = (path.name for path in self.files)
        return next((name for name in names if f"{where} ".startswith((f"{name} ", f"{name}:"))), "")

    def recordings(self, kind: str) -> list[Path]:
        """All recordings of a kind, for data sets with labels in their file names.

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

    def video(
        self, name: str, start: float | None = None, end: float | None = None, within: str | None = None
    ) -> Part:
        """A video; for a folder of frames, with the sound of the same name.

        Args:
            within: see `MediaFolder.find`.
        """
        part: Part = {"type": "video", "video": self._find("video", name, within)} | _span(start, end)
        sound = name.rstrip("/")
        if Path(part["video"]).is_dir() and self.media.has("audio", sound):
            part["audio"] = self._find("audio", sound)
        return part

    def audio(self, name: str | Path, start: float | None = None, end: float | None = None) -> Part:
        path = str(name) if isinstance(name, Path) else self._find("audio", name)
        return {"type": "audio", "audio": path} | _span(start, end)

    def image(self, name: str) -> Part:
        return {"type": "image", "image": self._find("image", name)}

    def medium(
        self, name: str, kind: str | None = None, start: float | None = None, end: float | None = None
    ) -> Part:
        """A recording; its kind is that of its suffix, else of the file found, else `kind`, else video."""
        address = name.startswith(("data:", "http://", "https://"))
        suffix = Path(name.partition("?")[0] if address else name).suffix.lower()
        by_suffix = [
            k for k, suffixes in SUFFIXES.items() if suffix in suffixes or name.startswith(f"data:{k}/")
        ]
        if address:
            kind = (by_suffix or [kind or "video"])[0]
            return {"type": kind, kind: name} | (_span(start, end) if kind != "image" else {})
        there = [k for k in (kind, *SUFFIXES) if k is not None and self.media.has(k, Path(name).name)]
        kind = (by_suffix or there or [kind or "video"])[0]
        if kind == "image":
            return self.image(name)
        return self.video(name, start, end) if kind == "video" else self.audio(name, start, end)

    def _find(self, kind: str, name: str, within: str | None = None) -> str:
        try:
            return self.media.find(kind, name, within)
        except (ConfigError, RecordError) as error:
            raise type(error)(f"{self.where}: {error}") from None

    # Records.

    def qa(self, id: Any, media: Sequence[Part], question: str, answer: str | None, **more: Any) -> Record:
        """An open question; `answer` is None if the data set withholds it."""
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
        """A question with options, which are shuffled and lettered.

        The record's `options` are as shown; `option_order` has their original indices.
        """
        if len({normalise(option) for option in options}) < len(options):
            self.noted["two options that say the same"] += 1
        order = templates.shuffled(len(options), self._id(id))
        shown = [f"{chr(65 + index)}. {options[number].strip()}" for index, number in enumerate(order)]
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
        """A label; `options` is the closed set that the prompt lists. `task` selects the templates."""
        fields = {"options": ", ".join(options)} if options else {}
        open_one = f"{task}_open" if not options and f"{task}_open" in templates.templates() else task
        prompt = templates.fill(open_one, self._id(id), **fields)
        return self._record(id, task, media, prompt, answer, options=list(options or ()) or None, **more)

    def caption(
        self, id: Any, media: Sequence[Part], captions: Mapping[str, Sequence[str]], **more: Any
    ) -> Record:
        """A captioned recording, for generation and for the shared embedding space.

        Args:
            captions: by what they describe: video, audio or both.
        """
        (about, texts), *_ = captions.items()
        prompt = templates.fill(f"caption_{media[0]['type'] if about != 'both' else 'both'}", self._id(id))
        answer = templates.pick(list(texts), self._id(id))
        lists = {key: list(value) for key, value in captions.items()}
        return self._record(id, "caption", media, prompt, answer, captions=lists, **more)

    def transcript(self, id: Any, media: Sequence[Part], said: str, **more: Any) -> Record:
        """A transcribed recording.

        Args:
            more: `words`: [start, end, text], in s from the start of the recording or its span.
        """
        prompt = templates.fill("transcript", self._id(id))
        return self._record(id, "transcript", media, prompt, said, **more)

    def moments(
        self, id: Any, media: Sequence[Part], query: str, spans: Sequence[Sequence[float]] | None, **more: Any
    ) -> Record:
        """A moment query: when something happens.

        Args:
            spans: [start, end] in s; None if the data set withholds them.
        """
        query = query.strip()
        prompt = templates.fill("moments", self._id(id), query=query)
        answer = None if spans is None else span_text(spans)
        return self._record(id, "moments", media, prompt, answer, query=query, spans=spans, **more)

    def answer(self, row: Row, field: str = "answer") -> str | None:
        """A row's answer as text; None, and counted, if the data set withholds it.

        Raises:
            RecordError: it is not text.
        """
        if row.get(field) is None or is_nan(row[field]):
            self.noted["no answer given"] += 1
            return None
        return row.text(field)

    @staticmethod
    def number(row: Row, field: str, count: int) -> int | None:
        """The index of a row's choice among `count` options; None if the data set withholds it.

        Raises:
            RecordError: it is not a valid index.
        """
        value = row.get(field)
        if value is None or value == "" or is_nan(value):
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
