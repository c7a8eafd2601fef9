"""TVQA and TVQA+: five options, subtitles, and the span of the clip that a question is about.

The recordings are folders of frames, three a second, with the sound in a file of the same name.
Lei et al. 2018, https://arxiv.org/abs/1809.01696; Lei et al. 2020, https://arxiv.org/abs/1904.11574.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from data_prep.importers.job import Job, Record
from data_prep.importers.tables import Row
from mllm.errors import RecordError
from mllm.templates import subtitle_block

FRAME_RATE = 3  # frames a second that the authors give
Line = dict[str, Any]  # text, start, end in s
UNKNOWN_SPAN = (10.0, 30.0)  # s: what the authors' preprocessing.py puts in place of NaN


def tvqa(job: Job) -> Iterator[Record]:
    """tvqa_<split>.jsonl or tvqa_plus_<split>.json; subtitles, too, if their JSON lines are given."""
    questions, subtitles = [], {}
    for row in job.rows():
        if "sub" in row:
            subtitles[row["vid_name"]] = row["sub"]
        else:
            questions.append(row)
    for row in questions:
        span = _span(job, row)
        located = _located(span) if job.localised else ()
        video = job.video(row["vid_name"], *located)
        options = [row[f"a{number}"] for number in range(5)]
        right = job.number(row, "answer_idx", len(options))
        lines = subtitles.get(row["vid_name"], [])
        if subtitles and not lines:
            job.noted["no subtitles given"] += 1
        told = subtitle_block(_located_lines(lines, span, located[0]) if located else lines)
        media = [video, {"type": "text", "text": told}] if told else [video]
        yield job.choice(
            row["qid"], media, row["q"], options, right,
            span=list(span), show=row.get("show_name"),
        )  # fmt: skip


def _located(span: tuple[float, float]) -> tuple[float, float]:
    """The span that --localised asks about: a second more at both ends, as the authors' interval2frame."""
    first, last = (math.floor(time * FRAME_RATE) for time in (max(span[0] - 1, 0), span[1] + 1))
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
    """The annotated span in seconds: NaN replaced as its authors do; ends in order, which they leave."""
    try:
        ends = row["ts"].split("-") if isinstance(row["ts"], str) else row["ts"]
        start, end = (float(value) for value in ends)
    except (TypeError, ValueError):
        raise RecordError(f"{row.where}: ts must be two times in seconds, not {row['ts']!r}") from None
    if math.isnan(start) or math.isnan(end):
        job.noted["span NaN: taken as 10 to 30 s, as the authors do"] += 1
        return UNKNOWN_SPAN
    if end < start:
        job.noted["span reversed: ends exchanged"] += 1
        return end, start
    if end == start:
        job.noted["span empty"] += 1
    return start, end
