"""How often each question type occurs, and the share of its commonest answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_prep.world.source import WorldSource

SLACK = 0.03  # what the commonest answer may exceed 1 / answers by


@dataclass(frozen=True)
class Balance:
    """One question type: its share of all questions, and its commonest answer.

    `limit` is 1 / (number of answers) + SLACK; None for types whose answers are sentences.
    """

    type: str
    questions: int
    share: float
    answers: int
    commonest: str
    majority: float
    limit: float | None


def balance_table(source: WorldSource, clips: int | None = None) -> list[Balance]:
    """Counts the questions of the first `clips` scenes (all when None). Nothing is drawn or played."""
    counts: dict[str, Counter] = {}
    options: dict[str, int] = {}
    for index in range(len(source) if clips is None else clips):
        episode = source.episode(index)
        for record in source.about(episode, [None] * len(episode.scenes)):
            counts.setdefault(record["task"], Counter())[record["answer"]] += 1
            options[record["task"]] = len(record.get("options", ()))
    total = sum(counter.total() for counter in counts.values())
    table = []
    for kind, counter in sorted(counts.items()):
        ((commonest, times),) = counter.most_common(1)
        number, known = counter.total(), options[kind]
        limit = 1 / known + SLACK if known else None
        table.append(
            Balance(kind, number, number / total, known or len(counter), commonest, times / number, limit)
        )
    return table
