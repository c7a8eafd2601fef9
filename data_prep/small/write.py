"""`mllm data small`: writes the data of the checkpoint `small`."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.small.attribution import attribution
from data_prep.small.chat import write_chat
from data_prep.small.made import Plan, copies, short_speech, write_media
from data_prep.small.mixtures import SET as MIXTURES
from data_prep.small.mixtures import compared, mixtures
from data_prep.small.phrasing import things
from data_prep.small.questions import EMOTIONS, Questions
from data_prep.small.sets import Recording, held_back, read_sets
from mllm.files import alone_in, write_atomically
from mllm.records.record import Record, write_records

FEW = 2  # questions about a recording in val.jsonl
Groups = list[list[Record]]
Progress = Callable[[Iterator], Iterable]


@dataclass(frozen=True)
class Written:
    """What was written: the number of rows in each file, and of training rows of each task."""

    rows: dict[str, int]
    tasks: dict[str, int]


def write_small(
    folder: Path,
    out: Path,
    seed: int = 0,
    without: Iterable[str] = (),
    chat: int = 1500,
    base: str = "smollm2-135m",
    workers: int | None = None,
    progress: Progress = iter,
) -> Written:
    """Writes train.jsonl, val.jsonl, pairs.jsonl, chat.jsonl, test_*.jsonl and attribution.md into `out`.

    Media and chat that are there already, of an earlier call with the same seed, are kept.

    Args:
        without: names of sets to leave out.
        chat: conversations without a recording; 0 for none.
        base: name or folder of the decoder that answers them.

    Raises:
        MllmError: if a set is missing, or another call works in `out`.
    """
    without = tuple(without)
    with alone_in(out, "mllm data small"):
        known = read_sets(folder, "train", without)
        words = _vocabulary(known)
        training, validation = held_back(known)
        testing = read_sets(folder, "test", without)
        plans = {split: Plan(out / "media", split, seed) for split in ("train", "test")}  # type: ignore[arg-type]
        training += [*copies(plans["train"], training), *short_speech(plans["train"], training)]
        mixed = mixtures(plans["train"], [r for r in training if r.set != "words"])
        mixed_test = mixtures(plans["test"], testing)
        for plan in plans.values():
            write_media(plan, workers, progress)
        ask, ask_test = Questions("train", seed, words), Questions("test", seed, words)
        groups = _groups(ask, [*_with_sound_alone(training), *mixed])
        pairs = [_pair(rows[0]) for rows in groups if rows[0].get("captions")]
        groups += compared(plans["train"], training)
        talk = write_chat(out, base, chat, seed, progress) if chat else []
        groups += [[row] for row in _heard(talk, training, seed)]
        random.Random(seed).shuffle(groups)
        files: dict[str, list[Record]] = {
            "train": [row for rows in groups for row in rows],
            "val": [row for recording in validation for row in ask.rows(recording, FEW)],
            "pairs": pairs,
            **({"chat": talk} if talk else {}),
            **_tests([*_groups(ask_test, [*testing, *mixed_test]), *compared(plans["test"], testing)]),
        }
        for name, rows in files.items():
            write_records(out / f"{name}.jsonl", rows)
        write_atomically(out / "attribution.md", attribution(known))
    counts = {name: len(rows) for name, rows in files.items()}
    return Written(counts, dict(Counter(row["task"] for row in files["train"])))


def _groups(ask: Questions, recordings: Iterable[Recording]) -> Groups:
    return [rows for recording in recordings if (rows := ask.rows(recording))]


def _with_sound_alone(recordings: Iterable[Recording]) -> Iterable[Recording]:
    """Each recording, and the sound alone of each talking face."""
    for recording in recordings:
        yield recording
        if "face" in recording.facts:
            yield recording.heard()


def _vocabulary(recordings: list[Recording]) -> dict[str, list[str]]:
    """The words that closed lists are drawn from."""
    words: dict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        for fact in ("keyword", "thing", "event"):
            if fact in recording.facts:
                words[fact].add(recording.facts[fact])
        words["object"].update(recording.facts.get("objects") or ())
    events = [event for event in things()["sounds"] if event in words["event"]]  # in the set's own order
    return {fact: sorted(names) for fact, names in words.items()} | {"emotion": EMOTIONS, "event": events}


def _tests(groups: Groups) -> dict[str, list[Record]]:
    """Test rows by the name of their file: task and set; language joins the sets, but for FSDD."""
    files: dict[str, list[Record]] = defaultdict(list)
    for row in (row for rows in groups for row in rows):
        joined = row["task"] == "language" and row["source"] not in ("fsdd", MIXTURES)
        files[f"test_{row['task']}" + ("" if joined else f"_{row['source']}")].append(row)
    return dict(files)


def _heard(talk: list[Record], recordings: list[Recording], seed: int) -> Iterator[Record]:
    """Conversations begun with a recording that they do not speak of; the answers stay.

    Those without a recording stand in chat.jsonl alone, from where a training mixes in as many as it wants.
    """
    rng = random.Random(f"{seed} heard")
    for row in talk:
        opening, *rest = row["messages"]
        if opening["role"] == "user":
            part = rng.choice(recordings).part
            content = [part, {"type": "text", "text": opening["content"]}]
            yield row | {
                "id": row["id"] + "/heard",
                "messages": [{"role": "user", "content": content}, *rest],
            }


def _pair(row: Record) -> Record:
    """The caption row of a recording, for the contrastive stage."""
    part = row["messages"][0]["content"][0]
    return {
        "id": row["id"].rsplit("/", 2)[0] + "/captions",
        "messages": [{"role": "user", "content": [part]}],
        "task": "caption",
        "source": row["source"],
        "captions": row["captions"],
    }
