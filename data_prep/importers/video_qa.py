"""Questions about videos: MSRVTT-QA, MSVD-QA, ActivityNet-QA, NExT-QA, MUSIC-AVQA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from data_prep.importers.job import Job, Record
from data_prep.importers.tables import Row
from mllm.errors import RecordError

ACTIVITYNET_TYPES = (  # of a question, then of an answer, by the official number
    *("motion", "spatial relationship", "temporal relationship", "yes/no", "colour"),
    *("object", "location", "number", "other"),
)


def msrvtt_qa(job: Job) -> Iterator[Record]:
    """The official arrays, ClipBERT's JSON lines, or test_q.json with test_a.json."""
    yield from _open_questions(job, lambda video: video if video.startswith("video") else f"video{video}")


def msvd_qa(job: Job) -> Iterator[Record]:
    """The official arrays; with youtube_mapping.txt the recordings may keep their YouTube names."""
    youtube = {}
    for line, where in job.lines():
        name, _, number = line.rpartition(" ")
        if not name:
            raise RecordError(f"{where}: must be '<YouTube name> vid<number>', as in youtube_mapping.txt")
        youtube[number] = name

    def video(number: str) -> str:
        number = number if number.startswith("vid") else f"vid{number}"
        return youtube[number] if number in youtube and not job.media.has("video", number) else number

    yield from _open_questions(job, video)


def activitynet_qa(job: Job) -> Iterator[Record]:
    """<split>_q.json with <split>_a.json; recordings are called v_<video_name>."""
    yield from _open_questions(job, lambda video: video if video.startswith("v_") else f"v_{video}")


def nextqa(job: Job) -> Iterator[Record]:
    """The multiple-choice csv; with map_vid_vidorID.json recordings may lie as in VidOR."""
    vidor = {name: path for _, mapping in job.objects() for name, path in mapping.items()}
    for row in job.rows(only=".csv"):
        video = row["video"]
        if not job.media.has("video", video):
            video = vidor.get(video, video)
        options = [row[f"a{number}"] for number in range(5)]
        right = job.number(row, "answer", len(options))
        yield job.choice(
            f"{row['video']}_{row['qid']}", [job.video(video)], row["question"], options, right,
            question_type=row["type"],
        )  # fmt: skip


def music_avqa(job: Job) -> Iterator[Record]:
    """avqa-<split>.json; its answers are under `anser`, its types and values are JSON in strings."""
    for row in job.rows():
        if row.get("question_deleted"):
            job.left_out["question deleted by its authors"] += 1
            continue
        question = row["question_content"]
        for value in json.loads(row["templ_values"]):
            question = re.sub(r"<\w+>", lambda _, value=value: value, question, count=1)
        if re.search(r"<\w+>", question):
            job.noted["fewer values than gaps in the question"] += 1
        answer = row["anser"] if "anser" in row else row["answer"]
        yield job.qa(
            row["question_id"], [job.video(row["video_id"])], question, answer,
            question_type="/".join(json.loads(row["type"])),
        )  # fmt: skip


def _open_questions(job: Job, video_name: Callable[[str], str]) -> Iterator[Record]:
    """Question and answer in one row, or in rows of two files that share `question_id`."""
    questions, answers = [], {}
    for row in job.rows():
        if "question" in row:
            questions.append(row)
        else:
            answers[row["question_id"]] = row
    for number, row in enumerate(questions, start=1):
        id = row["question_id"] if "question_id" in row else row.get("id", number)
        found = row if "answer" in row else answers.get(id, {})
        if not found:
            job.noted["no answer given"] += 1
        video = str(row["video_name"] if "video_name" in row else row["video_id"])
        yield job.qa(
            id, [job.video(video_name(video))], row["question"], found.get("answer"),
            question_type=_question_type(job, found),
        )  # fmt: skip


def _question_type(job: Job, row: Row | dict) -> str | None:
    kind = row.get("answer_type", row.get("type"))
    if job.name == "activitynet-qa" and isinstance(kind, int):
        return ACTIVITYNET_TYPES[kind]
    return None if kind is None else str(kind)
