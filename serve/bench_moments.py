"""`mllm bench moments`: how well the moments of a search fit what is asked for.

Recordings are joined from scenes of a data source, each with its captions and, as subtitles, a line of words
drawn for it. Every caption, and some words of every line, are asked for; right is the span of their scene.
One window, the moments of one channel, and the moments of all channels, fused by evidence and by ranks, are
compared by R1@.5, the share of first answers whose intersection over union with the right span is .5 or more,
and by its mean (Gao et al., 2017).
"""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from mllm.command.bench import JsonOption, report

if TYPE_CHECKING:
    from mllm.media.clip import Clip
    from mllm.records.source import DataSource
    from mllm.search.index import Index

CHANNELS = {"video": "seen", "audio": "heard", "both": "seen,heard", "said": "said"}
_WORDS = """
anchor bakery candle desert engine forest garden harbour island jacket kitchen ladder market needle
orchard pencil quarry river saddle tunnel uncle village barley copper dinner elbow finger
glacier hammer insect jungle kettle lemon meadow nephew oyster pepper rabbit salmon thunder umbrella
velvet walnut
"""
VOCABULARY = tuple(_WORDS.split())
WAYS = ("one window", "moments there", "moments everywhere", "by ranks")
LINE, ASKED = 6, 3  # words that are said in a scene, and of them asked for

Span = tuple[str, float, float]  # recording, start, end in s
Way = Callable[[str], Span | None]


@dataclass(frozen=True)
class _Question:
    kind: str
    text: str
    right: Span


def bench_moments(
    model: Annotated[str | None, typer.Option(help="Checkpoint folder. Default: ours.")] = None,
    source: Annotated[
        str, typer.Option(help="Data source of scenes, of which those with picture and sound are taken.")
    ] = "world:val,media=av",
    recordings: Annotated[int, typer.Option(min=1, help="How many are made.")] = 8,
    scenes: Annotated[int, typer.Option(min=2, help="Scenes of each.")] = 12,
    seed: int = 0,
    json_file: JsonOption = None,
) -> dict[str, Any]:
    """R1@.5 and mean overlap of the first answer, by what is asked for and where it is looked for.

    Returns:
        {kind of question: {way: {"r1@.5", "overlap", "questions"}}}
    """
    from mllm.records.source import open_source
    from mllm.search.embedder import Embedder
    from mllm.search.index import Index

    with tempfile.TemporaryDirectory() as folder:
        index = Index.open(Path(folder) / "index", Embedder.from_pretrained(model))
        rng = random.Random(seed)
        questions = list(_written(open_source(source), Path(folder), recordings, scenes, rng))
        index.add(sorted(Path(folder).glob("*.mp4")))
        overlaps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for question in questions:
            for name, way in _ways(index, question.kind).items():
                overlaps[question.kind][name].append(overlap(way(question.text), question.right))
    numbers = {
        kind: {
            way: {"r1@.5": float(np.mean(np.array(found) >= 0.5)), "overlap": float(np.mean(found))}
            | {"questions": len(found)}
            for way, found in ways.items()
        }
        for kind, ways in overlaps.items()
    }
    table = Table("asked for", "questions", *WAYS, box=None)
    for kind, ways in numbers.items():
        cells = [
            f"{ways[way]['r1@.5']:.2f}  {ways[way]['overlap']:.2f}" if way in ways else "" for way in WAYS
        ]
        table.add_row(kind, str(next(iter(ways.values()))["questions"]), *cells)
    note = f"R1@.5 and mean overlap; {recordings} recordings of {scenes} scenes of {source}"
    report(table, numbers, json_file, note)
    return numbers


def _ways(index: Index, kind: str) -> dict[str, Way]:
    from mllm.search.query import Query

    def window(text: str) -> Span | None:
        hits = index.search(text, 1, None if kind == "both" else kind)
        return (str(hits[0].item.source), hits[0].start, hits[0].end) if hits else None

    def moment(text: str, **where: Any) -> Span | None:
        found = index.moments(Query(text, **where), 1)
        return (str(found[0].item.source), found[0].start, found[0].end) if found else None

    def there(text: str) -> Span | None:
        return moment(text, channels=tuple(CHANNELS[kind].split(",")))

    def by_ranks(text: str) -> Span | None:
        return moment(text, fusion="ranks")

    ways = dict(zip(WAYS, (window, there, moment, by_ranks), strict=True))
    return {name: way for name, way in ways.items() if kind != "said" or way is not window}


def _written(
    source: DataSource, folder: Path, recordings: int, scenes: int, rng: random.Random
) -> Iterator[_Question]:
    """Writes the recordings and their subtitles; yields what is asked for."""
    from mllm.media.clip import Clip

    pairs = (source.pair(number) for number in range(len(source)))
    whole = (one for one in pairs if isinstance(one["clip"], Clip) and one["captions"]["both"])
    for number in range(recordings):
        path, start = folder / f"{number:03d}.mp4", 0.0
        clips, lines = [], []
        for _ in range(scenes):
            pair = next(whole)
            clip = pair["clip"]
            span = (str(path), start, start + clip.duration)
            said = rng.sample(VOCABULARY, LINE)
            lines.append((span[1], span[2], " ".join(said)))
            for kind, caption in pair["captions"].items():
                yield _Question(kind, caption, span)
            yield _Question("said", " ".join(rng.sample(said, ASKED)), span)
            clips.append(clip)
            start += clip.duration
        _write(path, clips, lines)


def _write(path: Path, clips: list[Clip], lines: list[tuple[float, float, str]]) -> None:
    from mllm.media.recording import SAMPLE_RATE
    from mllm.records.transcript import Segment, Transcript
    from serve.mp4 import write_mp4

    frames = np.concatenate([clip.frames for clip in clips if clip.frames is not None])
    waveform = np.concatenate([clip.waveform for clip in clips if clip.waveform is not None])
    rate = len(frames) / sum(clip.duration for clip in clips)
    path.write_bytes(write_mp4(frames, rate, waveform.astype(np.float32)))
    assert abs(len(waveform) / SAMPLE_RATE - len(frames) / rate) < 0.5
    transcript = Transcript("en", tuple(Segment(*line) for line in lines))
    path.with_suffix(".srt").write_text(transcript.written("srt"), encoding="utf-8")


def overlap(found: Span | None, right: Span) -> float:
    """Intersection over union of two spans; 0 in different recordings."""
    if found is None or found[0] != right[0]:
        return 0.0
    shared = max(0.0, min(found[2], right[2]) - max(found[1], right[1]))
    return shared / max(max(found[2], right[2]) - min(found[1], right[1]), 1e-9)
