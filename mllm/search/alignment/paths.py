"""Paths: which moment of one sequence belongs to which of the other.

`dtw` is dynamic time warping within a Sakoe-Chiba band (Sakoe and Chiba, 1978), by dtaidistance's C kernel.
`attention` compares windows: a softmax over the offsets of each gives a soft offset, and how certain it is.
`hybrid` warps within a narrow band around what attention found.

All take two sequences of one rate and length whose offset is removed already, and a band in steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from mllm.search.alignment.sequence import Sequence

Method = Literal["dtw", "attention", "hybrid"]
METHODS: tuple[str, ...] = get_args(Method)
SHARPNESS = 2.0  # of the softmax: what a cosine is multiplied by, once their deviation is 1
HOPS = 4  # windows that overlap
CERTAIN = 0.6  # of a window's weight near one offset; with less it is no point of the path
NARROW = 5  # steps that are near
QUIET = 0.5  # of the usual energy
SMOOTH = 5  # windows whose median lag counts
BEND = 2.0  # what a step that is not diagonal costs, in mean distances


def dtw(first: Sequence, second: Sequence, band: int) -> np.ndarray:
    """float64 [points, 2], steps in first and second, rising."""
    from dtaidistance.dtw import warping_path_fast

    # A column of zeros, since the kernel for vectors takes no single column.
    one, other = (np.pad(side.vectors, ((0, 0), (0, 1))).astype(np.float64) for side in (first, second))
    typical = float(np.sqrt(((one - other) ** 2).sum(1).mean()))
    found = warping_path_fast(one, other, window=band + 1, penalty=BEND * typical, use_ndim=True)
    return np.array(found, np.float64)


def attention(first: Sequence, second: Sequence, band: int) -> np.ndarray:
    """float64 [points, 2] as of `dtw`: the middles of windows that are certain, and where they belong.

    With fewer than SMOOTH of those it is the straight line.
    """
    centres, weights = attention_weights(first, second, band)
    soft, certain = soft_lags(weights)
    kept = certain >= CERTAIN
    if kept.sum() < SMOOTH:
        return np.array([[0.0, 0.0], [len(first) - 1.0, len(second) - 1.0]])
    lags = _smooth(soft[kept] - band)
    path = np.stack([centres[kept], np.clip(centres[kept] + lags, 0, len(second) - 1)], axis=1)
    path[:, 1] = np.maximum.accumulate(path[:, 1])
    return path


def hybrid(first: Sequence, second: Sequence, band: int) -> np.ndarray:
    """float64 [points, 2] as of `dtw`."""
    soft = attention(first, second, band)
    steps = np.arange(len(first))
    places = steps + np.interp(steps, soft[:, 0], soft[:, 1] - soft[:, 0])
    places = np.maximum.accumulate(places.round().astype(np.int64).clip(0, len(second) - 1))
    warped = replace(second, vectors=second.vectors[places])
    path = dtw(first, warped, NARROW)
    path[:, 1] = places[path[:, 1].astype(np.int64)]
    return path


def attention_weights(first: Sequence, second: Sequence, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles of windows of `first`, float64 [windows], and the softmax of each over offsets.

    Returns:
        Middles in steps, and float64 [windows, 2 · band + 1].
    """
    width = first.local
    starts = np.arange(0, len(first) - width + 1, max(1, width // HOPS))
    cosines = np.empty((len(starts), 2 * band + 1))
    products_of_norms = np.empty_like(cosines)
    padded = np.pad(second.vectors, ((band, band), (0, 0)))
    energy = _windowed((padded**2).sum(1))
    norms = np.sqrt(_between(_windowed((first.vectors**2).sum(1)), starts, width))
    for lag in range(2 * band + 1):
        products = np.einsum("td,td->t", first.vectors, padded[lag : lag + len(first)])
        other = np.sqrt(_between(energy, starts + lag, width))
        cosines[:, lag] = _between(_windowed(products), starts, width)
        products_of_norms[:, lag] = norms * other
    # In silence, too, something fits something: a window is compared as if it had a part of the usual energy.
    cosines /= np.maximum(products_of_norms, QUIET * products_of_norms.mean() + 1e-9)
    scores = SHARPNESS * (cosines - cosines.mean()) / max(float(cosines.std()), 1e-9)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return starts + (width - 1) / 2, weights / weights.sum(1, keepdims=True)


def soft_lags(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean column near the heaviest of each row [windows, lags], and the weight that lies there."""
    columns = np.arange(weights.shape[1])
    near = np.abs(columns - weights.argmax(1)[:, None]) <= NARROW
    mass = (weights * near).sum(1)
    return (weights * near) @ columns / mass, mass


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running medians: one window that is wrong but certain moves nothing."""
    padded = np.pad(values, SMOOTH // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)


def _windowed(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _between(total: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    return total[starts + width] - total[starts]
