"""TVQA and TVQA+: five options, subtitles, and the span of the clip that a question is about.

The recordings are folders of frames, three a second, with the sound in a file of the same name.
Lei et al. 2018, https://arxiv.org/abs/1809.01696; Lei et al. 2020, https://arxiv.org/abs/1904.11574.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from data_prep.importers.job import Job, Record
from data_prep.importers.tables import Row
from mllm.errors import RecordError
from mllm.templates import subtitle_block

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
        video = job.video(row["vid_name"], *(span if job.localised else ()))
        options = [row[f"a{number}"] for number in range(5)]
        right = job.number(row, "answer_idx", len(options))
        lines = subtitles.get(row["vid_name"], [])
        if subtitles and not lines:
            job.noted["no subtitles given"] += 1
        told = subtitle_block(lines, *(span if job.localised else ()))
        media = [video, {"type": "text", "text": told}] if told else [video]
        yield job.choice(
            row["qid"], media, row["q"], options, right,
            span=list(span), show=row.get("show_name"),
        )  # fmt: skip


def _span(job: Job, row: Row) -> tuple[float, float]:
    """The annotated span in seconds: NaN replaced as its authors do, ends in order, no span empty."""
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
        job.noted["span empty: taken as 1 s"] += 1
        return start, start + 1
    return start, end
