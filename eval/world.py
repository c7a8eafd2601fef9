"""`mllm eval world`: the generated world's questions and pairs, put to a checkpoint or to a server.

A split is evaluated on its first scenes, with the questions that the world asks about them. Records come
through `records.open_source`, so this file knows the world only by the names of its question types.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics import CAPTION, Answered, AnswerPrior, caption_table, retrieval_scores, score_table
from mllm.errors import ConfigError, MllmError
from mllm.files import write_atomically
from mllm.records import chat
from mllm.records.answers import Backend, Progress, Unread
from mllm.records.record import Record
from mllm.records.source import DataSource, open_source

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

# What a question needs: the sound, the picture, both of one moment, a still, two recordings, the honest
# answer that a side is missing, or no recording at all.
GROUPS = {
    "audio": ("kind", "beeps", "word", "emotion", "first_sound", "when_sound"),
    "video": ("colour", "shape", "motion", "count", "first_colour", "when_shape"),
    "joint": ("see_at_sound", "hear_at_shape", "order", "named"),
    "image": ("image_colour", "image_shape", "image_count"),
    "two": ("two_shape", "two_sound"),
    "missing": ("no_sound", "no_picture"),
    "chat": ("chat",),
    CAPTION: ("caption_video", "caption_audio", "caption_both"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names} | {"caption": CAPTION}
PRIOR_SCENES = 4000

Say = Callable[[str], None]


@dataclass
class Question:
    """A record as it is put to a backend: `messages` end with the user's question."""

    id: str
    type: str
    text: str
    truth: str
    messages: list[dict]

    @property
    def group(self) -> str:
        return _GROUP_OF.get(self.type, "other")

    @property
    def without_media(self) -> list[dict]:
        """The same words, and nothing to look at or listen to."""
        nothing = [{"type": "text", "text": "?"}]  # of a message that is a recording alone
        return [
            message | {"content": [part for part in message["content"] if part["type"] == "text"] or nothing}
            for message in chat.validate_messages(self.messages)
        ]


@dataclass
class SplitResult:
    """All that one split gave; `missing` has (id, cause) of questions whose recordings cannot be read."""

    rows: list[Answered]
    scores: dict[str, Any]
    captions: dict[str, Any]
    retrieval: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    missing: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the rows, for metrics.json."""
        return {
            **self.scores,
            "captions": self.captions,
            "retrieval": self.retrieval,
            "seconds": round(self.seconds, 1),
            "missing": len(self.missing),
            "missing_recordings": [{"id": id, "cause": cause} for id, cause in self.missing],
        }


def question_of(record: Record) -> Question:
    """The last question of a record; earlier turns stay in its prompt."""
    messages = chat.validate_messages(record["messages"])
    truth = record.get("answer")
    if messages[-1]["role"] == "assistant":
        truth = truth or "".join(part["text"] for part in messages[-1]["content"])
        messages = messages[:-1]
    text = " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
    return Question(record.get("id") or text, record.get("task") or "qa", text, truth or "", messages)


def collect(source: DataSource) -> list[Question]:
    """All questions of a source, captions last (their answers are long: so batches stay even)."""
    found = [question_of(record) for index in range(len(source)) for record in source.conversations(index)]
    if not found:
        raise ConfigError(f"{source.name} has no questions to ask")
    return sorted(found, key=lambda question: question.group == CAPTION)


def ask(
    questions: Sequence[Question],
    backend: Backend,
    prior: AnswerPrior | None = None,
    blind: bool = True,
    progress: Progress = lambda count: None,
) -> tuple[list[Answered], list[tuple[str, str]]]:
    """Put every question to the backend, with its recordings and (`blind`) once more without.

    Returns:
        What was answered; and (id, cause) of the questions whose recordings cannot be read. These are not
        asked blindly either, so that all numbers are about the same questions.

    Raises:
        MllmError: if none can be.
    """
    said = list(
        zip(questions, backend.answer([q.messages for q in questions], progress=progress), strict=True)
    )
    missing = [(question.id, answer.cause) for question, answer in said if isinstance(answer, Unread)]
    seen = [(question, answer) for question, answer in said if not isinstance(answer, Unread)]
    if not seen:
        raise MllmError(f"none of the {len(said)} questions can be asked; the first: {missing[0][1]}")
    unseen: Sequence[Any] = [None] * len(seen)
    if blind:
        unseen = backend.answer([question.without_media for question, _ in seen], progress=progress)
        progress(len(missing))
    rows = [
        Answered(q.id, q.type, q.group, q.text, q.truth, answer, without, prior(q.text) if prior else None)
        for (q, answer), without in zip(seen, unseen, strict=True)
    ]
    return rows, missing


def train_prior(scenes: int = PRIOR_SCENES) -> AnswerPrior:
    """The world's training answers by question text, from its text alone: nothing is drawn or played."""
    source = open_source(f"world:train,clips={scenes}")

    def pairs() -> Iterable[tuple[str, str]]:
        for index in range(len(source)):
            for messages in source.text(index):
                *_, asked, answered = chat.validate_messages(messages)
                # The last text is the question; one before it tells what the recording would show.
                yield asked["content"][-1]["text"], answered["content"][-1]["text"]

    return AnswerPrior(pairs())


