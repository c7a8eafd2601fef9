"""Spoken recordings with labels: emotions (CREMA-D, IEMOCAP, RAVDESS, EmoDB, MELD) and digits (FSDD)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.importers.job import Job, Record
from mllm.media.sources import SUFFIXES
from mllm.records import templates

CREMA_D = {
    "ANG": "angry", "DIS": "disgusted", "FEA": "afraid", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
RAVDESS = {
    "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "afraid",
    "07": "disgusted", "08": "surprised",
}  # fmt: skip
EMODB = {  # the letters stand for the German words
    "W": "angry", "L": "bored", "E": "disgusted", "A": "afraid", "F": "happy", "T": "sad", "N": "neutral",
}  # fmt: skip
IEMOCAP = {"ang": "angry", "hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral"}  # the usual four
MELD = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def crema_d(job: Job) -> Iterator[Record]:
    """1001_DFA_ANG_XX.wav: the emotion that the actor was to express.

    With summaryTable.csv or tabulatedVotes.csv also what most listeners heard, as the label `perceived`.
    """
    heard = _votes(job)
    for path, (actor, sentence, emotion, level) in _named(
        job, rf"(\d{{4}})_([A-Z]{{3}})_({'|'.join(CREMA_D)})_([A-Z]{{1,2}})"
    ):
        labels = {"actor": actor, "sentence": sentence, "level": level}
        if path.stem in heard:
            labels["perceived"] = heard[path.stem]
        elif heard:
            job.noted["no votes given"] += 1
        yield _emotion(job, path, CREMA_D, emotion, **labels)


def _votes(job: Job) -> dict[str, str]:
    """What most listeners heard in the voice alone, by name of the recording; ties are named: angry:sad."""
    words = {code[0]: word for code, word in CREMA_D.items()}
    votes = {}
    for row in job.rows():
        with job.or_left_out():
            if "VoiceVote" in row:
                name, vote = row["FileName"], row["VoiceVote"]
            elif row[""].startswith("1"):  # then come the clip's numbers; 2 is the face, 3 both
                name, vote = row["fileName"], row["emoVote"]
            else:
                continue
            votes[name] = ":".join(words[letter] for letter in vote.split(":"))
    return votes


def ravdess(job: Job) -> Iterator[Record]:
    """03-01-06-01-02-01-12.wav, or 01-….mp4 with the picture; speech alone, not song."""
    for path, codes in _named(job, r"(\d\d)-(\d\d)-(0[1-8])-(\d\d)-(\d\d)-(\d\d)-(\d\d)"):
        _, channel, emotion, intensity, statement, _, actor = codes
        if channel != "01":
            job.left_out["song, not speech"] += 1
            continue
        yield _emotion(
            job, path, RAVDESS, emotion, actor=str(int(actor)), intensity=intensity, sentence=statement
        )


def emodb(job: Job) -> Iterator[Record]:
    """03a01Fa.wav: labels from the names; the audio_labels.csv of one mirror is wrong."""
    for path, (speaker, text, emotion) in _named(job, rf"(\d\d)([ab]\d\d)([{''.join(EMODB)}])[a-z]?"):
        yield _emotion(job, path, EMODB, emotion, actor=speaker, sentence=text)


def iemocap(job: Job) -> Iterator[Record]:
    """EmoEvaluation/*.txt: the usual four classes, excitement counted as happiness."""
    for line, _ in job.lines():
        with job.or_left_out():
            turn = re.match(r"\[([\d.]+) - ([\d.]+)\]\s+(Ses(\d\d)\S+_([FM])\d+)\s+(\w+)", line)
            if not turn:
                continue  # votes of single raters, headings
            name, session, speaker, emotion = turn[3], turn[4], turn[5], turn[6]
            if emotion not in IEMOCAP:
                job.left_out[f"emotion '{emotion}' is not of the four"] += 1
                continue
            media = [job.audio(name)]
            actor = f"{session}{speaker}"
            labels = {"emotion": IEMOCAP[emotion], "session": str(int(session)), "actor": actor}
            yield job.label(
                name, "emotion", media, IEMOCAP[emotion], sorted(set(IEMOCAP.values())), labels=labels
            )


def meld(job: Job) -> Iterator[Record]:
    """<split>_sent_emo.csv or _dya; clips are called dia<d>_utt<u>.mp4. What is said is a subtitle."""
    for row in job.rows():
        with job.or_left_out():
            emotion = row["Emotion"].strip().lower()
            if emotion not in MELD:
                job.left_out[f"emotion '{emotion}' is not of the seven"] += 1
                continue
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            # MELD_Dyadic numbers its dialogues anew; the clips keep their names.
            old = {key: row.get(f"Old_{key}", row[key]) for key in ("Dialogue_ID", "Utterance_ID")}
            told = re.match("train|dev|test", row.where)  # each split counts from 0
            split = told[0] if told else None
            clip = job.video(f"dia{old['Dialogue_ID']}_utt{old['Utterance_ID']}", within=split)
            words = templates.subtitle_block([{"text": row["Utterance"].strip(), "start": 0.0}])
            yield job.label(
                f"{split}/{name}" if split else name, "emotion",
                [clip, *([{"type": "text", "text": words}] if words else [])],
                emotion, MELD,
                labels={"emotion": emotion, "sentiment": row["Sentiment"], "actor": row["Speaker"]},
            )  # fmt: skip


def fsdd(job: Job) -> Iterator[Record]:
    """7_jackson_32.wav: a digit, its speaker, the number of the recording."""
    for path, (digit, speaker, index) in _named(job, r"(\d)_([a-z]+)_(\d+)"):
        word = DIGITS[int(digit)]
        labels = {"digit": word, "actor": speaker, "index": index}
        yield job.label(path.stem, "digit", [job.audio(path)], word, DIGITS, labels=labels)


def _named(job: Job, pattern: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Recordings labelled by their file names: sound files, or else videos; other files are left out."""
    strange = None
    for path in job.media.files("audio") or job.media.files("video") or job.recordings("audio"):
        job.where = path.name
        if match := re.fullmatch(pattern, path.stem):
            yield path, match.groups()
        else:
            strange = strange or path.name
            job.left_out[f"file names not like {job.name}'s, such as {strange}"] += 1


def _emotion(job: Job, path: Path, names: dict[str, str], code: str, **labels: str) -> Record:
    emotion = names[code]
    labels = {"emotion": emotion, **labels}
    video = path.suffix.lower() in SUFFIXES["video"]
    part = {"type": "video", "video": str(path)} if video else job.audio(path)
    return job.label(path.stem, "emotion", [part], emotion, sorted(names.values()), labels=labels)
