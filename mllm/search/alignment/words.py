"""What is said against what is written: words as vectors, scripts as files.

A script has lines with times (.srt, .vtt, .ass, JSON of `mllm transcribe`) or without (.txt). Words are
compared by their letters, so that what a transcriber mishears still fits.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence as Row
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm.errors import RecordError
from mllm.files import open_ordinary, printable
from mllm.records.subtitles import SUBTITLES, Line, subtitle_lines
from mllm.scores import normalise
from mllm.search.alignment.events import Events

SUFFIXES = (*SUBTITLES, ".json", ".txt")
DIM = 64
GRAM = 3  # letters
BAND = 0.1  # of the longer row of words
ALIKE = 0.5  # cosine of two words that are the same
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"  # kana, Han, Thai
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
LARGEST = 20_000_000  # bytes of a script


@dataclass(frozen=True)
class Script:
    """A written text.

    Attributes:
        lines: `{"text", "start", "end"}`; without times where `timed` is False.
    """

    name: str
    lines: tuple[Line, ...]
    timed: bool

    @property
    def seconds(self) -> float:
        return max(line["end"] for line in self.lines)

    def words(self) -> list[tuple[int, str]]:
        """The words, each with the number of its line."""
        return [
            (number, word) for number, line in enumerate(self.lines) for word, _ in words_in(line["text"])
        ]


def is_script(path: str | Path) -> bool:
    """Whether a path is a transcript by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def read_script(path: str | Path) -> Script:
    """Reads subtitles, JSON of `mllm transcribe`, or plain text.

    Raises:
        RecordError: if the file is not there, not UTF-8, or holds no text.
    """
    path = Path(path)
    with open_ordinary(path, error=RecordError) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        size = f"more than {LARGEST // 1_000_000} MB"
        raise RecordError(f"{path.name}: {size} is no transcript: give a shorter one")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path.name}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    kind = path.suffix.lower()
    if kind == ".txt":
        lines = [{"text": " ".join(line.split())} for line in text.splitlines()]
    elif kind == ".json":
        lines = _segments(path, text)
    else:
        lines = subtitle_lines(path, text)
    kept = tuple(line for line in lines if normalise(line["text"]))
    if not kept:
        raise RecordError(f"{path.name}: no line of text in it, so there is nothing to align")
    return Script(printable(path), kept, timed=kind != ".txt")


def _segments(path: Path, text: str) -> list[Line]:
    try:
        return [
            {"text": str(one["text"]), "start": float(one["start"]), "end": float(one["end"])}
            for one in json.loads(text)["segments"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(
            f"{path.name}: no transcript in JSON ({type(error).__name__}: {error}): "
            'write it with `mllm transcribe --json`, {"segments": [{"start", "end", "text"}, …]}'
        ) from None


def words_in(text: str) -> list[tuple[str, float]]:
    """The words of a text, each with the part of the text that stands before it, 0 to 1.

    Where a script has no spaces, each of its characters is a word.
    """
    plain = normalise(text)
    return [(found[0], found.start() / len(plain)) for found in _WORD.finditer(plain)]


def word_vectors(words: Row[str]) -> np.ndarray:
    """float32 [words, DIM] of unit length: counts of groups of letters, hashed."""
    vectors = np.zeros((len(words), DIM), np.float32)
    for row, word in zip(vectors, words, strict=True):
        marked = f"^{word}$"
        for size in (2, GRAM):
            for place in range(len(marked) - size + 1):
                row[zlib.crc32(marked[place : place + size].encode()) % DIM] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def word_events(name: str, lines: Row[Line], seconds: float) -> Events:
    """The words of lines with times; within a line, a word stands where its first letter does.

    Raises:
        MediaError: if there are too few.
    """
    times, words = [], []
    for line in lines:
        for word, place in words_in(line["text"]):
            times.append(line["start"] + (line["end"] - line["start"]) * place)
            words.append(word)
    order = np.argsort(times, kind="stable")
    vectors = word_vectors(words)[order] if words else np.zeros((0, DIM), np.float32)
    return Events(name, np.array(times)[order] if times else np.zeros(0), vectors, seconds)


@dataclass(frozen=True)
class Reading:
    """A script without times, heard in a recording.

    Attributes:
        lines: `{"text", "start", "end"}`, times None where nothing of the line is heard.
        path: float64 [words, 2]: when a word is heard (s), and its number in the script.
        words: of the script.
    """

    lines: tuple[Line, ...]
    path: np.ndarray
    words: int

    @property
    def share(self) -> float:
        """Of the script's words that are heard."""
        return len(self.path) / self.words


def read_along(script: Script, spoken: Row[Line]) -> Reading:
    """Finds the words of a script among spoken ones by dynamic time warping over their letters.

    Args:
        spoken: words with times, as lines.
    """
    from dtaidistance.dtw import warping_path_fast

    written = script.words()
    heard = [(normalise(line["text"]), line) for line in spoken]
    heard = [(word, line) for word, line in heard if word]
    found: dict[int, tuple[float, Line]] = {}  # by written word: cosine, and the word that is heard
    if heard:
        one = word_vectors([word for word, _ in heard]).astype(np.float64)
        other = word_vectors([word for _, word in written]).astype(np.float64)
        band = max(10, round(BAND * max(len(one), len(other))))
        open_end = max(1, min(len(one), len(other)) // 4)
        for place, number in warping_path_fast(one, other, window=band, psi=open_end, use_ndim=True):
            cosine = float(one[place] @ other[number])
            if cosine >= ALIKE and cosine > found.get(number, (0.0,))[0]:
                found[number] = cosine, heard[place][1]
    mine: list[list[Line]] = [[] for _ in script.lines]
    for place, (line, _) in enumerate(written):
        mine[line] += [found[place][1]] if place in found else []
    lines = [
        {
            "text": line["text"],
            "start": min((word["start"] for word in words), default=None),
            "end": max((word["end"] for word in words), default=None),
        }
        for line, words in zip(script.lines, mine, strict=True)
    ]
    path = np.array([[found[number][1]["start"], number] for number in sorted(found)]).reshape(-1, 2)
    return Reading(tuple(lines), path, len(written))
