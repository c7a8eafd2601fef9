"""Words as the full-text index compares them: without case, accents and endings, and without stop words.

Endings are cut as in English (Snowball's English stemmer, Porter 2001), whatever the language: both sides are
cut alike, so that equal words of any language stay equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

LONGEST_QUERY = 100  # words; a longer query is cut

_LISTED = """
a about all also am an and any are as at be been being but by can could did do does doing each else ever
for from had has have having he her here him his how i if in into is it its just me my no nor not of on
or our ours out own say says said she should so some such than that the their them then there these they
this those to too under until up very was we were what when where which while who whom whose why will
with would you your yours tell happen happens happening there's what's who's it's i'm don't
"""
STOP_WORDS = tuple(_LISTED.split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Matched(NamedTuple):
    """A word of a text that a query asks for; times in s, where the text has them."""

    text: str
    start: float | None = None
    end: float | None = None


class WantedWords:
    """The words of a query that count."""

    def __init__(self, query: str):
        words = [word for word in _words(query[:100_000]) if _folded(word) not in STOP_WORDS]
        self.words: list[str] = list(dict.fromkeys(words))[:LONGEST_QUERY]

    def __bool__(self) -> bool:
        return bool(self.words)

    @property
    def query(self) -> str:
        """The words, as the full-text index takes them."""
        return " ".join(self.words)

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(map(_stem, self.words))

    def matched(self, text: str, timed: Iterable[Sequence[Any]] = ()) -> list[Matched]:
        """The words of a text that the query asks for, in their order.

        Args:
            timed: its words with their times, (start, end, word); else they have none.
        """
        words = [Matched(word.strip(), start, end) for start, end, word in timed] or [
            Matched(word) for word in _words(text)
        ]
        return [word for word in words if any(map(self._asks_for, _words(word.text)))]

    def coverage(self, matched: Iterable[Matched]) -> float:
        """The share of the words that a text has, above 0 to 1."""
        found = {stem for word in matched for stem in map(_stem, _words(word.text))}
        return max(1, len(self.stems & found)) / max(1, len(self.stems))

    def _asks_for(self, word: str) -> bool:
        # Scripts without spaces: a text's "word" is a whole clause.
        return _stem(word) in self.stems or any(
            not stem.isascii() and stem in _folded(word) for stem in self.stems
        )


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _folded(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word.replace("’", "'").casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


@cache
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


def _stem(word: str) -> str:
    return _stemmer().stemWord(_folded(word))
