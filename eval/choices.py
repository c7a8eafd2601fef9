"""Parses which option of a multiple-choice question an answer selects, by its letter or by its text.

    "B", "(B)", "b.", "B)", "**B**", "B. The dog runs.", "Answer: B", "The correct answer is (B).",
    "The dog runs."

A letter counts only where it is unambiguous: "A dog" and "the answer is a dog" do not select A, "Based on it"
does not select B. An answer with the letter of one option and the text of another selects nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mllm.scores import normalise

AMBIGUOUS = -1  # names two options, or a letter and the text of another option

_LABELLED = re.compile(r"\s*[(\[]?([A-Za-z]|\d{1,2})[)\].:](?:\s+(.*\S)|\s*)\s*$", re.DOTALL)
_LONE = re.compile(r"[\s*_\"'`(\[<]*([A-Za-z]|\d{1,2})[\s*_\"'`)\]>.:,;!]*$")
_LEADING = re.compile(
    r"[\s*_\"'`]*(?:[(\[]([A-Za-z]|\d{1,2})[)\]]|([A-Za-z]|\d{1,2})[)\].:](?=\s))[*_]*[\s.:]*(.*)", re.DOTALL
)
# A reason may follow a bare letter, except A, which is a word.
_REASONED = re.compile(r"[\s*_]*([B-HJ-Z])[*_]*(?:,|\s+(?:because|since|as|is)\b|\s+[-–—]\s)")
_SEVERAL = re.compile(
    r"[\s*_(\[]*([A-Za-z])[)\].*_]*\s*(?:\bor\b|\band\b|[,/&])\s*[*_(\[]*([A-Za-z])(?![\w'])", re.IGNORECASE
)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_DECLARED = re.compile(
    r"\b(?:answer|option|choice|choose|select|pick)\b(?:\s+(?:is|(?:would|should|must) be)\b)?"
    r"\s*(?:[:=]|-(?=\s))?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        texts: normalised, without their letters.
        letters: in upper case ("A" or "1"); empty if neither the options nor the prompt have letters.
    """

    texts: tuple[str, ...]
    letters: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Sequence[str], prompt: str = "") -> Options:
        """Reads letters from the options ("B. The dog runs.") or else from the prompt, if there are any."""
        found = [_LABELLED.match(option) for option in options]
        letters = tuple(match[1].upper() for match in found if match)
        if letters in _alphabets(len(options)):
            return cls(tuple(normalise(match[2] or match[1]) for match in found if match), letters)
        texts = tuple(map(normalise, options))
        for letters in _alphabets(len(options)):
            shown = (
                rf"(?<!\w)[(\[]?{letter}[)\].:]\s*{re.escape(option.strip())}(?!\w)"
                for letter, option in zip(letters, options, strict=True)
            )
            if options and all(re.search(pattern, prompt, re.IGNORECASE) for pattern in shown):
                return cls(texts, letters)
        return cls(texts)

    def chosen(self, answer: str) -> int | None:
        """The index of the option that an answer selects; None if it selects none or is ambiguous."""
        *_, declared = _DECLARED.split(answer)
        lines = [line for line in answer.splitlines() if line.strip()]
        readings = [answer, declared, *lines[-1:], *lines[:1]]
        for reading in dict.fromkeys(readings):
            if (found := self._read(reading)) is not None:
                return None if found == AMBIGUOUS else found
        bracketed = set(_BRACKETED.findall(answer)) & set(self.letters)
        return self.letters.index(bracketed.pop()) if len(bracketed) == 1 else None

    def _read(self, answer: str) -> int | None:
        """The index of the option named by part of an answer, AMBIGUOUS, or None if it names none."""
        if (lone := _LONE.match(answer)) and lone[1].upper() in self.letters:
            return self.letters.index(lone[1].upper())
        text = normalise(answer)
        if text and text in self.texts:
            return self.texts.index(text)
        if (two := _SEVERAL.match(answer)) and {two[1].upper(), two[2].upper()} <= set(self.letters):
            return AMBIGUOUS
        if match := _LEADING.match(answer):
            letter, rest = (match[1] or match[2]).upper(), normalise(match[3])
            if letter in self.letters:
                number = self.letters.index(letter)
                others = [text for text in self.texts if text != self.texts[number]]
                return AMBIGUOUS if rest in others else number
        for number, letter in enumerate(self.letters):  # "B the dog runs"
            if text and text == f"{letter.casefold()} {self.texts[number]}":
                return number
        if (match := _REASONED.match(answer)) and match[1] in self.letters:
            return self.letters.index(match[1])
        return None


def _alphabets(count: int) -> list[tuple[str, ...]]:
    """The common ways to label `count` options in order."""
    letters = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count])
    numbers = [tuple(map(str, range(first, first + count))) for first in (1, 0)]
    return [letters, *numbers] if len(letters) == count else numbers
