"""Decodes text in any encoding that can be detected with certainty; otherwise asks for --encoding."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress

import charset_normalizer

from mllm.errors import ConfigError, RecordError

BOMS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NOT_TEXT = {  # first bytes of files that are not text
    b"PAR1": "a Parquet file: name it .parquet",
    b"\x1f\x8b": "compressed: unpack it first",
    b"PK\x03\x04": "an archive, or a spreadsheet: unpack it, or save it as CSV",
    b"ARROW1": "an Arrow file: save it as JSON lines or Parquet",
    b"SQLite format 3": "a database: export its table as CSV",
}
# Encodings considered beside UTF-8; code pages of DOS and mainframes would seem equally likely.
WIDE = ["gb18030", "big5", "cp932", "euc_jp", "cp949"]  # of Chinese, Japanese, Korean
CANDIDATES = [*WIDE, "tis_620", "koi8_r", "iso8859_2", *(f"cp125{number}" for number in range(9))]
SEVEN_BIT = ("iso2022", "utf-7", "hz")
DAMAGED = "utf-8 with damaged characters"
LEAST = 40  # minimum number of non-ASCII bytes to detect an encoding
MESS = 5  # percent of implausible characters: maximum of the best reading, and its minimum lead over others
WORDS = 10  # percent, minimum fit to the letters of a language, and its minimum lead over others
SAMPLE = 1_000_000  # bytes examined


def require_encoding(name: str) -> None:
    """Raises ConfigError if there is no text encoding of that name."""
    try:
        with suppress(UnicodeError):
            b"a".decode(name)
    except LookupError:
        raise ConfigError(
            f"--encoding {name}: there is none of that name: write one such as gb18030, big5, cp949, cp1252"
        ) from None


def decoded(data: bytes, where: str, named: str | None = None, usual: str | None = None) -> tuple[str, str]:
    """Decodes the content of a file; returns (text, encoding).

    Args:
        where: the file, for errors.
        named: encoding given by the user, for what is not in UTF-8.
        usual: encoding used by the authors of the data set; only for Western text, whose few non-ASCII
            characters are isolated.

    Raises:
        RecordError: it is not text, not in the named encoding, or its encoding cannot be detected.
    """
    for begin, what in NOT_TEXT.items():
        if data.startswith(begin):
            raise RecordError(f"{where}: is {what}")
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return _strictly(data, encoding, where), encoding.removesuffix("-sig")
    if named and data.isascii() and codecs.lookup(named).name.startswith(SEVEN_BIT):
        return _strictly(data, named, where), named
    if re.search(rb"\x1b\$[@B]|\x1b\$\)[CAG]", data):
        raise RecordError(
            f"{where}: is in ISO-2022: give --encoding iso2022_jp, iso2022_kr, or save it as UTF-8"
        )
    if b"\0" not in data:
        with suppress(UnicodeDecodeError):
            return data.decode(), "utf-8"
        if _damaged_utf8(data):
            return data.decode(errors="surrogateescape"), DAMAGED
    if named:
        return _strictly(data, named, where), named
    if b"\0" in data:
        raise RecordError(f"{where}: is not text in UTF-8: save it as UTF-8, or give --encoding utf-16-le")
    if usual and _western(data):
        return _strictly(data, usual, where), usual
    return _detected(data, where)


def _strictly(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except (UnicodeError, ValueError) as error:
        at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise RecordError(f"{where}: is not text in {encoding}{at}: give another --encoding") from None


def _damaged_utf8(data: bytes) -> bool:
    """Whether this is UTF-8 except for a few broken characters, whose rows are left out later."""
    text = data.decode(errors="replace")
    bad = text.count("\ufffd")
    good = sum(character > "\x7f" for character in text) - bad
    return good >= LEAST and good >= 10 * bad


def _western(data: bytes) -> bool:
    runs = re.findall(rb"[\x80-\xff]+", data)
    return sum(map(len, runs)) < len(data) / 10 and sum(len(run) == 1 for run in runs) > 0.9 * len(runs)


def _detected(data: bytes, where: str) -> tuple[str, str]:
    """Decodes the data if exactly one encoding is plausible for enough characters."""
    sample = data if len(data) <= SAMPLE else data[: data.rfind(b"\n", 0, SAMPLE) + 1] or data
    found = list(charset_normalizer.from_bytes(sample, cp_isolation=CANDIDATES))
    beyond = sum(byte >= 0x80 for byte in sample)
    if found and beyond >= LEAST:
        best, *others = found
        rivals = [
            match
            for match in others
            if match.percent_chaos < best.percent_chaos + MESS
            and match.percent_coherence > min(best.percent_coherence - WORDS, best.percent_coherence / 2)
        ]
        if best.percent_coherence < WORDS:  # no alphabet to compare, as with kanji and kana
            known = best.encoding in WIDE and beyond >= 3 * LEAST
        else:
            known = best.encoding != "tis_620"  # into which much Korean decodes, too
        if best.percent_chaos <= MESS and known and not rivals:
            equivalent = best.could_be_from_charset
            encoding = next((name for name in ("cp1252", "cp1251") if name in equivalent), best.encoding)
            return _strictly(data, encoding, where), encoding
    readings = ", ".join(f"{_excerpt(str(match))!r} as {match.encoding}" for match in found[:3])
    raise RecordError(
        f"{where}: is not text in UTF-8, and what it is in cannot be told"
        + (f" (it reads {readings})" if readings else "")
        + ": give --encoding, or save it as UTF-8"
    )


def _excerpt(text: str) -> str:
    """The first non-ASCII characters with some context."""
    at = re.search(r"[^\x00-\x7f]", text)
    begin = at.start() if at else 0
    return " ".join(text[max(0, begin - 5) : begin + 12].split())
