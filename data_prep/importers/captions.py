"""Recordings described in words: captions, sound events, speech recognised in instruction videos."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from data_prep.importers.job import Job, Record
from data_prep.importers.tables import Row, is_nan
from mllm.errors import RecordError

AUDIOSET_SECONDS = 10.0  # the length of every clip of AudioSet, AudioCaps and VGGSound


def msrvtt_captions(job: Job) -> Iterator[Record]:
    """videodatainfo_2016.json (or MSRVTT_data.json), or a retrieval split such as MSRVTT_JSFUSION_test.csv.

    With a list beside the json, of names in lines (.txt) or under `video_id` (.csv), only the videos in it.
    """
    captions: dict[str, list[str]] = defaultdict(list)
    splits: dict[str, str] = {}
    for path, whole in job.objects():
        for number, sentence in enumerate(whole.get("sentences", ()), start=1):
            with job.or_left_out():
                if not isinstance(sentence, dict) or not {"video_id", "caption"} <= sentence.keys():
                    raise RecordError(f"{path.name} sentences row {number}: needs video_id and caption")
                row = Row(sentence, f"{path.name} sentences row {number}")
                caption = row.text("caption")
                captions[row["video_id"]].append(caption)
        for number, video in enumerate(whole.get("videos", ()), start=1):
            job.where = f"{path.name} videos row {number}"
            with job.or_left_out():
                if "split" in video:
                    splits[video["video_id"]] = video["split"]
    listed: dict[str, None] = {}
    for row in job.rows(only=".csv"):
        with job.or_left_out():
            listed[row["video_id"]] = None
            if "sentence" in row:
                captions[row["video_id"]].append(row["sentence"])
    for line, where in job.lines():
        with job.or_left_out():
            if len(line.split()) > 1:
                raise RecordError(f"{where}: must be the name of one video, as in train_list.txt")
            listed[line] = None
    for video in listed or captions:
        with job.or_left_out():
            job.where = f"video {video}"
            if video in captions:
                labels = {"split": splits[video]} if video in splits else None
                yield job.caption(video, [job.video(video)], {"video": captions[video]}, labels=labels)
            else:
                job.left_out["listed, but without a caption"] += 1


def audiocaps(job: Job) -> Iterator[Record]:
    """<split>.csv; recordings are called <youtube_id>, <youtube_id>_<start> or <audiocap_id>."""
    for row in job.rows():
        with job.or_left_out():
            names = (f"{row['youtube_id']}_{row['start_time']}", row["audiocap_id"], row["youtube_id"])
            name = next((name for name in names if job.media.has("audio", name)), names[-1])
            yield job.caption(row["audiocap_id"], [job.audio(name)], {"audio": [row["caption"]]})


def clotho(job: Job) -> Iterator[Record]:
    """clotho_captions_<split>.csv: five captions of each sound."""
    for row in job.rows():
        with job.or_left_out():
            captions = [row[f"caption_{number}"] for number in range(1, 6)]
            yield job.caption(row["file_name"], [job.audio(row["file_name"])], {"audio": captions})


def vggsound(job: Job) -> Iterator[Record]:
    """vggsound.csv, which has no header: a video, or its sound alone, and the event that is heard in it."""
    for row in job.rows(columns=["youtube_id", "start", "label", "split"]):
        with job.or_left_out():
            name = f"{row['youtube_id']}_{int(row['start']):06d}"
            sound = job.media.has("audio", name) and not job.media.has("video", name)
            part = job.audio(name) if sound else job.video(name)
            yield job.label(name, "sound_event", [part], row["label"], labels={"split": row["split"]})


def webvid(job: Job) -> Iterator[Record]:
    """results_<split>.csv: `videoid, name` and, where recordings lie in folders, `page_dir`."""
    for row in job.rows():
        with job.or_left_out():
            name = f"{row['page_dir']}/{row['videoid']}" if row.get("page_dir") else row["videoid"]
            yield job.caption(row["videoid"], [job.video(name)], {"video": [row["name"]]})


def howto100m(job: Job) -> Iterator[Record]:
    """caption.json: for each video `start`, `end` and `text` of what was recognised, each a list.

    Speech is asked for as speech; in the shared space it also serves as a caption of picture and sound.
    """
    for path, whole in job.objects():
        for video, said in whole.items():
            with job.or_left_out():
                job.where = f"{path.name} {video}"
                try:
                    lines = list(zip(said["start"], said["end"], said["text"], strict=True))
                except (TypeError, KeyError, ValueError):
                    raise RecordError(
                        f"{job.where}: needs lists start, end and text, all of one length"
                    ) from None
                for number, (start, end, text) in enumerate(lines):
                    with job.or_left_out():
                        words = "" if is_nan(text) else str(text).strip()
                        if end <= start or not words:
                            job.left_out["empty span or text"] += 1
                            continue
                        part = job.video(video, float(start), float(end))
                        yield job.transcript(
                            f"{video}_{number}", [part], words,
                            words=[[0.0, round(end - start, 3), words]], captions={"both": [words]},
                        )  # fmt: skip


def flickr8k_audio(job: Job) -> Iterator[Record]:
    """wav2capt.txt with Flickr8k.token.txt: pictures with five captions, and each caption spoken."""
    captions: dict[str, list[str]] = defaultdict(list)
    spoken = []
    for line, where in job.lines():
        with job.or_left_out():
            if told := re.fullmatch(r"(\S+\.jpg)(\.\d+)?#(\d+)\t(.+)", line):
                if told[2]:  # 2258277193_586949ec62.jpg.1, in the official file
                    job.left_out["caption of a picture that does not exist"] += 1
                else:
                    captions[told[1]].append(told[4].strip())
            elif told := re.fullmatch(r"(\S+\.wav)\s+(\S+\.jpg)\s+#(\d+)", line):
                spoken.append((told[1], told[2], int(told[3]), where))
            else:
                raise RecordError(
                    f"{where}: neither '<image>.jpg#<n> TAB caption' nor '<sound>.wav <image>.jpg #<n>'"
                )
    for image, texts in captions.items():
        with job.or_left_out():
            job.where = f"picture {image}"
            yield job.caption(image, [job.image(image)], {"video": texts})
    for wav, image, number, where in spoken:
        with job.or_left_out():
            job.where = where
            if number >= len(captions.get(image, ())):
                job.left_out["spoken caption without its text"] += 1
                continue
            yield job.transcript(wav, [job.audio(wav)], captions[image][number], image=image)
