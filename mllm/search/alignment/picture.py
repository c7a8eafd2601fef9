"""An alignment as a picture: how well each offset fits, and where the path lies."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from mllm.files import replacing
from mllm.search.alignment.engine import Alignment


def draw(alignment: Alignment, file: Path, title: str = "") -> None:
    """Writes a PNG: scores by offset, and the path's offsets in time around the line.

    Raises:
        MllmError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    curve, line, path = alignment.curve, alignment.line, alignment.path
    figure.suptitle(title or f"{alignment.first} and {alignment.second}", parse_math=False)
    if curve is None or line is None:
        axes = figure.subplots()
        axes.plot(path[:, 0], path[:, 1], ".", color="tab:blue")
        axes.set(xlabel=f"{alignment.first}, s", ylabel="word of the text")
    else:
        above, below = figure.subplots(2)
        above.plot(curve.offsets, curve.scores, color="tab:blue", linewidth=0.8)
        above.axvline(curve.offset, color="tab:red", linewidth=0.8)
        above.set(xlabel="offset, s", ylabel="standard score")
        below.plot(path[:, 0], path[:, 1] - path[:, 0], ".", color="tab:blue", markersize=3, label="path")
        ends = np.array([path[0, 0], path[-1, 0]])
        below.plot(ends, line.at(ends), color="tab:red", linewidth=1, label="offset and drift")
        below.set(xlabel=f"{alignment.first}, s", ylabel="offset, s")
        below.legend()
    for axes in figure.axes:
        axes.xaxis.label.set_parse_math(False)  # names of files may hold dollars
    with replacing(file) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in names of files
        figure.savefig(partial, format="png", dpi=120)
