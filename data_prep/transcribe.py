"""`mllm data transcribe`: what is said, and when, by openai-whisper (Radford et al. 2022), as subtitles.

    transcripts.jsonl        a row a recording: {"media", "by", "language", "sub": [{"text", "start", "end"}]}
    <name>.subtitled.jsonl   the records, with what is said written before the question

A row is written as soon as its recording is done: killed at any moment, the same command goes on with the
next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_prep.engine import Engine, run
from mllm.chat import media_parts
from mllm.errors import ConfigError, MllmError
from mllm.files import write_atomically
from mllm.media import load_clip, probe
from mllm.records import Record, read_records, write_records
from mllm.templates import subtitle_block

TRANSCRIPTS = "transcripts.jsonl"


class Hear(Protocol):
    """16 kHz sound -> {"language", "sub"}; `told_by` says who listened, so that another listens again."""

    @property
    def told_by(self) -> str: ...

    def __call__(self, waveform: np.ndarray) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Whisper:
    """A whisper model as a function; loaded once in each process that calls it.

    Attributes:
        name: one that openai-whisper knows, or the path of a `.pt` file.
        language: such as "en"; None lets the model tell.
        options: further ones of `whisper.transcribe`.
    """

    name: str
    language: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def told_by(self) -> str:
        return " ".join(filter(None, ("whisper", self.name, self.language)))

    def __call__(self, waveform: np.ndarray) -> dict[str, Any]:
        import whisper

        model, options = load_whisper(self.name), dict(self.options)
        result = whisper.transcribe(
            model, waveform, language=self.language, fp16=model.device.type == "cuda", verbose=None, **options
        )
        lines = [
            {"text": part["text"].strip(), "start": round(part["start"], 2), "end": round(part["end"], 2)}
            for part in result["segments"]
        ]
        return {"language": result["language"], "sub": [line for line in lines if line["text"]]}


def language_code(name: str) -> str:
    """A language as whisper writes it: "en" for "en" or "English".

    Raises:
        ConfigError: whisper does not know it.
    """
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
    if code not in LANGUAGES:
        raise ConfigError(
            f"--language {name}: whisper does not know it: give a code such as en, or leave it out"
        )
    return code


@cache
def load_whisper(name: str) -> Any:
    """A whisper model.

    Raises:
        ConfigError: there is no such model.
    """
    import whisper

    try:
        return whisper.load_model(name)
    except Exception as error:  # torch, the network or whisper itself, each with errors of its own
        known = ", ".join(whisper.available_models())
        raise ConfigError(f"--model {name}: {error}; give a .pt file or one of {known}") from None


def transcribe(
    path: Path,
    hear: Hear,
    out: Path,
    engine: Engine = "local",
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> tuple[int, int]:
    """Transcribes every recording of a record file that has sound, and writes the records with subtitles.

    Args:
        hear: importable and picklable, where other processes listen.
        engine, workers: see `engine.run`; one local worker listens in this process.
        progress: wraps the recordings that are left, given their number.

    Returns:
        How many recordings were transcribed now, and how many had been before.

    Raises:
        RecordError: a bad row. MediaError: a recording that cannot be read.
    """
    records = list(read_records(path))
    media = {_key(source, options): (source, options) for _, source, options in _heard(records)}
    out.mkdir(parents=True, exist_ok=True)
    file = out / TRANSCRIPTS
    done = _whole_rows(file)
    left = {key: at for key, at in media.items() if done.get(key, {}).get("by") != hear.told_by}
    items = {key: (hear, source, options) for key, (source, options) in left.items()}
    outcomes = run(listen, items, engine, workers, isolated=False)
    for outcome in progress(outcomes, len(left)):
        done[outcome.key] = {"media": outcome.key, "by": hear.told_by} | outcome.result()
        _append(file, done[outcome.key])
    # Those of other record files first, then in the order of these records, however many listened.
    order = [*(key for key in done if key not in media), *media]
    write_atomically(file, "".join(json.dumps(done[key], ensure_ascii=False) + "\n" for key in order))
    write_records(out / f"{path.stem}.subtitled.jsonl", _subtitled(records, done))
    return len(left), len(media) - len(left)


def listen(hear: Hear, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """What is said in one recording; nothing where there is no sound."""
    if options.get("audio") or probe(source).has_audio:
        waveform = load_clip(source, want_video=False, **options).waveform
        if waveform is not None:
            return hear(waveform)
    return {"language": None, "sub": []}


def _subtitled(records: list[Record], transcripts: dict[str, Any]) -> Iterator[Record]:
    for record in records:
        messages = []
        for message in record["messages"]:
            parts = []
            for part in message["content"]:
                parts.append(part)
                if part["type"] in ("video", "audio"):
                    (_, source, options), *_ = media_parts([{"content": [part]}])
                    told = subtitle_block(transcripts[_key(source, options)]["sub"])
                    parts += [{"type": "text", "text": told}] if told else []
            messages.append(message | {"content": parts})
        yield record | {"messages": messages}


def _heard(records: Iterable[Record]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for record in records:
        for kind, source, options in media_parts(record["messages"]):
            if kind in ("video", "audio"):
                yield kind, source, options


def _key(source: str, options: dict[str, Any]) -> str:
    """A recording with its span and separate sound; times in its transcript count from the span's start."""
    more = "".join(f" {name}={value}" for name, value in sorted(options.items()))
    return f"{source}{more}"


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
    """Rows by recording; what a kill left half-written at the end is cut off."""
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
                rows[row["media"]] = row
            except (ValueError, KeyError, TypeError):
                raise MllmError(f"{file} row {number} is no transcript: mend it, or take it out") from None
            whole += len(line)
        lines.truncate(whole)
    return rows
