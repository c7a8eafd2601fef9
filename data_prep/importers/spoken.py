"""Transcribed speech: subtitles beside recordings, LJSpeech's metadata.csv, Kaldi data folders."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.job import Job, Part, Record
from mllm.errors import RecordError
from mllm.media.sources import MEDIA_SUFFIXES, SUFFIXES
from mllm.records.subtitles import KINDS, LANGUAGE, SUBTITLES, Line, unrolled

KALDI = ("text", "wav.scp", "segments", "utt2spk", "spk2gender")
GAP = 5.0  # s of silence after which a timed transcript continues in a new record
NOT_SAID = re.compile(r"(?:[\[(♪♫][^\[\]()♪♫]*[\])♪♫]\s*)+|[♪♫].*")  # [door slams] (laughs), ♪ music ♪
# Options of commands whose output differs from the recording they read.
CHANGED = re.compile(
    r"\s(?:trim|speed|tempo|reverse|remix\s+\d+|-ss|-to|-t\s+[\d:.]+|-map_channel)\s|\bsph2pipe\b[^|]*\s-[cst]\s"
)


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
            shown = unrolled(lines)
            if shown is not lines:
                job.noted["rolling captions: what a line repeats is taken once"] += 1
            for number, stretch in enumerate(_stretches(_spoken(job, shown), job.stretch)):
                start, end = stretch[0]["start"], max(line["end"] for line in stretch)
                words = [
                    [round(line["start"] - start, 3), round(line["end"] - start, 3), line["text"]]
                    for line in stretch
                ]
                said, cut = " ".join(line["text"] for line in stretch), part | {"start": start, "end": end}
                yield job.transcript(f"{id}-{number}", [cut], said, words=words, labels=labels)


def _spoken(job: Job, lines: list[Line]) -> Iterator[Line]:
    """Yields the lines of subtitles that are speech."""
    for line in lines:
        if not line["text"] or NOT_SAID.fullmatch(line["text"]):
            job.left_out["line that is no speech"] += 1
        elif line["end"] <= line["start"]:
            job.left_out["line without a length"] += 1
        else:
            yield line


def _recording(job: Job, path: Path) -> tuple[str, str | None, Part]:
    """The (name, language, part) of the recording of subtitles, beside them or else under --media."""
    words = path.stem.split(".")  # film.en.srt, film.pt-BR.forced.srt
    for count in range(len(words), max(len(words) - 3, 0), -1):
        name, tags = ".".join(words[:count]), [tag for tag in words[count:] if tag not in KINDS]
        if not all(map(LANGUAGE.fullmatch, tags)):
            break
        beside = [
            file
            for kind in ("video", "audio")
            for file in sorted(path.parent.iterdir())
            if file.suffix.lower() in SUFFIXES[kind] and name in (file.stem, file.name)
        ]
        if beside or job.media.has("video", name) or job.media.has("audio", name):
            part = job.medium(str(beside[0].absolute()) if beside else name)
            return name, next(iter(tags), None), part
    return path.stem, None, job.medium(path.stem)


def _stretches(lines: Iterable[Line], most: float) -> Iterator[list[Line]]:
    """Groups consecutive lines that last at most `most` s in all and have no gap between them."""
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
        lines = [
            [value.strip() for value in line.split("|")] for line in text.split("\n")
        ]  # " is a letter here
        if {value.lower() for value in lines[0][1:]} & {"text", "transcript", "transcription"}:
            raise RecordError(f"{path.name}: has a header, which ljspeech has not: import it as `table`")
        said, speaker = _columns_of(path, lines)
        for number, (name, *values) in enumerate(lines, start=1):
            job.where = f"{path.name} line {number}"
            if not name and not values:
                continue
            with job.or_left_out():
                if not values:
                    raise RecordError(f"{job.where}: must be id|text, as in LJSpeech's metadata.csv")
                if len(values) <= speaker:
                    raise RecordError(
                        f"{job.where}: has fewer columns than other lines: write empty ones, too"
                    )
                words = next(filter(None, (values[place] for place in said if place < len(values))), "")
                labels = {"speaker": values[speaker]} if speaker >= 0 else None
                id = Path(name).stem if _is_path(name) else name
                yield job.transcript(id, [job.medium(name, "audio")], words, labels=labels)


def _columns_of(path: Path, lines: list[list[str]]) -> tuple[list[int], int]:
    """Which columns after the name are texts, in order of preference, and which is the speaker, or -1.

    A speaker or language column has one word in every line, which is never the text itself.

    Raises:
        RecordError: the columns are ambiguous.
    """
    width = max(map(len, lines)) - 1
    if width < 2:
        return [0], -1
    full = [line for line in lines if len(line) == width + 1]
    places = range(1, width + 1)
    texts = [place for place in places if any(len(line[place].split()) > 1 for line in full)]
    if not texts and width == 2 and not all(line[1].isdigit() for line in full):  # single words
        return ([0], 1) if any(_is_path(line[0]) for line in full) else ([1, 0], -1)
    others = [
        place
        for place in places
        if place not in texts
        and all(line[place] and line[place] not in [line[text] for text in texts] for line in full)
    ]
    said = [place - 1 for place in places if place not in others]
    if not texts or len(said) > 2 or len(others) > 2:
        raise RecordError(
            f"{path.name}: {width + 1} columns, and which is the text cannot be told: write a header such as "
            "file|speaker|text, and import it as `table`"
        )
    return said[::-1], others[0] - 1 if others else -1


def _is_path(name: str) -> bool:
    return "/" in name or Path(name).suffix.lower() in MEDIA_SUFFIXES


def kaldi(job: Job) -> Iterator[Record]:
    """A Kaldi data folder: text and wav.scp; segments, utt2spk and spk2gender where they are.

    Commands in wav.scp are never run: the recording that one reads is taken.
    """
    if not any(path.name == "text" for path in job.files):
        raise RecordError("kaldi: no file called text: give --annotations a data folder, or its files")
    for folder in dict.fromkeys(path.parent for path in job.files if path.name == "text"):
        files = {name: dict(_pairs(job, folder, name)) for name in KALDI}  # splits may share ids
        for id, said in files["text"].items():
            job.where = f"text {id}"
            with job.or_left_out():
                yield from _utterance(job, files, id, said)


def _utterance(job: Job, files: dict[str, dict[str, str]], id: str, said: str) -> Iterator[Record]:
    """Yields the record of an utterance if its sound is a file."""
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


def _pairs(job: Job, folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yields (key, rest of the line) of the named file in the folder, or else elsewhere."""
    named = [path for path in job.files if path.name == name]
    for path in [path for path in named if path.parent == folder] or named:
        for line in job.read(path).split("\n"):
            key, _, rest = line.strip().replace("\t", " ").partition(" ")
            if key:
                yield key, rest.strip()


def _segment(segments: dict[str, str], id: str) -> tuple[str, dict[str, float]]:
    """The (recording, span in s) of an utterance; by default all of the recording with its id."""
    if id not in segments:
        return id, {}
    recording, *times = segments[id].split()
    try:
        start, end = map(float, times[:2])
    except ValueError:
        raise RecordError(f"text {id}: its segment must be <utterance> <recording> <start> <end>") from None
    return recording, {"start": start} | ({"end": end} if end >= 0 else {})  # -1 is the end of the recording


def _readable(source: str) -> str | None:
    """The recording read by an entry of wav.scp; None unless it is exactly one, unchanged."""
    if not source.endswith("|"):
        return None if re.search(r"\.ark:\d+$", source) else source
    if CHANGED.search(source):
        return None
    try:
        words = shlex.split(source.rstrip("| "))
    except ValueError:  # unclosed quotation mark
        return None
    found = [word for word in words if Path(word).suffix.lower() in MEDIA_SUFFIXES]
    return found[0] if len(found) == 1 else None
