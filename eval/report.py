"""Human-readable results: tables in the terminal, and a one-page figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.targets import target_table
from mllm.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

MEASURES = {"f1": "token F1", "exact": "word for word", "words": "words right", "wer": "word error rate"}
WAYS = {"text_to_media": "text → {}", "media_to_text": "{} → text"}
GROUP_COLOURS = {
    "audio": "#d97706",
    "video": "#2563eb",
    "joint": "#7c3aed",
    "image": "#0891b2",
    "two": "#059669",
    "missing": "#6b7280",
    "chat": "#9ca3af",
    "other": "#374151",
}


def print_tables(metrics: dict[str, Any], console: Console) -> None:
    """Prints the metrics of `run.write_results`, a table for each split."""
    for split, result in metrics["splits"].items():
        if result["overall"]["count"]:
            console.print(_score_table(split, result))
        for line in table_lines(result):
            console.print(line, highlight=False, soft_wrap=True)
        if result["missing"]:
            first = result["missing_recordings"][0]["cause"]
            left_out = f"{result['missing']} questions left out, their recordings cannot be read; the first: "
            console.print(left_out + first, style="red", markup=False, highlight=False, soft_wrap=True)
        if result["retrieval"]:
            console.print(_retrieval_table(result["retrieval"]))
        if result["targets"]:
            if not console.is_terminal:  # a pipe has no width of its own
                console.width = max(console.width, 200)
            console.print(target_table(result["targets"], f"{split}: what must be reached"))
        console.print()


def _score_table(split: str, result: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{split}: exact match", title_justify="left", box=None, header_style="bold")
    for i, name in enumerate(("type", "questions", "score", "majority", "prior", "blind")):
        table.add_column(name, justify="right" if i else "left")
    for group, of_group in result["groups"].items():
        table.add_row(group, *_cells(of_group), style="bold")
        for name, of_type in result["types"].items():
            if of_type["group"] == group and name != group:
                table.add_row(f"  {name}", *_cells(of_type))
    table.add_row("all", *_cells(result["overall"]), style="bold")
    return table


def table_lines(result: dict[str, Any]) -> list[str]:
    """A line for each type outside the main table: "moments: mIoU 0.31 (blind 0.12), R1@0.5 0.24, …"."""
    lines = []
    for table in result["tables"]:
        for name, scores in result[table].items():
            names = [key for key in scores if key not in ("count", "blind")]
            numbers = [f"{MEASURES.get(key, key)} {scores[key]:.2f}" for key in names]
            if numbers and scores["blind"] is not None:
                numbers[0] += f" (blind {scores['blind']:.2f})"  # the first measure is the mean score
            lines.append(f"{name}: {', '.join(numbers)}, {scores['count']} {table}")
    return lines


def _retrieval_table(retrieval: dict[str, Any]) -> Table:
    from rich.table import Table

    rows = recall_rows(retrieval)
    table = Table(*rows[0], box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    return table


def recall_rows(retrieval: dict[str, Any]) -> list[list[str]]:
    """A header row, then a row for each modality and direction, as text."""
    rows: list[list[str]] = []
    for kind, result in retrieval.items():
        name = "video + audio" if kind == "both" else kind
        for way, phrase in WAYS.items():
            recalls = {key: value for key, value in result[way].items() if key.startswith("R@")}
            if not rows:
                rows.append(["retrieval", "clips", *recalls])
            rows.append(
                [phrase.format(name), str(result["clips"]), *(f"{value:.2f}" for value in recalls.values())]
            )
    return rows


def draw_page(metrics: dict[str, Any], path: Path) -> None:
    """Draws the score of every type beside its majority and blind baselines, and recall, for each split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = metrics["splits"]
    with_recall = any(result["retrieval"] for result in splits.values())
    figure = Figure(figsize=(11, 1.2 + (5.2 if with_recall else 3.7) * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    title = f"{short_name(metrics['model'])}   ·   {metrics['created'][:10]}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    heights = [3.7, 1.5] * len(splits) if with_recall else [3.7] * len(splits)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for i, (split, result) in enumerate(splits.items()):
        _draw_types(axes[i * (2 if with_recall else 1)], split, result)
        if with_recall:
            _draw_recall(axes[2 * i + 1], result["retrieval"])
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def short_name(model: str) -> str:
    """A model's name for a figure that may be shared: a path is cut to its last two parts."""
    name, at, url = model.partition(" at ")
    parts = Path(name).parts
    return (f"…/{'/'.join(parts[-2:])}" if len(parts) > 2 else name) + at + url


def _draw_types(axes: Axes, split: str, result: dict[str, Any]) -> None:
    if not result["overall"]["count"]:
        axes.axis("off")
        axes.set_title("\n".join([split, *table_lines(result)]), loc="left", fontsize=9, parse_math=False)
        return
    types = [(n, t) for group in result["groups"] for n, t in result["types"].items() if t["group"] == group]
    colours = [GROUP_COLOURS.get(t["group"], GROUP_COLOURS["other"]) for _, t in types]
    bars = range(len(types))
    axes.bar(bars, [t["score"] for _, t in types], color=colours, width=0.7, zorder=2)
    majority = [
        (t["majority"], bar) for bar, (_, t) in zip(bars, types, strict=True) if t["majority"] is not None
    ]
    if majority:
        heights, known = zip(*majority, strict=True)
        left, right = [bar - 0.42 for bar in known], [bar + 0.42 for bar in known]
        axes.hlines(heights, left, right, color="black", lw=1.6, zorder=3, label="majority answer")
    blind = [(bar, t["blind"]) for bar, (_, t) in zip(bars, types, strict=True) if t["blind"] is not None]
    if blind:
        axes.scatter(*zip(*blind, strict=True), marker="x", color="black", zorder=4, label="blind (no media)")
    for bar, (_, of_type) in zip(bars, types, strict=True):
        score = of_type["score"]
        text = "1" if score == 1 else f"{score:.2f}".lstrip("0")
        axes.annotate(text, (bar, score), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(list(bars), [name for name, _ in types], rotation=40, ha="right", fontsize=8)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("exact match")
    axes.grid(axis="y", lw=0.4, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_headline(split, result), loc="left", fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7, frameon=False)


def _headline(split: str, result: dict[str, Any]) -> str:
    overall = result["overall"]
    beside = [f"{n} {overall[n]:.2f}" for n in ("majority", "prior", "blind") if overall[n] is not None]
    groups = "  ".join(f"{name} {of_group['score']:.2f}" for name, of_group in result["groups"].items())
    compared = f" ({', '.join(beside)})" if beside else ""
    return f"{split}: {overall['score']:.2f} of {overall['count']} questions{compared}\n{groups}"


def _draw_recall(axes: Axes, retrieval: dict[str, Any]) -> None:
    axes.axis("off")
    rows = recall_rows(retrieval)
    if rows:
        table = axes.table(rows[1:], colLabels=rows[0], loc="center", cellLoc="center", edges="horizontal")
        table.auto_set_font_size(False)
        table.set_fontsize(8)


def _cells(scores: dict[str, Any]) -> list[str]:
    numbers = [scores[name] for name in ("score", "majority", "prior", "blind")]
    return [str(scores["count"]), *("" if number is None else f"{number:.2f}" for number in numbers)]
