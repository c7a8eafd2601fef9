"""What a model must reach: a score beside its interval, its baselines, a floor and an aim, one row a task.

A benchmark that has targets returns them from `Benchmark.targets`; they are printed, kept in metrics.json,
and written to table.md for a model card.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Target:
    """One row; None where a number does not exist for the task.

    Attributes:
        score: a share, or where `less_is_better` an error rate.
        low, high: its 95 % interval (`metrics.interval`).
        count: questions, or queries.
        majority: score of the most frequent answer.
        blind: score of the same model without the recordings.
        probe: score of a linear reading of the same frozen features (`eval.probe`).
        swapped: score of the answers about another recording, by the truth of the first; near chance if the
            model answers what it hears and sees.
        changed: share of the answers that another recording changes.
        floor, aim: what must be reached, and what is hoped for.
    """

    title: str
    score: float
    count: int
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    blind: float | None = None
    probe: float | None = None
    swapped: float | None = None
    changed: float | None = None
    floor: float | None = None
    aim: float | None = None
    less_is_better: bool = False

    @property
    def mark(self) -> str:
        """aim, floor or short: what the score reaches; empty without a floor."""
        for name, least in (("aim", self.aim), ("floor", self.floor)):
            # Compared as shown: .9695 is .970.
            if least is not None and self._reaches(round(self.score, 3), round(least, 3)):
                return name
        return "" if self.floor is None else "short"

    def _reaches(self, score: float, least: float) -> bool:
        return score <= least if self.less_is_better else score >= least

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self) | {"mark": self.mark}


COLUMNS = (
    "task",
    "score",
    "95 %",
    "n",
    "majority",
    "blind",
    "probe",
    "swapped",
    "changed",
    "floor",
    "aim",
    "",
)


def _cells(target: dict[str, Any]) -> list[str]:
    """A row of the table, from a target as `as_dict` gives it."""

    def number(name: str) -> str:
        value = target[name]
        return "" if value is None else f"{value:.3f}".removeprefix("0").replace("-0.", "-.")

    between = "" if target["low"] is None else f"{number('low')}–{number('high')}"
    numbers = [number(name) for name in COLUMNS[4:-1]]
    return [target["title"], number("score"), between, str(target["count"]), *numbers, target["mark"]]


def target_table(targets: Iterable[dict[str, Any]], title: str) -> Table:
    """The targets for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 0 < index < len(COLUMNS) - 1 else "left", no_wrap=index > 0)
    for target in targets:
        table.add_row(*_cells(target), style="red" if target["mark"] == "short" else "")
    return table


def markdown(targets: Sequence[dict[str, Any]]) -> str:
    """The targets as a table in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *map(_cells, targets)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
