"""Plain formats: a table of recordings, folders named by class, COCO's captions."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from data_prep.importers.columns import MEDIA, TARGETS, Columns, find_columns, guessed, unread
from data_prep.importers.job import Job, Part, Record
from data_prep.importers.tables import Row, is_nan
from mllm.errors import RecordError
from mllm.media.sources import SUFFIXES
from mllm.records.record import parse_row

MANY = 50  # maximum number of classes to list in a prompt
LETTERED = re.compile(r"\(?([A-Za-z])[.):]\s+(\S.*)", re.DOTALL)  # an option: "A. a dog", "(B) a cat"
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


def table(job: Job) -> Iterator[Record]:
    """A table of your own (csv, tsv, jsonl): a recording in each row, and its answer, text or caption.

    Columns are told by their names, or by --columns file=clip_path,answer=label; what was guessed is said.
    Recordings are looked for beside the table, unless --media says where.
    """
    rows = list(job.rows())
    schema = Schema(rows, job.columns)
    if schema.classes:
        job.noted[f"answer taken as one of {len(schema.classes)} classes"] = len(rows)
    for number, row in enumerate(rows, start=1):
        with job.or_left_out():
            job.where, found = row.where, schema.columns(row)
            for note in guessed(job.columns, found):
                job.noted[note] += 1
            for column in unread(found, list(row)):
                job.noted[f"column {column} not read"] += 1
            if media := _media(job, row, found):
                name = _cell(row, found, "id")
                yield from _records(job, row, schema, media, f"row{number}" if name is None else name)
            else:
                job.left_out["no recording named"] += 1


class Schema:
    """How to interpret the rows of a table, inferred from all of them.

    Attributes:
        classes: the distinct answers, if there are no questions and few enough answers.
        first: whether option numbers count from 0 or 1; None if unclear.
    """

    def __init__(self, rows: Sequence[Row], given: Columns):
        has: dict[str, dict[str, None]] = defaultdict(dict)  # by file: JSON rows may leave some out
        for row in rows:
            has[_file(row)] |= dict.fromkeys(row)
        self._columns = {file: find_columns(given, list(columns), file) for file, columns in has.items()}
        unasked, numbers = [], set()
        for row in rows:
            found = self.columns(row)
            try:
                answer, options = _cell(row, found, "answer"), _options(row, found)
            except RecordError:
                continue  # reported when the row is converted
            if answer is not None and not options and not _filled(row.get(*found.get("question", [""]))):
                unasked.append(answer)
            if answer is not None and answer.isdecimal() and options and answer not in options:
                numbers |= {0} if int(answer) == 0 else {1} if int(answer) == len(options) else set()
        classes = sorted(set(unasked))
        self.classes = classes if 1 < len(classes) <= MANY and 2 * len(classes) <= len(unasked) else None
        self.first = numbers.pop() if len(numbers) == 1 else None

    def columns(self, row: Row) -> Columns:
        return self._columns[_file(row)]

    def option_index(self, answer: str, options: Sequence[str], where: str) -> int | None:
        """The option that an answer names by its text, letter or number; None if it names none.

        Raises:
            RecordError: it is a number, and `first` is unclear.
        """
        for text, known in ((answer, options), (answer.casefold(), [one.casefold() for one in options])):
            if text in known:
                return known.index(text)
        if (lettered := LETTERED.fullmatch(answer)) and lettered[2].casefold() in known:
            return known.index(lettered[2].casefold())
        letter = answer.strip("().: ").upper()
        if answer.isdecimal():
            if self.first is None:
                raise RecordError(
                    f"{where}: answer {answer} may count from 0 or from 1: write the option's text or letter"
                )
            index = int(answer) - self.first
        else:
            index = ord(letter) - ord("A") if len(letter) == 1 else -1
        return index if 0 <= index < len(options) else None


def _file(row: Row) -> str:
    return re.split(r" row \d+$| line \d+$| \(one object", row.where)[0]


def _records(job: Job, row: Row, schema: Schema, media: list[Part], id: str) -> Iterator[Record]:
    """Yields a record for each target in a row."""
    found = schema.columns(row)
    labels = _labels(row, found) or None
    targets = [target for target in TARGETS if target in found]
    for target in targets:
        name = id if target == targets[0] else f"{id}-{target}"
        if target == "answer":
            yield from _answer(job, row, schema, media, name, labels)
            continue
        texts = [text for column in found[target] for text in _texts(row, column)]
        if not texts:
            job.left_out[f"no {target}"] += 1
        elif target == "text" and media[0]["type"] != "image":
            if media[0]["type"] == "video" and "text" not in job.columns:
                job.noted["text of a video taken as what is said: if it describes, --columns caption=…"] += 1
            yield job.transcript(name, media, texts[0], labels=labels)
        else:
            about = "audio" if media[0]["type"] == "audio" else "video"
            yield job.caption(name, media, {about: texts}, labels=labels)


def _answer(
    job: Job, row: Row, schema: Schema, media: list[Part], id: str, labels: dict[str, Any] | None
) -> Iterator[Record]:
    found = schema.columns(row)
    question, answer = _cell(row, found, "question"), _cell(row, found, "answer")
    options = _options(row, found)
    right = schema.option_index(answer, options, row.where) if answer is not None and options else None
    if answer is None and question is None:
        job.left_out["neither question nor answer"] += 1
    elif answer is not None and options and right is None:
        job.left_out["answer that is none of its options"] += 1
    elif len(set(options)) < len(options):
        job.left_out["options alike"] += 1
    elif question is not None:
        if answer is None:
            job.noted["no answer given"] += 1
        if options:
            yield job.choice(id, media, question, options, right, labels=labels)
        else:
            yield job.qa(id, media, question, answer, labels=labels)
    else:
        label = answer if right is None else options[right]
        yield job.label(id, "class", media, str(label), options or schema.classes, labels=labels)


def _media(job: Job, row: Row, found: Columns) -> list[Part]:
    """The recordings of a row; audio beside a video becomes its sound track."""
    span = {role: seconds_of(row, found[role][0]) for role in ("start", "end") if role in found}
    if "duration" in found and (lasts := seconds_of(row, found["duration"][0])) is not None:
        span["end"] = (span.get("start") or 0) + lasts
    parts: list[Part] = []
    for role in MEDIA:
        if (name := _cell(row, found, role)) is None:
            continue
        part = job.medium(name, None if role == "file" else role, **span)
        if part["type"] == "audio" and parts and parts[0]["type"] == "video":
            parts[0]["audio"] = part["audio"]
        else:
            parts.append(part)
    return parts


def _labels(row: Row, found: Columns) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for column in found.get("labels", ()):
        value = row.get(column)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = parse_row(value, f"{row.where}: {column}", 'write {"name": "value"}')
        if isinstance(value, dict):
            labels |= value
        elif _filled(value):
            labels[column] = value.strip() if isinstance(value, str) else value
    return labels


def _cell(row: Row, found: Columns, role: str) -> str | None:
    """The value of a role in a row; None if its cell is empty."""
    if role not in found or not _filled(row.get(found[role][0])):
        return None
    value = row[found[role][0]]
    if role in MEDIA and isinstance(value, dict) and isinstance(value.get("path"), str):
        return value["path"].strip()  # format of Hugging Face datasets
    return row.text(found[role][0]).strip()


def _texts(row: Row, column: str) -> list[str]:
    values = row.get(column)
    values = values if isinstance(values, list) else [values]
    return [str(value).strip() for value in values if _filled(value)]


def _options(row: Row, found: Columns) -> list[str]:
    """A row's options: one per column, or a list in one column, or texts separated by | or ;.

    Letters in front are removed, since options are shuffled and lettered again.
    """
    columns = found.get("options", [])
    if len(columns) != 1:
        texts = [_texts(row, column) for column in columns]
        if [] in texts and any(texts[texts.index([]) :]):
            raise RecordError(
                f"{row.where}: {columns[texts.index([])]} is empty, and options follow it: fill it"
            )
        return _unlettered([text for given in texts for text in given])
    value = row.get(columns[0])
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parse_row(value, f"{row.where}: {columns[0]}", 'write ["a", "b"], or a|b')
    if isinstance(value, str):
        value = value.split("|" if "|" in value else ";")
    if isinstance(value, dict):  # {"A": "a dog", "B": "a cat"}
        value = [f"{key}. {text}" if len(key) == 1 and key.isalpha() else text for key, text in value.items()]
    values = value if isinstance(value, list) else [value]
    return _unlettered([str(option).strip() for option in values if _filled(option)])


def _unlettered(options: list[str]) -> list[str]:
    """Removes "A. " or "(B) " from options if the letters are consecutive."""
    matches = [LETTERED.fullmatch(option) for option in options]
    letters = "".join(match[1] if match else "?" for match in matches).upper()
    if options and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters):
        return [match[2] for match in matches if match]
    return options


def _filled(value: Any) -> bool:
    return value is not None and not is_nan(value) and str(value).strip() != ""


def seconds_of(row: Row, column: str) -> float | None:
    """Parses a time in seconds or as h:mm:ss; None if the cell is empty."""
    value = row.get(column)
    if not _filled(value):
        return None
    seconds = 0.0
    try:
        for part in str(value).strip().replace(",", ".").split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise RecordError(f"{row.where}: {column} must be seconds or h:mm:ss, not {str(value)[:40]!r}")
    return seconds


def folders(job: Job) -> Iterator[Record]:
    """Recordings in folders named by class: --media FOLDER with dog/a.wav or train/dog/a.wav."""
    found: list[tuple[Path, str, str | None]] = []
    deeper: list[str] = []
    for path in sorted({path for kind in SUFFIXES for path in job.media.files(kind)}):
        parts = list(path.relative_to(job.media.folder or "").parts[:-1])
        index = next((index for index, part in enumerate(parts) if part.lower() in SPLITS), None)
        split = None if index is None else parts.pop(index)  # train/dog/a.wav, or dog/train/a.wav
        if parts:
            found.append((path, normalize("NFC", parts[0]).replace("_", " ").strip(), split))
            deeper += ["/".join(parts)] if len(parts) > 1 else []
        else:
            job.left_out["in no folder of a class"] += 1
    if deeper:
        job.noted[f"folder in a folder, such as {deeper[0]}: the outer one names the class"] = len(deeper)
    classes = sorted({name for _, name, _ in found})
    if len(classes) < 2:
        has = f"all lie in {classes[0]!r}" if classes else "there is no recording in a folder"
        raise RecordError(
            f"folders: {has}: give --media the folder that holds a folder of recordings for each class"
        )
    shown = classes if len(classes) <= MANY else None
    for path, name, split in found:
        job.where = str(path)
        labels = {"class": name} | ({"split": split} if split else {})
        id = path.relative_to(job.media.folder or "").as_posix()
        yield job.label(id, "class", [job.medium(str(path))], name, shown, labels=labels)


def coco_captions(job: Job) -> Iterator[Record]:
    """captions_<split>.json: images and annotations; or Karpathy's dataset_coco.json with its sentences."""
    for path, whole in job.objects():
        images, annotations = whole.get("images"), whole.get("annotations")
        if not isinstance(images, list):
            raise RecordError(f"{path.name}: no list of 'images': give captions_<split>.json")
        if not isinstance(annotations or [], list):
            raise RecordError(f"{path.name}: 'annotations' is no list: give captions_<split>.json")
        if annotations and not any("caption" in row for row in annotations if isinstance(row, dict)):
            job.noted[f"file without captions, such as {path.name}"] += 1
            continue
        captions: dict[str, list[str]] = defaultdict(list)
        for number, annotation in enumerate(annotations or (), start=1):
            job.where = f"{path.name} annotations row {number}"
            with job.or_left_out():
                row = Row(annotation, job.where)
                captions[str(row["image_id"])].append(row.text("caption").strip())
        for number, image in enumerate(images, start=1):
            job.where = f"{path.name} images row {number}"
            with job.or_left_out():
                yield from _pictured(job, Row(image, job.where), captions)
        if captions:
            job.left_out["picture that has captions, and is not listed"] += len(captions)


def _pictured(job: Job, image: Row, captions: dict[str, list[str]]) -> Iterator[Record]:
    """Yields the record of an image, and removes its captions from `captions`."""
    id = image["imgid"] if "id" not in image and "imgid" in image else image["id"]
    name = image["filename"] if "filename" in image else image["file_name"]
    texts = captions.pop(str(id), None) or [
        sentence["raw"].strip() for sentence in image.get("sentences", ())
    ]
    if texts := [text for text in texts if text]:
        labels = {"split": image["split"]} if "split" in image else None
        yield job.caption(id, [job.medium(name, "image")], {"video": texts}, labels=labels)
    else:
        job.left_out["picture without a caption"] += 1
