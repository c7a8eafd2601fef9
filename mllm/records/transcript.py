"""What is said in a recording, with times, and as subtitles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Form = Literal["txt", "srt", "vtt", "json"]

PAUSE = 1.0  # s of silence that ends a segment
LONGEST = 80  # characters of a segment, two lines on a screen
ENDS = (".", "?", "!", "。", "？", "！", "؟", "।")


class Word(NamedTuple):
    """A spoken word with its punctuation, and the spaces before it; times in s."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Segment:
    """A sentence, or a part of a long one; times in s."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """A transcribed recording.

    Attributes:
        language: a code such as "en"; None if nothing is said.
        segments: in order of time, without overlap.
    """

    language: str | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def text(self) -> str:
        """All that is said, in one line."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """`{"text", "start", "end"}` of each segment, as `templates.subtitle_block` takes them."""
        return [{"text": one.text, "start": one.start, "end": one.end} for one in self.segments]

    def line(self) -> str:
        """For people: '12 words said (en)'."""
        count = sum(len(segment.words) for segment in self.segments)
        return f"{count} word{'' if count == 1 else 's'} said ({self.language})" if count else "nothing said"

    def written(self, form: Form) -> str:
        """The transcript in one of four forms: a segment per line, SubRip, WebVTT, or JSON with all words."""
        if form == "txt":
            return "".join(f"{segment.text}\n" for segment in self.segments)
        if form == "json":
            return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        from pysubs2 import SSAEvent, SSAFile, make_time

        file = SSAFile()
        for segment in self.segments:
            event = SSAEvent(make_time(s=segment.start), make_time(s=segment.end))
            event.plaintext = segment.text
            file.append(event)
        return file.to_string(form)


def segments_of(words: Sequence[Word]) -> tuple[Segment, ...]:
    """Joins words to segments, which end with a sentence, before a pause, or when they grow too long."""
    groups: list[list[Word]] = []
    for word in words:
        last = groups[-1] if groups else None
        if (
            last is None
            or last[-1].text.endswith(ENDS)
            or word.start - last[-1].end >= PAUSE
            or sum(len(one.text) for one in (*last, word)) > LONGEST
        ):
            groups.append([word])
        else:
            last.append(word)
    return tuple(
        Segment(group[0].start, group[-1].end, "".join(word.text for word in group).strip(), tuple(group))
        for group in groups
    )
