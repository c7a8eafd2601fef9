"""Reads the open sets as recordings with facts, whatever their records ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from data_prep.world.scene import rng_for
from mllm.errors import MllmError
from mllm.records.record import Record, first_media, read_records
from mllm.yaml_text import read_yaml

Split = Literal["train", "test"]
Facts = dict[str, Any]

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LANGUAGES = ["English", "German", "Arabic"]
FSDD_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
HELD_OUT = range(5, 10)  # takes of FSDD, as in configs/digits.yaml
HELD_BACK = 0.015  # share of the training recordings of a set that only validation asks about
NEVER_HELD_BACK = ("sintel", "intel_clips", "toy_clips")  # their recordings overlap, or are few


@dataclass(frozen=True)
class Recording:
    """One recording and what is known about it.

    Attributes:
        part: the media part of a message, with an absolute path.
        facts: by name: text, language, age, emotion, event, thing, keyword, digit, colour, letter, command,
            adverb, seen (captions of what is to be seen), wear, objects, speech (whether anyone speaks).
        family: recordings with the same family stay on one side of the validation split.
        credit: author, title, url and licence, where each recording has its own.
    """

    id: str
    set: str
    part: dict[str, Any]
    facts: Facts
    family: str = ""
    credit: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The recording's file."""
        return Path(self.part[self.part["type"]])

    @property
    def is_sound(self) -> bool:
        """Whether nothing of it is seen."""
        return bool(self.part["type"] == "audio")

    def heard(self) -> Recording:
        """The sound of a video alone."""
        path = self.part["video"]
        return replace(self, id=f"{self.id}/sound", part={"type": "audio", "audio": path})


@cache
def known_sets() -> dict[str, dict[str, str]]:
    """Name, title, source, licence and changes of every set, by the name of its folder."""
    return read_yaml(Path(__file__).with_name("sets.yaml"))


def read_sets(folder: Path, split: Split, without: Iterable[str] = ()) -> list[Recording]:
    """The recordings of the sets in `folder` in the order of sets.yaml.

    Args:
        without: names of sets or of their folders to leave out.

    Raises:
        MllmError: if a set is not there, or `without` names none of them.
    """
    left_out = set(without)
    names = {name for key, entry in known_sets().items() for name in (key, entry["name"])}
    if strange := sorted(left_out - names):
        known = ", ".join(entry["name"] for entry in known_sets().values())
        raise MllmError(f"--without {strange[0]}: no such set: choose from {known}")
    wanted = {
        key: entry["name"] for key, entry in known_sets().items() if not left_out & {key, entry["name"]}
    }
    missing = [key for key in wanted if not (folder / key).is_dir()]
    if missing:
        flags = " ".join(f"--without {wanted[key]}" for key in missing)
        raise MllmError(f"{folder}: no {', '.join(missing)}: put it there, or leave it out with {flags}")
    return [recording for key in wanted for recording in READERS[wanted[key]](folder / key, split)]


