"""Filters as one line of text: `speaker = ann and (year >= 2020 or duration < 1:30)`.

    expression  comparison {and comparison}, {or …}, brackets; "and" binds closer than "or"
    comparison  key SIGN value, key in (value, …), key not in (value, …); SIGN is = != < <= > >=
    key, value  text without quotes, or a JSON string in double quotes

A value without quotes is a number, true or false if JSON reads it so, else text, up to the next "and" or
"or", in brackets up to the next comma or bracket. The result is one of OpenAI's filter objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mllm.errors import ConfigError
from mllm.search.items import Value, is_value

Filters: TypeAlias = Mapping[
    str, Any
]  # an object as OpenAI has them, as parsed JSON; see `mllm.search.filters`

DEEPEST = 8  # levels of brackets
LONGEST = 4000  # characters
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_SIGNS = {"=": "eq", "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_KEY = re.compile(
    rf"\s*({_QUOTED}|[^=<>!()\s](?:[^=<>!()]*?[^=<>!()\s])??)\s*"
    r"(?:(>=|<=|!=|==?|>|<)|(?<=[\s\"])(in|not\s+in)\s*\()",
    re.DOTALL | re.IGNORECASE,
)
_JOINED = re.compile(r"\s*(and|or)(?=[\s(]|\Z)", re.IGNORECASE)
_ENDS = {  # of a value without quotes: in the open, in brackets, in a list
    "open": r"(?=\s+(?:and|or)(?:[\s(]|\Z)|\s*\Z)",
    "brackets": r"(?=\s+(?:and|or)(?:[\s(]|\Z)|\s*[)]|\s*\Z)",
    "list": r"(?=\s*[,)]|\s*\Z)",
}
_VALUES = {
    place: re.compile(rf"\s*({_QUOTED}|.*?){end}", re.DOTALL | re.IGNORECASE) for place, end in _ENDS.items()
}


def parse_value(text: str) -> Value:
    """Parses a value on the command line or in a CSV file.

    JSON numbers, true, false and "quoted strings" are parsed; everything else is a literal string.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if is_value(value) else text


def parse_clock(text: str) -> float | None:
    """Seconds of a time as mm:ss or hh:mm:ss; None for any other text."""
    clock = _CLOCK.fullmatch(text.strip())
    return clock and int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])


def parse_filters(texts: Sequence[str]) -> Filters | None:
    """Parses expressions, or filter objects in JSON, joined by "and".

    Raises:
        ConfigError: if a text is neither.
    """
    filters: list[Filters] = []
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                filters.append(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"filter {_shown(text)} is not JSON: {error}") from None
        else:
            filters.append(parse_expression(text))
    return _joined("and", filters) if filters else None


def parse_expression(text: str) -> Filters:
    """Parses one expression.

    Raises:
        ConfigError: if it is none, with the place.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"a filter of over {LONGEST} characters: write it as an object in JSON")
    parser = _Parser(text)
    found = parser.either(0)
    if parser.rest.strip():
        raise parser.error()
    return found


class _Parser:
    """Reads an expression from left to right."""

    def __init__(self, text: str):
        self.text, self.rest = text, text

    def either(self, depth: int) -> Filters:
        parts = [self.every(depth)]
        while self._word("or"):
            parts.append(self.every(depth))
        return _joined("or", parts)

    def every(self, depth: int) -> Filters:
        parts = [self.one(depth)]
        while self._word("and"):
            parts.append(self.one(depth))
        return _joined("and", parts)

    def one(self, depth: int) -> Filters:
        if self.rest.lstrip().startswith("("):
            if depth == DEEPEST:
                raise ConfigError(f"a filter nested over {DEEPEST} levels deep: join its parts in one list")
            self._cut(1)
            inner = self.either(depth + 1)
            self._close()
            return inner
        found = _KEY.match(self.rest)
        if found is None:
            raise self.error()
        self.rest = self.rest[found.end() :]
        key = str(parse_value(found[1])) if found[1].startswith('"') else found[1]
        if found[2]:
            value = self._value("brackets" if depth else "open")
            return {"type": _SIGNS[found[2]], "key": key, "value": value}
        values = [self._value("list")]
        while self.rest.lstrip().startswith(","):
            self._cut(1)
            values.append(self._value("list"))
        self._close()
        return {"type": "in" if found[3].lower() == "in" else "nin", "key": key, "value": values}

    def _value(self, place: str) -> Value:
        found = _VALUES[place].match(self.rest)
        if found is None:  # not reached: every value ends with the text
            raise self.error()
        self.rest = self.rest[found.end() :]
        return parse_value(found[1])

    def _word(self, word: str) -> bool:
        found = _JOINED.match(self.rest)
        if found is None or found[1].lower() != word:
            return False
        self.rest = self.rest[found.end() :]
        return True

    def _close(self) -> None:
        if not self.rest.lstrip().startswith(")"):
            raise ConfigError(f"filter '{_shown(self.text)}' opens a bracket that nothing closes: add ')'")
        self._cut(1)

    def _cut(self, count: int) -> None:
        self.rest = self.rest.lstrip()[count:]

    def error(self) -> ConfigError:
        part, whole = _shown(self.rest), _shown(self.text)
        where = "" if part == whole else f" in '{whole}'"
        return ConfigError(
            f"'{part}'{where} is no comparison: write key=value, or !=, <, <=, >, >= between them; text that "
            'has the words and, or, or brackets stands in "double quotes"'
        )


def _shown(text: str) -> str:
    return " ".join(text.split())[:80]


def _joined(kind: str, parts: Sequence[Filters]) -> Filters:
    return parts[0] if len(parts) == 1 else {"type": kind, "filters": list(parts)}
