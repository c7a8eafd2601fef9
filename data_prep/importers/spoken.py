"""What is said in recordings: subtitles beside them, LJSpeech's metadata.csv, Kaldi's data folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.job import Job, Part, Record
from data_prep.importers.subtitles import SUBTITLES, Line
from mllm.errors import RecordError
from mllm.sources import MEDIA_SUFFIXES, SUFFIXES

KALDI = ("text", "wav.scp", "segments", "utt2spk", "spk2gender")
GAP = 5.0  # s without a word behind which a new record of a timed transcript begins
NOT_SAID = re.compile(r"[\[(♪♫].*[\])♪♫]|[♪♫].*")  # [door slams], ♪ music ♪


def subtitles(job: Job) -> Iterator[Record]:
    """Recordings with subtitles of the same name: a.mp4 with a.srt, a.en.vtt or a.ass beside it.

    Give the folder of both as --media, or the subtitles as --annotations. Each record is a stretch of at most
    --stretch seconds, with the times of its lines.
    """
    if not job.files:
        job.files = job.media.ending(SUBTITLES)
    heard: Counter[str] = Counter()
    for path, lines in job.subtitles():
        with job.or_left_out():
            name, language, part = _recording(job, path)
            heard[name] += 1
            if heard[name] > 1:
                job.noted["more subtitles of one recording: only those in its language say what is said"] += 1
            id = f"{name}.{language}" if language else name
            labels = {"language": language} if language else None
            for number, stretch in enumerate(_stretches(_spoken(job, _unrolled(job, lines)), job.stretch)):
                start, end = stretch[0]["start"], max(line["end"] for line in stretch)
                words = [
                    [round(line["start"] - start, 3), round(line["end"] - start, 3), line["text"]]
                    for line in stretch
                ]
                said, cut = " ".join(line["text"] for line in stretch), part | {"start": start, "end": end}
                yield job.transcript(f"{id}-{number}", [cut], said, words=words, labels=labels)


def _unrolled(job: Job, lines: list[Line]) -> list[Line]:
    """Lines without what each repeats of the one before, where most do: so YouTube's captions roll."""
    shown, repeated, kept = [""], 0, []
    for line in lines:
        words = line["text"].split()
        same = next(size for size in range(len(words), -1, -1) if words[:size] == shown[len(shown) - size :])
        repeated += same > 0
        kept.append(line | {"text": " ".join(words[same:])})
        shown = words or shown
    if 2 * repeated <= len(lines) or len(lines) < 3:
        return lines
    job.noted["rolling captions: what a line repeats is taken once"] += 1
    return [line for line in kept if line["text"]]


def _spoken(job: Job, lines: list[Line]) -> Iterator[Line]:
    """Lines of subtitles that are speech."""
    for line in lines:
        if not line["text"] or NOT_SAID.fullmatch(line["text"]):
            job.left_out["line that is no speech"] += 1
        elif line["end"] <= line["start"]:
            job.left_out["line without a length"] += 1
        else:
            yield line


def _recording(job: Job, path: Path) -> tuple[str, str | None, Part]:
    """(name, language, part) of the recording that subtitles belong to: beside them, else under --media."""
    tagged = re.fullmatch(r"(.+)\.([a-z]{2,3}(?:-[A-Za-z]{2,4})?)", path.stem)
    for name, language in ((path.stem, None), *((tagged.groups(),) if tagged else ())):
        beside = [
            file
            for kind in ("video", "audio")
            for file in sorted(path.parent.iterdir())
            if file.suffix.lower() in SUFFIXES[kind] and name in (file.stem, file.name)
        ]
        if beside or job.media.has("video", name) or job.media.has("audio", name):
            return name, language, job.medium(str(beside[0].absolute()) if beside else name)
    return path.stem, None, job.medium(path.stem)


def _stretches(lines: Iterable[Line], most: float) -> Iterator[list[Line]]:
    """Lines of subtitles in order, together as long as they last `most` s and no gap is between them."""
    stretch: list[Line] = []
    for line in lines:
        if stretch and (
            line["end"] - stretch[0]["start"] > most
            or line["start"] - max(before["end"] for before in stretch) > GAP
        ):
            yield stretch
            stretch = []
        stretch.append(line)
    if stretch:
        yield stretch


