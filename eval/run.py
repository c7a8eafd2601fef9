"""Runs a benchmark on a model: answers with and without recordings, retrieval, result files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.benchmark import Benchmark, Candidate, Retrieval
from eval.metrics import other_tables, retrieval_scores, score_table
from eval.question import Question
from eval.scorers import Answered
from eval.targets import markdown
from mllm.errors import ConfigError, MllmError
from mllm.files import write_atomically
from mllm.records.answers import Backend, Generation, Progress, Unread

if TYPE_CHECKING:
    from mllm.media.clip import Clip
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.search.embedder import Embedder

LONG = ("captions", "transcripts")  # tables of questions with long answers


@dataclass
class SplitResult:
    """The results of one split; `missing` holds (id, cause) of questions with unreadable recordings."""

    rows: list[Answered]
    scores: dict[str, Any]
    tables: dict[str, dict[str, Any]]
    provenance: dict[str, str] = field(default_factory=dict)
    retrieval: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    missing: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything except the rows, for metrics.json."""
        return {
            **self.scores,
            "tables": list(self.tables),
            **self.tables,
            "retrieval": self.retrieval,
            "targets": self.targets,
            "seconds": round(self.seconds, 1),
            "missing": len(self.missing),
            "missing_recordings": [{"id": id, "cause": cause} for id, cause in self.missing],
            "provenance": self.provenance,
        }


def collect(benchmark: Benchmark, split: str) -> list[Question]:
    """All questions of a split, those with long answers last, so that batches stay homogeneous.

    Raises:
        ConfigError: if there are none.
    """
    found = list(benchmark.questions(split))
    if not found and type(benchmark).targets is Benchmark.targets:
        raise ConfigError(f"{benchmark.title}: {split} has no questions to ask")
    return sorted(found, key=lambda question: benchmark.scorer(question).table in LONG)


def evaluate(
    benchmark: Benchmark,
    split: str,
    questions: Sequence[Question],
    candidate: Candidate,
    generation: Generation,
    blind: bool = True,
    progress: Progress = lambda count: None,
) -> SplitResult:
    """Answers and scores one split, and runs its retrieval.

    Args:
        questions: see `collect`.
        blind: also answer every question without its recordings.
    """
    begin = time.monotonic()
    rows, missing = ask(benchmark, questions, candidate.backend, generation, blind, progress)
    found = retrieve(benchmark.retrieval(split), candidate.embedder) if candidate.embedder else {}
    targets = [target.as_dict() for target in benchmark.targets(rows, candidate, generation)]
    seconds = time.monotonic() - begin
    order = [type for types in benchmark.groups.values() for type in types]
    rank = {type: number for number, type in enumerate(order)}
    in_order = sorted(rows, key=lambda row: rank.get(row.question.type, len(rank)))
    return SplitResult(
        rows=rows,
        scores=score_table(in_order),
        tables=other_tables(in_order),
        provenance=provenance(benchmark, questions, generation) | {"model": candidate.weights},
        retrieval=found,
        targets=targets,
        seconds=seconds,
        missing=missing,
    )


def ask(
    benchmark: Benchmark,
    questions: Sequence[Question],
    backend: Backend,
    generation: Generation,
    blind: bool = True,
    progress: Progress = lambda count: None,
) -> tuple[list[Answered], list[tuple[str, str]]]:
    """Has the backend answer every question with its recordings and, if `blind`, again without.

    Returns:
        The answers, and (id, cause) of the questions with unreadable recordings. These are left out of the
        blind run too, so that all scores cover the same questions.

    Raises:
        MllmError: if no recording can be read.
    """
    answers = backend.answer([question.messages for question in questions], generation, progress)
    answered = list(zip(questions, answers, strict=True))
    missing = [(question.id, answer.cause) for question, answer in answered if isinstance(answer, Unread)]
    seen = [(question, answer) for question, answer in answered if not isinstance(answer, Unread)]
    if answered and not seen:
        raise MllmError(f"none of the {len(answered)} questions can be asked; the first: {missing[0][1]}")
    unseen: Sequence[str | Unread | None] = [None] * len(seen)
    if blind:
        # Without their recordings many questions are one and the same.
        prompts = [question.without_media for question, _ in seen]
        distinct = {str(prompt): prompt for prompt in prompts}
        of_prompt = dict(
            zip(distinct, backend.answer(list(distinct.values()), generation, progress), strict=True)
        )
        unseen = [of_prompt[str(prompt)] for prompt in prompts]
        progress(len(answered) - len(distinct))
    rows = [
        Answered(
            question,
            benchmark.scorer(question),
            benchmark.group(question),
            answer,
            without if isinstance(without, str) else None,
            benchmark.prior(question),
        )
        for (question, answer), without in zip(seen, unseen, strict=True)
    ]
    return rows, missing


