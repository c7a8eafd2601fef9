"""Questions about videos: MSRVTT-QA, MSVD-QA, ActivityNet-QA, NExT-QA, MUSIC-AVQA, TGIF-QA."""

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
        with job.or_left_out():
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
    """The csv, multiple-choice or open-ended; with map_vid_vidorID.json recordings may lie as in VidOR."""
    vidor = {name: path for _, mapping in job.objects() for name, path in mapping.items()}
    for row in job.rows(only=".csv"):
        with job.or_left_out():
            video = row["video"]
            if not job.media.has("video", video):
                video = vidor.get(video, video)
            id, media = f"{row['video']}_{row['qid']}", [job.video(video)]
            if "a0" not in row:
                yield job.qa(
                    id, media, row["question"], row["answer"],
                    question_type=row["type"], additional_ref_answer=row.get("additional_ref_answer") or None,
                )  # fmt: skip
                continue
            options = [row[f"a{number}"] for number in range(5)]
            right = job.number(row, "answer", len(options))
            yield job.choice(id, media, row["question"], options, right, question_type=row["type"])


def music_avqa(job: Job) -> Iterator[Record]:
    """avqa-<split>.json; its answers are under `anser`, its types and values are JSON in strings."""
    for row in job.rows():
        with job.or_left_out():
            if row.get("question_deleted"):
                job.left_out["question deleted by its authors"] += 1
                continue
            question = row.text("question_content")
            for value in json.loads(row["templ_values"]):
                question = re.sub(r"<\w+>", value.replace("\\", r"\\"), question, count=1)
            if re.search(r"<\w+>", question):
                job.noted["fewer values than gaps in the question"] += 1
            answer = job.answer(row, "anser" if "anser" in row else "answer")
            yield job.qa(
                row["question_id"], [job.video(row["video_id"])], question, answer,
                question_type="/".join(json.loads(row["type"])),
            )  # fmt: skip


def tgif_qa(job: Job) -> Iterator[Record]:
    """<split>_{action,transition,frameqa,count}_question.csv; recordings are called <gif_name>."""
    for number, row in enumerate(job.rows(), start=1):
        with job.or_left_out():
            id, media = row.get("vid_name") or row.get("key") or number, [job.video(row["gif_name"])]
            told = re.search("action|transition|frameqa|count", row.where, re.IGNORECASE)
            kind = told[0].lower() if told else None
            if "a1" in row:
                options = [row.text(f"a{place}") for place in range(1, 6)]
                right = job.number(row, "answer", len(options))
                yield job.choice(id, media, row.text("question"), options, right, question_type=kind)
            else:
                yield job.qa(id, media, row.text("question"), job.answer(row), question_type=kind)


def _open_questions(job: Job, video_name: Callable[[str], str]) -> Iterator[Record]:
    """Question and answer in one row, or in rows of two files that share `question_id`."""
    questions, answers = [], {}
    for row in job.rows():
        with job.or_left_out():
            if "question" in row:
                questions.append(row)
            else:
                answers[str(row["question_id"])] = row
    for number, row in enumerate(questions, start=1):
        with job.or_left_out():
            job.where = row.where
            id = row["question_id"] if "question_id" in row else row.get("id", number)
            found = row if "answer" in row else answers.get(str(id), Row({}, row.where))
            video = str(row["video_name"] if "video_name" in row else row["video_id"])
            yield job.qa(
                id, [job.video(video_name(video))], row.text("question"), job.answer(found),
                question_type=_question_type(job, found),
            )  # fmt: skip


def _question_type(job: Job, row: Row) -> str | None:
    kind = row.get("answer_type", row.get("type"))
    if job.name == "activitynet-qa" and isinstance(kind, int):
        return ACTIVITYNET_TYPES[kind]
    return None if kind is None else str(kind)