def ljspeech(job: Job) -> Iterator[Record]:
    """metadata.csv of LJSpeech and Piper: id|text|normalised text; or a file list: wavs/a.wav|text|speaker.

    Recordings lie beside it, in wavs/ say. Of two texts the normalised one is taken.
    """
    for path, text in [*job.texts(".csv"), *job.texts(".txt")]:
        for number, line in enumerate(text.split("\n"), start=1):
            job.where = f"{path.name} line {number}"
            if not line.strip():
                continue
            name, *texts = (value.strip() for value in line.split("|"))  # quotation marks are letters here
            if number == 1 and {value.lower() for value in texts} & {"text", "transcript", "transcription"}:
                raise RecordError(f"{path.name}: has a header, which ljspeech has not: import it as `table`")
            with job.or_left_out():
                if not texts:
                    raise RecordError(f"{job.where}: must be id|text, as in LJSpeech's metadata.csv")
                speaker = texts.pop() if len(texts) > 1 and _is_path(name) else None
                labels = {"speaker": speaker} if speaker else None
                id = Path(name).stem if _is_path(name) else name
                yield job.transcript(id, [job.medium(name, "audio")], texts[-1] or texts[0], labels=labels)


def _is_path(name: str) -> bool:
    return "/" in name or Path(name).suffix.lower() in MEDIA_SUFFIXES


def kaldi(job: Job) -> Iterator[Record]:
    """A Kaldi data folder: text and wav.scp; segments, utt2spk and spk2gender where they are.

    Commands in wav.scp are never run: the recording that one reads is taken.
    """
    files = {name: dict(_pairs(job, name)) for name in KALDI}
    if not files["text"]:
        raise RecordError("kaldi: no file called text: give --annotations a data folder, or its files")
    for id, said in files["text"].items():
        job.where = f"text {id}"
        with job.or_left_out():
            yield from _utterance(job, files, id, said)


def _utterance(job: Job, files: dict[str, dict[str, str]], id: str, said: str) -> Iterator[Record]:
    """The record of an utterance, where its sound is a file."""
    name, span = _segment(files["segments"], id)
    source = files["wav.scp"].get(name, name)
    if files["wav.scp"] and name not in files["wav.scp"]:
        job.left_out["utterance that wav.scp does not list"] += 1
        return
    found = _readable(source)
    if found is None:
        job.left_out["sound of a command or an archive (wav.scp)"] += 1
        return
    speaker = files["utt2spk"].get(id)
    labels = {"speaker": speaker, "gender": files["spk2gender"].get(speaker or "")}
    more: dict[str, Any] = {"labels": {key: value for key, value in labels.items() if value} or None}
    if said and len(span) == 2:
        more["words"] = [[0.0, round(span["end"] - span["start"], 3), said]]
    yield job.transcript(id, [job.medium(found, "audio", **span)], said, **more)


def _pairs(job: Job, name: str) -> Iterator[tuple[str, str]]:
    """(key, the rest of the line) of the files of a name; a folder of splits has several."""
    for path in job.files:
        if path.name == name:
            for line in job.read(path).split("\n"):
                key, _, rest = line.strip().replace("\t", " ").partition(" ")
                if key:
                    yield key, rest.strip()


def _segment(segments: dict[str, str], id: str) -> tuple[str, dict[str, float]]:
    """(recording, span in s) of an utterance: without segments, all of the recording of its name."""
    if id not in segments:
        return id, {}
    recording, *times = segments[id].split()
    try:
        start, end = map(float, times[:2])
    except ValueError:
        raise RecordError(f"text {id}: its segment must be <utterance> <recording> <start> <end>") from None
    return recording, {"start": start} | ({"end": end} if end >= 0 else {})  # -1 is the end of the recording


def _readable(source: str) -> str | None:
    """The recording of a line of wav.scp; None where there is none, or several."""
    if not source.endswith("|"):
        return None if re.search(r"\.ark:\d+$", source) else source
    words = (word.strip("'\"") for word in source.rstrip("| ").split())
    found = [word for word in words if Path(word).suffix.lower() in MEDIA_SUFFIXES]
    return found[0] if len(found) == 1 else None
