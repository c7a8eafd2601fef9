"""`mllm eval real`: real recordings that training has neither heard nor seen, against what must be reached.

    mllm eval real --model small --data SETS --dtype bfloat16 --features .mllm/features

SETS is a folder of labelled sets in the form of records (real_esc10, real_grid, …, fsdd). Rows, floors and
aims stand in real.yaml; a row whose sets are not there is left out. The questions are about the test part of
each set, in the phrasings that `mllm data small` keeps from training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eval.benchmark import Benchmark, Candidate
from eval.benchmarks.real_rows import Row, Sets, find_records, recording_of, rows_of, spread
from eval.metrics import interval, score_table
from eval.question import Question
from eval.scorers import Answered, CaptionF1, Choice, ExactMatch, Scorer, WordErrors
from eval.targets import Target
from mllm.errors import ConfigError
from mllm.records.answers import Generation
from mllm.records.chat import validate_messages
from mllm.scores import word_errors
from mllm.yaml_text import read_yaml

if TYPE_CHECKING:
    from eval.probe import FrozenFeatures, LogisticRegression
    from mllm.search.embedder import Embedder

_log = logging.getLogger(f"mllm.{__name__}")

SWAPPED = 60  # questions of a row that are asked once more about another recording
PROBED = 1500  # recordings of a row that a linear probe learns from
PHRASINGS = ("test", "own", "both")


class Real(Benchmark):
    """Real recordings by task, with floors and aims, beside majority, blind guesses and a linear probe.

    Rows: digits, emotions, sounds, Arabic words, age, language, what a talking face says, pictures, captions,
    search, and whether the decoder still talks and knows plain facts.
    """

    name = "real"

    def __init__(
        self,
        data: Annotated[Path, typer.Option(help="The folder of labelled sets.", envvar="MLLM_REAL_DATA")],
        only: Annotated[list[str] | None, typer.Option(help="A row; repeatable. Default: all.")] = None,
        limit: Annotated[int | None, typer.Option(min=1, help="Questions of a row.")] = None,
        phrasings: Annotated[
            str, typer.Option(help="test: never trained; own: those of the sets' records; both.")
        ] = "test",
        swap: Annotated[bool, typer.Option(help="Ask some questions about another recording.")] = True,
        probe: Annotated[bool, typer.Option(help="Read each task from the frozen features.")] = True,
    ):
        settings = read_yaml(Path(__file__).with_suffix(".yaml"))
        names = [*settings["rows"], *settings["find"], "blind", "chat", "facts"]
        if wrong := [name for name in only or () if name not in names]:
            raise ConfigError(f"--only is '{wrong[0]}': choose from {', '.join(names)}")
        if phrasings not in PHRASINGS:
            raise ConfigError(f"--phrasings is '{phrasings}': choose from {', '.join(PHRASINGS)}")
        if not data.is_dir():
            raise ConfigError(f"--data {data} is not a folder: name that of the labelled sets")
        self.limit, self.swap, self.probe = limit, swap, probe
        self.sets = Sets(data, phrasings)
        self.chosen = only or names
        self.known = rows_of(settings["rows"])
        self.rows = [row for name, row in self.known.items() if name in self.chosen and self.sets.has(row)]
        self.others = {name: settings[name] for name in ("blind", "chat", "facts")}
        self.find = settings["find"]
        self.groups = {"real": tuple(row.name for row in self.rows)}

    @property
    def settings(self) -> dict[str, Any]:
        """Which rows are asked, and how."""
        return {
            "rows": [row.name for row in self.rows],
            "limit": self.limit,
            "phrasings": self.sets.phrasings,
        }

    def questions(self, split: str) -> Iterable[Question]:
        """The questions of all rows; those about a recording stand together, so that it is read once."""
        found = [question for row in self.rows for question in self.sets.questions(row, split, self.limit)]
        place = {recording_of(question): number for number, question in reversed(list(enumerate(found)))}
        return sorted(found, key=lambda question: place[recording_of(question)])

    def scorer(self, question: Question) -> Scorer:
        """By the task of its row: word errors, token F1, choice, or exact match."""
        own = {"transcript": WordErrors(), "caption": CaptionF1()}.get(self.known[question.type].task or "")
        return own or (Choice() if question.options else ExactMatch())

    def targets(
        self, rows: Sequence[Answered], candidate: Candidate, generation: Generation
    ) -> Iterable[Target]:
        """The table: each row of questions, then search, blind guesses and plain chat."""
        from eval.benchmarks.real_chat import chat_target, facts_target

        measured = _Measured(self, candidate, generation)
        worst: list[tuple[float, str]] = []
        for row in self.rows:
            if some := [one for one in rows if one.question.type == row.name]:
                target = measured.target(row, some)
                yield target
                if target.blind is not None and target.majority is not None:
                    worst.append((target.blind - target.majority, row.name))
        for name, settings in self.find.items():
            there = (self.sets.folder / settings["from"] / "test.jsonl").is_file()
            if name in self.chosen and candidate.embedder and there:
                yield _found(settings, self.sets, candidate.embedder)
        if "blind" in self.chosen and worst:
            over, name = max(worst)
            settings = self.others["blind"]
            title = f"{settings['title']} ({name})"
            yield Target(title, over, len(worst), floor=settings["floor"], less_is_better=True)
        if "chat" in self.chosen and candidate.local:
            yield from chat_target(self.others["chat"], self.sets.folder, candidate.local)
        if "facts" in self.chosen:
            yield from facts_target(self.others["facts"], candidate.backend)


class _Measured:
    """What is measured beside the answers themselves.

    Args:
        candidate: a linear probe needs its model in this process.
    """

    def __init__(self, benchmark: Real, candidate: Candidate, generation: Generation):
        self.benchmark, self.candidate, self.generation = benchmark, candidate, generation
        self._probes: dict[str, LogisticRegression] = {}

    @cached_property
    def features(self) -> FrozenFeatures | None:
        """The frozen features of recordings; None without a model in this process."""
        from eval.probe import FrozenFeatures

        local = self.candidate.local if self.benchmark.probe else None
        return FrozenFeatures(local.model, local.processor) if local else None

    def target(self, row: Row, some: Sequence[Answered]) -> Target:
        """The row of the table about the answers to these questions."""
        values, weights = self.values([(one.question, one.prediction) for one in some])
        low, high = interval(values, [row.cluster_of(one.question) for one in some], weights)
        blind = [(one.question, one.blind) for one in some if one.blind is not None]
        swapped, changed = self.swapped(some) if self.benchmark.swap else (None, None)
        floor, probe = row.floor, self.probe(row, [one.question for one in some])
        guessed = self.mean(blind) if blind else None
        if row.task == "caption":
            floor = max((value for value in (guessed, probe) if value is not None), default=None)
        return Target(
            title=row.title,
            score=sum(values) / sum(weights),
            count=len(some),
            low=low,
            high=high,
            majority=score_table(some)["types"].get(row.name, {}).get("majority"),
            blind=guessed,
            probe=probe,
            swapped=swapped,
            changed=changed,
            floor=floor,
            aim=row.aim,
            less_is_better=row.task == "transcript",
        )

    def values(self, answers: Sequence[tuple[Question, str]]) -> tuple[list[float], list[float]]:
        """Scores and weights whose weighted mean is the score of a row; for transcripts, errors and words."""
        found = []
        for question, answer in answers:
            scorer = self.benchmark.scorer(question)
            if isinstance(scorer, WordErrors):
                errors, words = word_errors(answer, question.truth)
                found.append((float(errors) / words, float(words)))
            else:
                found.append((scorer.score(question, answer), 1.0))
        return [value * weight for value, weight in found], [weight for _, weight in found]

    def mean(self, answers: Sequence[tuple[Question, str]]) -> float:
        """The score of a row with these answers."""
        values, weights = self.values(answers)
        return sum(values) / sum(weights)

    def swapped(self, some: Sequence[Answered]) -> tuple[float | None, float | None]:
        """(score by the truth of the first recording, share of changed answers) with another recording."""
        pairs = []
        for number, one in spread(list(enumerate(some)), SWAPPED):
            later = [some[(number + len(some) // 2 + step) % len(some)] for step in range(len(some))]
            other = next((other for other in later if other.question.truth != one.question.truth), None)
            if other is not None:
                pairs.append((one, other))
        if not pairs:
            return None, None
        asked = [_about(one.question, other.question) for one, other in pairs]
        answers = [str(answer) for answer in self.candidate.backend.answer(asked, self.generation)]
        changed = [answer != one.prediction for (one, _), answer in zip(pairs, answers, strict=True)]
        score = self.mean([(one.question, answer) for (one, _), answer in zip(pairs, answers, strict=True)])
        return score, sum(changed) / len(changed)

    def probe(self, row: Row, questions: Sequence[Question]) -> float | None:
        """The score of a linear probe; of a caption, that of the most similar training recording."""
        features, known = self.features, self.benchmark.known[row.probe or row.name]
        if row.side is None or features is None or row.side not in features.model.model.towers:
            return None
        if not self.benchmark.sets.has(known, "train"):
            return None
        _log.info("%s: a linear probe of the frozen features", row.name)
        read = features.of(row.side, [recording_of(question) for question in questions])
        if row.task == "caption":
            train = self.benchmark.sets.questions(row, "train")
            seen = features.of(row.side, [recording_of(question) for question in train])
            mean, scale = seen.mean(0), seen.std(0) + 1e-6
            nearest = (_unit((read - mean) / scale) @ _unit((seen - mean) / scale).T).argmax(1)
            return self.mean(
                [(question, train[i].truth) for question, i in zip(questions, nearest, strict=True)]
            )
        probe = self._probe(known, features)
        right = []
        for question, odds in zip(questions, probe.log_odds(read), strict=True):
            allowed = [i for i, name in enumerate(probe.classes) if not row.of or name in question.options]
            guess = probe.classes[max(allowed, key=lambda i: odds[i])]
            right.append(guess == question.truth)
        return sum(right) / len(right)

    def _probe(self, row: Row, features: FrozenFeatures) -> LogisticRegression:
        from eval.probe import LogisticRegression

        if row.name not in self._probes:
            train = self.benchmark.sets.questions(row, "train", PROBED)
            self._probes[row.name] = LogisticRegression(
                features.of(row.side or "", [recording_of(question) for question in train]),
                [question.truth for question in train],
                [row.group_of(question) for question in train],
            )
        return self._probes[row.name]


def _about(question: Question, other: Question) -> list[Any]:
    """The messages of a question about the recording of another."""
    (recording,) = validate_messages(other.messages).media
    return validate_messages(question.messages).with_media(lambda part: recording)


def _found(settings: dict[str, Any], sets: Sets, embedder: Embedder) -> Target:
    """Whether texts find a recording of their class first; queries about one class are drawn together."""
    paths, labels = find_records(settings, sets)
    queries = [(label, text) for label in sorted(set(labels)) for text in settings["queries"]]
    media = embedder.embed_clips(paths, settings["modality"])
    texts = embedder.embed_text([text.replace("{}", label) for label, text in queries])
    nearest = (texts @ media.T).argmax(1)
    hits = [float(labels[i] == label) for (label, _), i in zip(queries, nearest, strict=True)]
    low, high = interval(hits, [label for label, _ in queries])
    chance = max(map(labels.count, labels)) / len(labels)
    title, floor, aim = settings["title"], settings["floor"], settings["aim"]
    return Target(title, sum(hits) / len(hits), len(hits), low, high, majority=chance, floor=floor, aim=aim)


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return unit
