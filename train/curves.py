"""Loss curves of a stage as a picture, drawn anew at every checkpoint."""

from __future__ import annotations

from pathlib import Path

from mllm.files import replacing


def draw_losses(rows: list[dict[str, float]], path: Path, title: str) -> None:
    """The curve of every loss component over the steps, on a logarithmic scale, as a PNG."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if "loss" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in sorted({key for row in rows for key in row if key.endswith("loss")}):
        points = [(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", ylabel="loss", title=title, yscale="log")
    if rows:
        axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
