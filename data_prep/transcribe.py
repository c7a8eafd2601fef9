"""`mllm data transcribe`: timed transcripts by Whisper (`mllm.models.transcriber`), as subtitles.

    transcripts.jsonl        a row per recording: {"media", "by", "file": [bytes, modification time],
                             "language", "sub": [{"text", "start", "end"}], "words": [[start, end, text]]}
    <name>.subtitled.jsonl   the records, with the transcript before the question

A row is written as soon as its recording is done, so the same command resumes after a kill. Unreadable
recordings do not stop the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_prep.engine import Engine, ProcessDied, run
from mllm.errors import MediaError, MllmError
from mllm.files import alone_in, write_atomically
from mllm.media.places import media_name
from mllm.media.recording import open_recording
from mllm.records.record import Record, read_records, write_records
from mllm.records.templates import subtitle_block, with_subtitles

if TYPE_CHECKING:
    from mllm.models.transcriber import Transcriber

TRANSCRIPTS = "transcripts.jsonl"


class Hear(Protocol):
    """16 kHz sound -> {"language", "sub"}; recordings are transcribed again if `transcriber` has changed."""

    @property
    def transcriber(self) -> str: ...

    def __call__(self, waveform: np.ndarray) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Whisper:
    """A Whisper model as a function; loaded once in each process that calls it.

    Attributes:
        name: a base, a hub id or a folder.
        language: such as "en"; None lets the model detect it.
    """

    name: str
    language: str | None = None

    @property
    def transcriber(self) -> str:
        return " ".join(filter(None, ("whisper", self.name, self.language)))

    def __call__(self, waveform: np.ndarray) -> dict[str, Any]:
        heard = load_whisper(self.name, self.language).hear(waveform)
        words = [(word.start, word.end, word.text.strip()) for part in heard.segments for word in part.words]
        return {"language": heard.language, "sub": heard.lines, "words": words}


@cache
def load_whisper(name: str, language: str | None = None) -> Transcriber:
    """Loads a Whisper model.

    Raises:
        ConfigError: there is no such model, or it does not know the language.
    """
    from mllm.models.transcriber import Transcriber

    return Transcriber.from_pretrained(name, language)


def transcribe(
    path: Path,
    hear: Hear,
    out: Path,
    engine: Engine = "local",
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
    warn: Callable[[str], None] = lambda line: None,
) -> tuple[int, int]:
    """Transcribes every recording of a record file that has sound, and writes the records with subtitles.

    Args:
        hear: must be importable and picklable if other processes run it.
        engine, workers: see `engine.run`; a single local worker runs in this process.
        progress: wraps the remaining recordings, given their number.
        warn: receives one line for each unreadable recording.

    Returns:
        The numbers of recordings transcribed now and before.

    Raises:
        RecordError: a bad row.
        MllmError: unreadable recordings, once the others are done; another process transcribes into `out`, or
            it holds the output of another record file.
    """
    records = list(read_records(path))
    media = {_key(source, options, out): (source, options) for _, source, options in _heard(records)}
    with alone_in(out, "mllm data transcribe"):
        file, subtitled = out / TRANSCRIPTS, out / f"{path.stem}.subtitled.jsonl"
        origin = os.path.relpath(path, out)
        _refuse_another(subtitled, origin)
        done = _whole_rows(file)
        heads = {
            key: {"media": key, "by": hear.transcriber, "file": _file(source, options)}
            for key, (source, options) in media.items()
        }
        left = {
            key: at for key, at in media.items() if key not in done or done[key] | heads[key] != done[key]
        }
        items = {key: (hear, source, options) for key, (source, options) in left.items()}
        failed = []
        for outcome in progress(run(listen, items, engine, workers, isolated=False), len(left)):
            if isinstance(outcome.error, (MediaError, ProcessDied)):
                lost = isinstance(outcome.error, ProcessDied)
                failed.append(f"{outcome.key}: it crashed the decoder" if lost else str(outcome.error))
                warn(failed[-1])
                done.pop(outcome.key, None)  # the transcript of an earlier file
                continue
            done[outcome.key] = heads[outcome.key] | outcome.result()
            _append(file, done[outcome.key])
        # Those of other record files first, then in record order, however many workers there were.
        order = [*(key for key in done if key not in media), *(key for key in media if key in done)]
        write_atomically(file, "".join(json.dumps(done[key], ensure_ascii=False) + "\n" for key in order))
        if failed:
            raise MllmError(
                f"{path}: {len(failed)} of {len(media)} recordings cannot be read, the others are done: "
                f"`mllm data check {path} --fix` leaves their records out; the first: {failed[0]}"
            )
        write_records(subtitled, _subtitled(records, done, out, origin))
        return len(left), len(media) - len(left)


def listen(hear: Hear, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Transcribes one recording; the transcript is empty if it has no sound."""
    audio = options.get("audio")
    with open_recording(source, audio=audio, isolated=True) as recording:
        sounds = audio or recording.info.has_audio
        waveform = None
        if sounds:
            waveform = recording.clip(options.get("start"), options.get("end"), want_video=False).waveform
    return {"language": None, "sub": []} if waveform is None else hear(waveform)


