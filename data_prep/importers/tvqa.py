"""TVQA and TVQA+: five options, subtitles, and the span of the clip that a question is about.

The recordings are folders of frames, three a second, with the sound in a file of the same name.
Lei et al. 2018, https://arxiv.org/abs/1809.01696; Lei et al. 2020, https://arxiv.org/abs/1904.11574.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_prep.importers.job import Job, Part, Record
from data_prep.importers.tables import Row
from mllm.errors import RecordError
from mllm.media.sources import SUFFIXES
from mllm.records.subtitles import Line
from mllm.records.templates import subtitle_block

FRAME_RATE = 3  # frames a second that the authors give
UNKNOWN_SPAN = (10.0, 30.0)  # s: what the authors' preprocessing.py puts in place of NaN


def tvqa(job: Job) -> Iterator[Record]:
    """tvqa_<split>.jsonl or tvqa_plus_<split>.json; subtitles, too: .srt files, JSON lines, TVQA+'s json."""
    questions: list[Row] = []
    subtitles: dict[str, list[Line]] = {}
    for row in job.rows():
        with job.or_left_out():
            if "sub" in row:
                subtitles[row["vid_name"]] = [
                    {"text": line["text"], "start": float(line["start"])} for line in row["sub"]
                ]
            elif all(isinstance(said, dict) and "sub_text" in said for said in row.values()):
                for name, said in row.items():
                    job.where = f"{row.where} {name}"
                    subtitles[name] = _plus_lines(said["sub_text"], said["sub_time"])
            else:
                questions.append(row)
    for path, spoken in job.subtitles("iso-8859-1"):  # as its authors read them
        subtitles[path.stem] = spoken
    for row in questions:
        with job.or_left_out():
            job.where = row.where
            span = _span(job, row)
            lines = subtitles.get(row["vid_name"], [])
            if subtitles and not lines:
                job.noted["no subtitles given"] += 1
            video = job.video(row["vid_name"])
            media: list[Part] = [video]
            if job.localised:
                start, end = _located(span, _frames(video["video"]))
                if start < end:
                    video |= {"start": start, "end": end}
                else:
                    job.noted["no frames in the span: asked without the video"] += 1
                    media = []
                lines = _located_lines(lines, span, start)
            if told := subtitle_block(lines):
                media.append({"type": "text", "text": told})
            options = [row.text(f"a{number}") for number in range(5)]
            yield job.choice(
                row["qid"], media, row.text("q"), options, job.number(row, "answer_idx", len(options)),
                span=list(span), show=row.get("show_name"),
            )  # fmt: skip


def _plus_lines(texts: str, times: list[float]) -> list[Line]:
    """Subtitles of tvqa_plus_subtitles.json: texts in one string, and the time at which each begins."""
    parts = texts.split("<eos>") if texts else []
    return [{"text": text, "start": float(time)} for text, time in zip(parts, times, strict=True)]


@cache
def _frames(folder: str) -> int | None:
    """The number of frames in a folder; None if it does not exist."""
    if not Path(folder).is_dir():
        return None
    return sum(path.suffix.lower() in SUFFIXES["image"] for path in Path(folder).glob("[!.]*"))


def _located(span: tuple[float, float], frames: int | None) -> tuple[float, float]:
    """The span that --localised asks about: a second more at both ends, as the authors' interval2frame.

    It ends with the last frame, if their number is known. A reversed span becomes empty, as in theirs.
    """
    first, last = (math.floor(max(time, 0) * FRAME_RATE) for time in (span[0] - 1, span[1] + 1))
    if frames is not None:
        first, last = min(first, frames), min(last, frames)
    if first == last:
        first = max(0, first - FRAME_RATE)
    return first / FRAME_RATE, last / FRAME_RATE


def _located_lines(lines: list[Line], span: tuple[float, float], start: float) -> list[Line]:
    """Subtitles that begin in the span, and the one before them; else the three next to its start.

    As the authors' get_located_sub_text, so that scores compare. Times count from `start`.
    """
    inside = [place for place, line in enumerate(lines) if span[0] < line["start"] < span[1]]
    if not inside and lines:
        nearest = min(range(len(lines)), key=lambda place: abs(lines[place]["start"] - span[0]))
        inside = [place for place in (nearest - 1, nearest, nearest + 1) if 0 <= place < len(lines)]
    shown = [lines[place] for place in ([inside[0] - 1] if inside and inside[0] else []) + inside]
    return [line | {"start": line["start"] - start} for line in shown]


def _span(job: Job, row: Row) -> tuple[float, float]:
    """The annotated span in seconds: NaN replaced and reversed ends kept, as its authors do."""
    try:
        ends = row["ts"].split("-") if isinstance(row["ts"], str) else row["ts"]
        start, end = (float(value) for value in ends)
    except (TypeError, ValueError):
        raise RecordError(f"{row.where}: ts must be two times in seconds, not {row['ts']!r}") from None
    if math.isnan(start) or math.isnan(end):
        job.noted["span NaN: taken as 10 to 30 s, as the authors do"] += 1
        return UNKNOWN_SPAN
    if end < start:
        job.noted["span reversed: left so, as the authors do"] += 1
    if end == start:
        job.noted["span empty"] += 1
    return start, end