def retrieve(sets: Iterable[Retrieval], embedder: Embedder) -> dict[str, Any]:
    """Recall between clips and captions in both directions, by modality."""
    known: dict[tuple[str, Any], np.ndarray] = {}
    found: dict[str, Any] = {}
    sets = list(sets)  # keeps clips alive, since `known` is keyed by identity
    for pairs in sets:
        labels = range(len(pairs.clips)) if pairs.labels is None else pairs.labels
        captions = [caption for of_clip in pairs.captions for caption in of_clip]
        of_captions = [label for label, some in zip(labels, pairs.captions, strict=True) for _ in some]
        if captions:
            media = _embedded(pairs, embedder, known)
            texts = embedder.embed_text(captions)
            found[pairs.modality] = retrieval_scores(media, texts, labels, of_captions)
    return found


def _embedded(pairs: Retrieval, embedder: Embedder, known: dict[tuple[str, Any], np.ndarray]) -> np.ndarray:
    """Vectors of the clips [clips, dim]; "both" is summed from picture and sound if both are `known`."""

    def key(modality: str, clip: str | Clip) -> tuple[str, Any]:
        return modality, clip if isinstance(clip, str) else id(clip)

    if pairs.modality == "both":
        for clip in pairs.clips:
            sides = [known.get(key(side, clip)) for side in ("video", "audio")]
            if sides[0] is not None and sides[1] is not None:
                summed = sides[0] + sides[1]
                known[key("both", clip)] = summed / np.linalg.norm(summed)
    new = [clip for clip in pairs.clips if key(pairs.modality, clip) not in known]
    for clip, vector in zip(new, embedder.embed_clips(new, pairs.modality), strict=True):
        known[key(pairs.modality, clip)] = vector
    return np.stack([known[key(pairs.modality, clip)] for clip in pairs.clips])


def provenance(benchmark: Benchmark, questions: Sequence[Question], generation: Generation) -> dict[str, str]:
    """Hashes of the evaluation; two scores are comparable if these are equal.

    Returns:
        {"data": over ids, truths and all other fields of the records, "prompts": over the prompts, the spans
        of the recordings and the generation settings}.
    """
    data = hashlib.sha256()
    prompts = hashlib.sha256(_json([dict(benchmark.prompts), asdict(generation)]))
    for question in sorted(questions, key=lambda question: question.id):
        facts = {name: value for name, value in question.record.items() if name != "messages"}
        data.update(_json([question.id, question.type, question.truths, facts]))
        # Without the paths of recordings, which differ between machines.
        prompt = [
            [message["role"]]
            + [
                {key: part.get(key) for key in ("type", "text", "start", "end")}
                for part in message["content"]
            ]
            for message in question.messages
        ]
        prompts.update(_json([question.id, prompt]))
    return {"data": data.hexdigest(), "prompts": prompts.hexdigest()}


def weights_digest(model: MllmForConditionalGeneration) -> str:
    """A hash of all weights in memory, with adapters and merges."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()


def write_results(folder: Path, header: dict[str, Any], results: dict[str, SplitResult]) -> dict[str, Any]:
    """Writes metrics.json and predictions.jsonl, each whole or not at all; returns the former."""
    metrics = header | {"splits": {split: result.as_dict() for split, result in results.items()}}
    lines = [
        json.dumps({"split": split, **_line(row)}, ensure_ascii=False)
        for split, result in results.items()
        for row in result.rows
    ]
    write_atomically(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    if tables := [markdown(result.targets) for result in results.values() if result.targets]:
        write_atomically(folder / "table.md", "\n".join(tables))
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def _line(row: Answered) -> dict[str, Any]:
    question = row.question
    return {
        "id": question.id,
        "type": question.type,
        "group": row.group,
        "question": question.text,
        "truth": question.truth,
        "prediction": row.prediction,
        "blind": row.blind,
        "prior": row.prior,
        "right": row.right,
        "score": row.score,
    }