def _subtitled(
    records: list[Record], transcripts: dict[str, Any], out: Path, origin: str
) -> Iterator[Record]:
    for record in records:
        messages = with_subtitles(
            record["messages"], lambda part: transcripts[_key(part.source, part.options, out)]["sub"]
        )
        yield record | {"messages": messages, "subtitled_from": origin}


def _refuse_another(subtitled: Path, origin: str) -> None:
    """Importers name all record files the same, so refuses to overwrite the output of another one."""
    found = origin
    if subtitled.is_file():
        with subtitled.open("rb") as lines, suppress(ValueError, AttributeError):
            found = json.loads(lines.readline()).get("subtitled_from", origin)
    if found != origin:
        raise MllmError(f"{subtitled} holds the records of {found}: give another --out, or take it away")


def _heard(records: Iterable[Record]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for record in records:
        for part in record["messages"].media:
            if part.modality != "image":
                yield part.modality, part.source, part.options


def _key(source: str, options: dict[str, Any], out: Path) -> str:
    """The key of a recording with its span and separate sound; transcript times start at the span."""
    named = {name: _name(value, out) if name == "audio" else value for name, value in options.items()}
    return _name(source, out) + "".join(f" {name}={value}" for name, value in sorted(named.items()))


def _name(source: str, out: Path) -> str:
    """The path relative to `out` if it lies inside, so that the folder can be moved."""
    if "://" in source or source.startswith("data:"):
        return media_name(source)
    inside = os.path.relpath(source, out)
    return source if inside.startswith("..") else inside


def _file(source: str, options: dict[str, Any]) -> list[int]:
    """Size in bytes and modification time (s), also of a separate sound, to detect changed files."""
    found = []
    for path in filter(None, (source, options.get("audio"))):
        with suppress(OSError, ValueError):
            files = list(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
            stats = [file.stat() for file in files]
            found += [sum(stat.st_size for stat in stats), int(max(stat.st_mtime for stat in stats))]
    return found


def _append(file: Path, row: dict[str, Any]) -> None:
    try:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    except OSError as error:
        raise MllmError(
            f"{file}: cannot be written ({error.strerror}): what is done stays, the same command goes on"
        ) from None


def _whole_rows(file: Path) -> dict[str, Any]:
    """Reads rows by recording, and truncates an incomplete last row."""
    rows: dict[str, Any] = {}
    whole = 0
    if not file.is_file():
        return rows
    with file.open("rb+") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                subtitle_block(row["sub"])
                rows[row["media"]] = row
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise MllmError(f"{file} row {number} is no transcript: mend it, or take it out") from None
            whole += len(line)
        lines.truncate(whole)
    return rows
