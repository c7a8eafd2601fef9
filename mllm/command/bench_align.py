"""`mllm bench align`: offsets of pairs whose offset is known, and the time it takes beside librosa's DTW.

Two sounds, as in the tests of the BBC's audio-offset-finder: real recordings, shifted, encoded again, under
noise; right is an offset to 16 ms, and pairs that share nothing must be unsure. Picture and sound by the
protocol of Synchformer (Iashin et al., 2024, arXiv:2401.16423): 21 classes from -2 to 2 s, crops of 5 s, on
the generated world.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer

from mllm.command.bench import JsonOption, report
from mllm.errors import MediaError

if TYPE_CHECKING:
    from rich.table import Table

    from mllm.command.bench_align_pairs import Pair
    from mllm.search.alignment.align import Settings
    from mllm.search.alignment.engine import Alignment

RIGHT = 0.016  # s
RATES = (10, 25)  # steps/s of warping
WORLD = "world:val,frames=50,media=av"  # 25 pictures a second


def bench_align(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Recordings with sound. Without: one that is made up.")
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="Pairs of each recording and condition.")] = 3,
    seconds: Annotated[float, typer.Option(min=5, help="Of each recording that are taken.")] = 60.0,
    clips: Annotated[int, typer.Option(min=0, help="Pairs of the generated world; 0 leaves it out.")] = 210,
    space: Annotated[bool, typer.Option(help="The shared space, too.")] = True,
    model: Annotated[str | None, typer.Option(help="Its checkpoint. Default: ours.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times of each measurement; the fastest counts.")] = 5,
    seed: int = 0,
    json_file: JsonOption = None,
) -> dict[str, Any]:
    """Offsets of pairs whose offset is known, and the time of one pair beside librosa's DTW.

    Returns:
        {"sounds": rows by condition and way, "reliability": of the default way, "world": rows by world and
        way, or None, "speed": see `_speed`}.

    Raises:
        MediaError: if a file cannot be read, has no sound, or less than 5 s of it.
    """
    from rich.console import Group

    rng = np.random.default_rng(seed)
    sounds = [_sound(file, seconds) for file in files] if files else [_made_up(seconds)]
    by_sound, reliability = _sounds(sounds, times, rng)
    numbers: dict[str, Any] = {"sounds": by_sound, "reliability": reliability}
    numbers["world"] = _world(clips, rng, space, model) if clips else None
    numbers["speed"] = _speed(sounds[0], repeats)
    tables = [_sound_table(by_sound), *([_world_table(numbers["world"])] if clips else [])]
    tables.append(_speed_table(numbers["speed"]))
    note = (
        f"right: within {1000 * RIGHT:.0f} ms; wrong and sure: neither right nor unsure; "
        f"confidence is off by {reliability['ece']:.3f} on average (ECE, {reliability['pairs']} pairs)"
    )
    if fitted := reliability["fitted"]:
        note += f"\nfitted to these pairs: middle {fitted['middle']:.2f}, slope {fitted['slope']:.2f}"
        if fitted["ece"] is not None:
            note += f"; fitted to half of the recordings, off by {fitted['ece']:.3f} on the others"
    if numbers["speed"]["librosa"] is None:
        note += "\nlibrosa is not installed: pip install librosa"
    report(Group(*tables), numbers, json_file, note)
    return numbers


# --- two sounds ---------------------------------------------------------------------------------------------


def _sounds(
    sounds: list[np.ndarray], times: int, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from mllm.command.bench_align_pairs import sound_pairs
    from mllm.search.alignment.align import Settings

    ways = {
        "mel, dtw": Settings(),
        "mel, attention": Settings(method="attention"),
        "mel, hybrid": Settings(method="hybrid"),
        "onset": Settings(features="onset"),
        "events": Settings(level="event"),
    }
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}  # error (s), confidence, |drift|
    told: list[Told] = []
    for pair in sound_pairs(sounds, times, rng):
        for way, settings in ways.items():
            aligned = _tried(pair, settings)
            if aligned is None or aligned.offset is None:
                row = (np.inf, 0.0, 0.0)
            else:
                error = np.inf if pair.offset is None else abs(aligned.offset - pair.offset)
                row = (error, aligned.confidence, abs(aligned.drift or 0.0))
            found.setdefault((pair.condition, way), []).append(row)
            if way == "mel, dtw" and aligned is not None and aligned.evidence is not None:
                told.append(Told(aligned.evidence, aligned.confidence, row[0] <= RIGHT, pair.number))
    rows = [_sound_row(condition, way, np.array(values)) for (condition, way), values in found.items()]
    return rows, _reliability(told)


class Told(NamedTuple):
    """What an alignment says of itself, and whether it is right.

    `group` is the number of the recording: one is either learned from or tested with.
    """

    evidence: float
    confidence: float
    right: bool
    group: int


def _sound_row(condition: str, way: str, values: np.ndarray) -> dict[str, Any]:
    errors, confidence, drift = values.T
    right, sure = errors <= RIGHT, confidence >= 0.5
    known = np.isfinite(errors)
    return {
        "condition": condition,
        "way": way,
        "pairs": len(values),
        "right": float(right.mean()) if known.any() else None,
        "sure": float(sure.mean()),
        "wrong_and_sure": float((sure & ~right).mean()),
        "median_error_ms": float(np.median(errors[known])) * 1000 if known.any() else None,
        "largest_drift_ppm": float(drift.max()),
    }


def _reliability(told: Sequence[Told]) -> dict[str, Any]:
    """How well confidence agrees with what is right.

    Returns:
        {"pairs", "ece": expected calibration error (Guo et al., 2017, arXiv:1706.04599), "bins": the share
        right by confidence, "fitted": what Platt's scaling of these pairs gives, {"middle", "slope"}, with
        "ece" on every other recording of a fit to the rest; None where all pairs are right, or none}.
    """
    from mllm.search import platt

    evidence, confidence, right, group = (np.array(column) for column in zip(*told, strict=True))
    odd = group % 2 == 1
    fitted = None
    if 0 < right.sum() < len(right):
        bias, slope = platt.fit(evidence[:, None], right)
        fitted = {"middle": float(-bias / slope), "slope": float(slope), "ece": None}
        if 0 < right[~odd].sum() < (~odd).sum() and odd.any():
            half = platt.fit(evidence[~odd, None], right[~odd])
            guessed = platt.sigmoid(half[0] + half[1] * evidence[odd])
            fitted["ece"] = platt.expected_error(guessed, right[odd])
    return {
        "pairs": len(told),
        "ece": platt.expected_error(confidence, right),
        "bins": [
            {"pairs": count, "confidence": mean, "right": share}
            for mean, share, count in platt.bins(confidence, right)
        ],
        "fitted": fitted,
    }


def _sound_table(rows: Iterable[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("two sounds", "by", "pairs", "right", "sure", "wrong and sure", "median error", box=None)
    shown = ""
    for row in rows:
        condition = row["condition"] if row["condition"] != shown else ""
        shown = row["condition"]
        error = "" if row["median_error_ms"] is None else f"{row['median_error_ms']:.1f} ms"
        right = "" if row["right"] is None else f"{row['right']:.2f}"
        shares = (right, f"{row['sure']:.2f}", f"{row['wrong_and_sure']:.2f}")
        table.add_row(condition, row["way"], str(row["pairs"]), *shares, error)
    return table


# --- picture and sound --------------------------------------------------------------------------------------


def _world(clips: int, rng: np.random.Generator, space: bool, model: str | None) -> list[dict[str, Any]]:
    from mllm.command.bench_align_pairs import CLASSES, STEP, world_pairs
    from mllm.records.source import open_source
    from mllm.search.alignment.align import Settings

    limit = float(STEP * (CLASSES[-1] + 0.5))
    common: dict[str, Any] = {"between": "picture-sound", "limit": limit, "model": model}
    ways = {
        "motion": Settings(**common),
        "motion, attention": Settings(method="attention", **common),
        "events": Settings(level="event", **common),
    }
    if space:
        ways["space"] = Settings(level="semantic", **common)
    source = open_source(WORLD)
    rows = []
    for together in (False, True):
        classes: dict[str, list[tuple[int, int, bool]]] = {way: [] for way in ways}  # true, found, sure
        told: dict[str, list[Told]] = {way: [] for way in ways}
        for pair in world_pairs(source, clips, rng, together):
            assert pair.offset is not None
            for way, settings in ways.items():
                found = _tried(pair, settings)
                guess, sure = 99, False
                if found is not None and found.offset is not None:
                    guess = round(float(np.clip(found.offset, -limit, limit)) / STEP)
                    sure = not found.unsure
                true = round(pair.offset / STEP)
                classes[way].append((true, guess, sure))
                if found is not None and found.evidence is not None:
                    near = abs(guess - true) <= 1
                    told[way].append(
                        Told(found.evidence, found.confidence, near, pair.number // len(CLASSES))
                    )
        rows += [
            _world_row("together" if together else "as it is", way, np.array(classes[way]))
            | {"reliability": _reliability(told[way]) if told[way] else None}
            for way in ways
        ]
    return rows


def _world_row(world: str, way: str, classes: np.ndarray) -> dict[str, Any]:
    off = np.abs(classes[:, 0] - classes[:, 1])
    sure = classes[:, 2].astype(bool)
    return {
        "world": world,
        "way": way,
        "pairs": len(classes),
        "accuracy": float((off == 0).mean()),
        "within_one": float((off <= 1).mean()),
        "sure": float(sure.mean()),
        "within_one_if_sure": float((off[sure] <= 1).mean()) if sure.any() else None,
    }


def _world_table(rows: Iterable[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("world", "by", "pairs", "Acc@1", "±1 class", "sure", "±1 if sure", box=None)
    for row in rows:
        last = "" if row["within_one_if_sure"] is None else f"{row['within_one_if_sure']:.2f}"
        shares = (f"{row[name]:.3f}" for name in ("accuracy", "within_one", "sure"))
        table.add_row(row["world"], row["way"], str(row["pairs"]), *shares, last)
    table.add_row("", "chance", "", f"{1 / 21:.3f}", f"{(19 * 3 + 2 * 2) / 21 / 21:.3f}", "", "")
    return table


# --- time ---------------------------------------------------------------------------------------------------


def _speed(sound: np.ndarray, repeats: int) -> dict[str, Any]:
    """Time of one pair, ms, the fastest run.

    Returns:
        {"seconds": of the pair, "features": of one side, "align": with kept features, by method, "warp" and
        "librosa" (None if it is not installed): warping alone in a band of a tenth, by steps a second}.
    """
    from mllm.media.recording import SAMPLE_RATE
    from mllm.search.alignment import paths
    from mllm.search.alignment.engine import Search, align_sequences
    from mllm.search.alignment.features import mel

    late = sound + np.random.default_rng(0).normal(0, float(sound.std()), len(sound)).astype(np.float32)
    first, second = mel(sound, "sound"), mel(late, "copy")
    found: dict[str, Any] = {
        "seconds": len(sound) / SAMPLE_RATE,
        "features": _fastest(partial(mel, sound, "sound"), repeats),
    }
    found["align"] = {
        method: _fastest(partial(align_sequences, first, second, Search(method)), repeats)  # type: ignore[arg-type]
        for method in paths.METHODS
    }
    pooled = {rate: [side.pooled(round(side.rate / rate)) for side in (first, second)] for rate in RATES}
    found["warp"] = {
        rate: _fastest(partial(paths.dtw, one, other, len(one) // 10), repeats)
        for rate, (one, other) in pooled.items()
    }
    found["librosa"] = None
    if find_spec("librosa") is not None:
        from librosa.sequence import dtw

        banded = partial(dtw, global_constraints=True, band_rad=0.1)
        found["librosa"] = {
            rate: _fastest(partial(banded, one.vectors.T, other.vectors.T), repeats)
            for rate, (one, other) in pooled.items()
        }
    return found


def _speed_table(speed: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(f"one pair of {speed['seconds']:.0f} s", "", "librosa", "", box=None)
    table.add_row("mel of one side", f"{speed['features']:.0f} ms")
    for method, taken in speed["align"].items():
        table.add_row(f"align, kept features, {method}", f"{taken:.0f} ms")
    for rate, taken in speed["warp"].items():
        theirs = speed["librosa"] and speed["librosa"][rate]
        compared = (f"{theirs:.1f} ms", f"{theirs / taken:.1f}×") if theirs else ("", "")
        table.add_row(f"warping, {rate} steps/s, band a tenth", f"{taken:.1f} ms", *compared)
    return table


def _fastest(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):  # the first one loads and compiles
        begin = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begin))
    return min(taken[1:])


def _tried(pair: Pair, settings: Settings) -> Alignment | None:
    """None where there is too little to align, which counts as unsure and wrong."""
    from mllm.search.alignment.align import align

    try:
        return align(pair.first, pair.second, settings)
    except MediaError:
        return None


def _sound(file: Path, seconds: float) -> np.ndarray:
    from mllm.media.recording import SAMPLE_RATE, load_clip
    from mllm.search.alignment.align import LIMITS

    waveform = load_clip(file, want_video=False, end=seconds, limits=LIMITS).waveform
    if waveform is None or len(waveform) < 5 * SAMPLE_RATE:
        raise MediaError(f"{file}: less than 5 s of sound: give a longer recording")
    return waveform


def _made_up(seconds: float) -> np.ndarray:
    """float32 [samples]: tones of random pitch, length and loudness over a faint hiss."""
    from mllm.media.recording import SAMPLE_RATE

    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.003, round(seconds * SAMPLE_RATE))
    for start in rng.integers(0, len(sound), round(4 * seconds)):
        length = rng.integers(800, 4800)
        tone = np.sin(2 * np.pi * rng.uniform(150, 5000) * np.arange(length) / SAMPLE_RATE)
        piece = (rng.uniform(0.1, 0.5) * tone * np.hanning(length))[: len(sound) - start]
        sound[start : start + len(piece)] += piece
    return sound.astype(np.float32)