def retrieve(source: DataSource, embedder: Embedder, clips: int) -> dict[str, Any]:
    """Recall both ways between clips and captions, for picture, sound and the two together."""
    pairs = [source.pair(index) for index in range(min(clips, len(source)))]
    vectors: dict[str, dict[int, np.ndarray]] = {}
    for kind in ("video", "audio"):
        told = [i for i, pair in enumerate(pairs) if pair["captions"].get(kind)]
        embedded = embedder.embed_clips([pairs[i]["clip"] for i in told], kind)
        vectors[kind] = dict(zip(told, embedded, strict=True))
    # What Embedder's "both" would be, without running the towers again.
    summed = {i: vectors["video"][i] + vectors["audio"][i] for i in vectors["video"] if i in vectors["audio"]}
    vectors["both"] = {
        i: vector / np.linalg.norm(vector) for i, vector in summed.items() if pairs[i]["captions"].get("both")
    }
    found = {}
    for kind, of_kind in vectors.items():
        if of_kind:
            captions = [pairs[i]["captions"][kind] for i in of_kind]
            media, texts = np.stack(list(of_kind.values())), embedder.embed_text(captions)
            found[kind] = retrieval_scores(media, texts, list(map(said_alike, captions)))
    return found


def said_alike(caption: str) -> str:
    """One key for the world's three ways to say a thing: "a, then b.", "first a, then b.", "a. then b."."""
    return caption.strip().rstrip(".").removeprefix("first ").replace(". then ", ", then ")


def evaluate(
    questions: Sequence[Question],
    backend: Backend,
    embedder: Embedder | None = None,
    pairs: DataSource | None = None,
    prior: AnswerPrior | None = None,
    blind: bool = True,
    progress: Progress = lambda count: None,
) -> SplitResult:
    """One split, whole.

    Args:
        questions: see `collect`.
        backend: who answers.
        embedder, pairs: what searches, and the clips with captions it searches among; None leaves search out.
        prior, blind: see `ask`.
        progress: called with the number of answers that have just come.
    """
    begin = time.monotonic()
    rows, missing = ask(questions, backend, prior, blind, progress)
    found = retrieve(pairs, embedder, len(pairs)) if embedder is not None and pairs is not None else {}
    seconds = time.monotonic() - begin
    in_order = sorted(rows, key=lambda row: list(_GROUP_OF).index(row.type) if row.type in _GROUP_OF else 99)
    return SplitResult(rows, score_table(in_order), caption_table(in_order), found, seconds, missing)


def write_files(split: str, clips: int, questions: int, seed: int, folder: Path) -> DataSource:
    """The split as media files, made by `mllm data world` unless they are there already.

    Raises:
        MllmError: if that command fails.
    """
    # Named after what it holds: clips of another version of the world would be asked about in its words.
    world = open_source(f"world:{split},seed={seed},questions={questions}")
    told = json.dumps([world.text(scene) for scene in range(min(clips, 50))])
    out = folder / f"{split}-{clips}x{questions}-seed{seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    if not (out / "records.jsonl").is_file():
        command = [
            sys.executable,
            "-m",
            "mllm.command.cli",
            "data",
            "world",
            "--out",
            str(out),
            "--split",
            split,
        ]
        command += ["--clips", str(clips), "--questions", str(questions), "--seed", str(seed)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
            raise MllmError(f"the clips of {split} could not be written to {out}: {cause}")
    return open_source(str(out / "records.jsonl"), media_must_exist=False)


def write_results(folder: Path, header: dict[str, Any], results: dict[str, SplitResult]) -> dict[str, Any]:
    """Write metrics.json and predictions.jsonl, each whole or not at all; returns what metrics.json holds."""
    metrics = header | {"splits": {split: result.as_dict() for split, result in results.items()}}
    lines = [
        json.dumps({"split": split, **asdict(row), "right": row.right}, ensure_ascii=False)
        for split, result in results.items()
        for row in result.rows
    ]
    write_atomically(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics
