"""Subtitles with times: SubRip (.srt), WebVTT (.vtt), SubStation (.ass, .ssa), recognised by content.

pysubs2 reads them, but only strict files. `_tidied` therefore first mends the cues of .srt and .vtt files:
missing hours, thousandths and blank lines, cue names, comments.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pysubs2

from mllm.errors import RecordError

SUBTITLES = (".srt", ".vtt", ".ass", ".ssa")
KINDS = ("forced", "sdh", "cc", "default", "auto")  # stand beside the language in the names of files
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,4})?")
Line = dict[str, Any]  # text; start and end in s

_TIME = r"(?:(\d{1,2}):)?(\d{1,2}):(\d{1,2})(?:[.,:](\d+))?"
_CUE = re.compile(rf"\s*{_TIME}\s*-+>\s*{_TIME}(\s.*)?")  # behind the times .vtt has a cue's position
_SETTING = re.compile(r"\w+:\S+")  # behind the times of a cue: line:90%, X1:100
_FORMAT = re.compile(r"^\[Events\][^\[]*?^Format:(.*)", re.MULTILINE | re.IGNORECASE)  # of .ass
_BESIDE = re.compile(r"(?:NOTE|STYLE|REGION)\b")  # blocks of .vtt that nobody sees


def subtitle_lines(path: Path, text: str) -> list[Line]:
    """What is said, as `{"text", "start", "end"}` in seconds, in the order of time; texts without markup.

    Args:
        path: for errors.
        text: the file's content.

    Raises:
        RecordError: naming file and line of a cue whose times cannot be read, or a file without cues.
    """
    text = re.sub("\r+\n", "\n", text)  # what a program for Windows wrote twice
    substation = re.match(r"\s*\[(?:Script Info|V4\+? Styles|Events)\]", text, re.IGNORECASE)
    given = text if substation else _tidied(path, text)
    if substation and (told := _FORMAT.search(text)):
        fields = [field.strip().lower() for field in told[1].split(",")]
        if len(fields) != 10 or fields[1:4] != ["start", "end", "style"] or fields[-1] != "text":
            raise RecordError(
                f"{path.name}: events with {told[1].strip()}: only Layer, Start, End, Style, Name, three "
                "margins, Effect, Text is read: save it with another program, or as .srt"
            )
    try:
        events = pysubs2.SSAFile.from_string(given, format_=None if substation else "srt")
    except (pysubs2.exceptions.Pysubs2Error, ValueError, LookupError) as error:
        raise RecordError(f"{path.name}: not subtitles as .ass files have them ({error})") from None
    lines = [
        {
            "text": " ".join(html.unescape(event.plaintext).split()),
            "start": event.start / 1000,
            "end": event.end / 1000,
        }
        for event in events
        if not event.is_comment and not event.is_drawing
    ]
    if not lines and text.strip() and not substation and not text.lstrip().startswith("WEBVTT"):
        raise RecordError(f"{path.name}: no cue in it, such as '00:00:01,000 --> 00:00:02,500' and its text")
    return sorted(lines, key=lambda line: line["start"])


def unrolled(lines: list[Line]) -> list[Line]:
    """Lines without what they repeat from the line before, if most do, as in YouTube's rolling captions.

    After a gap, repeated words count as spoken again. Other lines are returned as they are.
    """
    shown, repeated, kept = [""], 0, []
    until = 0.0
    for line in lines:
        words = line["text"].split()
        if line["start"] > until + 0.05:
            shown = [""]
        until = line["end"]
        same = next(size for size in range(len(words), -1, -1) if words[:size] == shown[len(shown) - size :])
        repeated += same > 0
        kept.append(line | {"text": " ".join(words[same:])})
        shown = words or shown
    if 2 * repeated <= len(lines) or len(lines) < 3:
        return lines
    return [line for line in kept if line["text"]]


def _tidied(path: Path, text: str) -> str:
    """A .srt or .vtt file as strict SubRip: a blank line, a number, full times, text."""
    web = text.lstrip().startswith("WEBVTT")
    shown: list[str] = []
    beside = False
    for number, line in enumerate(text.splitlines(), start=1):
        after_blank = not shown or not shown[-1].strip()
        if times := _CUE.fullmatch(line):
            if shown and (shown[-1].strip().isdigit() or (web and _stands_alone(shown))):
                shown.pop()  # the number or the name of this cue
            shown += ["", "1", f"{_full(times.groups()[:4])} --> {_full(times.groups()[4:8])}"]
            if not all(map(_SETTING.fullmatch, (times[9] or "").split())):
                shown.append(times[9])  # its text begins behind the times
            beside = False
            continue
        beside = web and (bool(line.strip()) if beside else after_blank and bool(_BESIDE.match(line)))
        if not beside and re.search(r"\d:\d.*-->", line):
            raise RecordError(
                f"{path.name} line {number}: {line.strip()[:60]!r} are no times of a cue: write them as "
                "'00:00:01,000 --> 00:00:02,500'"
            )
        shown.append("" if beside else re.sub(r"<\d[\d:.]*>", "", line) if web else line)
    return "\n".join([*shown, "", "1", ""])  # pysubs2 takes a last line of digits for the next cue's number


def _stands_alone(shown: list[str]) -> bool:
    return bool(shown[-1].strip()) and (len(shown) == 1 or not shown[-2].strip())


def _full(time: tuple[str | None, ...]) -> str:
    """Missing hours are zero, and ",5" is half a second."""
    hours, minutes, seconds, fraction = time
    return (
        f"{int(hours or 0):02d}:{int(minutes or 0):02d}:{int(seconds or 0):02d},{(fraction or '0')[:3]:0<3}"
    )