def held_back(recordings: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """(for training, for validation): whole families, the same ones each time."""
    kept: list[Recording] = []
    back: list[Recording] = []
    for recording in recordings:
        drawn = rng_for("held back", recording.set, recording.family or recording.id).random()
        apart = recording.set not in NEVER_HELD_BACK and drawn < HELD_BACK
        (back if apart else kept).append(recording)
    return kept, back


def _rows(folder: Path, split: Split) -> Iterator[Record]:
    """The records of a set's part; those of a set without parts are for training."""
    path = folder / f"{split}.jsonl"
    if not path.exists() and (folder / "records.jsonl").exists():
        if split == "test":
            return
        path = folder / "records.jsonl"
    yield from read_records(path)


def _one(name: str, facts: Callable[[Record], Facts | None], family: str = "") -> Callable:
    """A reader of a set whose records are one or more rows to a recording, joined by the facts of each row.

    Args:
        facts: of one row; None leaves the row out.
        family: the label by which recordings belong together.
    """

    def read(folder: Path, split: Split) -> Iterator[Recording]:
        found: dict[str, Recording] = {}
        for record in _rows(folder, split):
            known = facts(record)
            part = first_media(record)
            if known is None or part is None:
                continue
            key = repr(sorted(part.items()))
            labels = record.get("labels") or {}
            if key not in found:
                found[key] = Recording(
                    record["id"], name, dict(part), {}, labels.get(family, ""), record.get("credit") or {}
                )
            found[key].facts.update(known)
        yield from found.values()

    return read


def _fsdd(folder: Path, split: Split) -> Iterator[Recording]:
    """Takes 5 to 9 of each digit and speaker are the test, those from 10 on are trained."""
    for path in sorted((folder / "recordings").glob("*.wav")):
        name = FSDD_NAME.fullmatch(path.name)
        if not name:
            raise MllmError(f"{path}: not named like 7_jackson_32.wav: take it out of the folder")
        index = int(name[3])
        if split != ("test" if index in HELD_OUT else "train") or index < HELD_OUT.start:
            continue
        facts = {"digit": DIGITS[int(name[1])], "speech": True, "speaker": name[2]}
        yield Recording(f"fsdd/{path.stem}", "fsdd", {"type": "audio", "audio": str(path.absolute())}, facts)


def _esc10(record: Record) -> Facts:
    return {"event": record["answer"], "speech": False}


def _grid(record: Record) -> Facts:
    facts = {key: record["labels"][key] for key in ("colour", "digit", "letter", "adverb", "command")}
    if record["task"] == "transcript":
        facts |= {"text": record["answer"], "words": record["words"]}
    return facts | {"language": "English", "speech": True, "face": True}


def _speechocean(record: Record) -> Facts:
    known = {"age": record["answer"]} if record["task"] == "age_group" else {"text": record["answer"]}
    return known | {"language": "English", "speech": True, "speaker": record["labels"]["speaker"]}


def _arabic(record: Record) -> Facts:
    speaker = record["labels"]["speaker"]
    return {"keyword": record["answer"], "language": "Arabic", "speech": True, "speaker": speaker}


def _emodb(record: Record) -> Facts:
    speaker = record["labels"]["actor"]
    return {"emotion": record["answer"], "language": "German", "speech": True, "speaker": speaker}


def _kerstin(record: Record) -> Facts:
    return {"text": record["answer"], "language": "German", "speech": True}


def _caltech(record: Record) -> Facts:
    return {"thing": record["answer"]}


def _coco(record: Record) -> Facts | None:
    """Only pictures whose licence allows what is made of them to be passed on."""
    if record["labels"].get("free") is not True:
        return None
    record["credit"] = (record.get("credit") or {}) | {"licence": record["labels"]["licence"]}
    return {"seen": record["captions"]["video"], "objects": sorted(record["labels"]["objects"])}


def _film(record: Record) -> Facts | None:
    if record["task"] == "transcript":
        short = len(record["answer"]) <= 60
        return {"text": record["answer"], "speech": True, "language": "English"} if short else None
    return {"seen": record["captions"]["video"]}


def _clips(silent: bool) -> Callable[[Record], Facts]:
    def facts(record: Record) -> Facts:
        known: Facts = {"silent": silent}
        if record["task"] == "caption":
            known["seen"] = record["captions"]["video"]
        elif record["task"] == "qa":
            known["wear"] = record["answer"]
        else:
            known |= {"filmed": record["answer"], "filmed_options": record["options"]}
        return known

    return facts


READERS: dict[str, Callable[[Path, Split], Iterator[Recording]]] = {
    "esc10": _one("esc10", _esc10, family="freesound"),
    "grid": _one("grid", _grid),
    "speechocean762": _one("speechocean762", _speechocean),
    "arabic_commands": _one("arabic_commands", _arabic),
    "emodb": _one("emodb", _emodb),
    "kerstin_de": _one("kerstin_de", _kerstin),
    "caltech101": _one("caltech101", _caltech),
    "coco_mini": _one("coco_mini", _coco),
    "sintel": _one("sintel", _film),
    "intel_clips": _one("intel_clips", _clips(silent=True)),
    "toy_clips": _one("toy_clips", _clips(silent=False)),
    "fsdd": _fsdd,
}
