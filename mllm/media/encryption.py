"""Detects encrypted recordings (DRM, pay TV), which cannot be decoded. Private to `scan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from mllm.files import open_ordinary
from mllm.media.sources import Source

# Sample entries of encrypted tracks: Common Encryption (ISO/IEC 23001-7), and what iTunes and Audible sold.
ENCRYPTED_ENTRIES = {b"encv", b"enca", b"drmi", b"drms", b"aavd"}
INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}  # boxes on the way to the sample entries
STSD_HEADER = 8  # bytes in stsd before its first entry
CONTENT_ENCRYPTION = 0x5035  # a Matroska element
AROUND = {0x18538067, 0x1654AE6B, 0xAE, 0x6D80, 0x6240}  # its ancestors, from Segment to ContentEncoding
ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # content encryption object
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # extended one
    bytes.fromhex("338505438169e6499b74ad12cb86d58c"),  # advanced one
)
HEAD = 1 << 20  # bytes to search if the header has no fixed position
SYNC, SCRAMBLED, NULL = 0x47, 0xC0, 0x1FFF  # of transport stream packets: sync byte, flags, null id
PACKET = 188  # bytes of such a packet, without a timestamp before it or error correction after it
STRIDES = (PACKET, 192, 204)


def is_encrypted(source: Source, container: str) -> bool:
    """Whether the container says that any of its tracks is encrypted."""
    if container in ("mov", "matroska"):
        with open_ordinary(source.handle(), source.name) as file:
            if container == "matroska":
                return _holds_encryption(file, source.size())
            return any(entry in ENCRYPTED_ENTRIES for entry in _sample_entries(file, source.size()))
    if container not in ("asf", "mpegts"):
        return False
    head = source.head(HEAD)
    if container == "asf":
        return any(kind in head for kind in ASF_ENCRYPTION)
    return _scrambled(head)


def _sample_entries(file: IO[bytes], end: int) -> Iterator[bytes]:
    """Types of the sample entries of all tracks of an mp4 (ISO/IEC 14496-12)."""
    while file.tell() + 8 <= end:
        begin = file.tell()
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        header = 8
        if size == 1:  # the size follows in 64 bits
            size, header = int.from_bytes(file.read(8), "big"), 16
        size = size or end - begin  # 0: up to the end
        if size < header:
            return
        if kind in INSIDE:
            yield from _sample_entries(file, min(begin + size, end))
        elif kind == b"stsd":
            file.seek(begin + header + STSD_HEADER)
            entry = begin + header + STSD_HEADER
            while entry + 8 <= min(begin + size, end):
                file.seek(entry)
                length = int.from_bytes(file.read(4), "big")
                yield file.read(4)
                entry += max(length, 8)
        file.seek(begin + size)


def _holds_encryption(file: IO[bytes], end: int) -> bool:
    """Whether a track of a Matroska file (RFC 9559) declares an encryption."""
    while file.tell() < end:
        kind, size = _number(file, marked=True), _number(file)
        if kind is None:
            return False
        stop = end if size is None else min(file.tell() + size, end)  # None: up to the end
        if kind == CONTENT_ENCRYPTION or (kind in AROUND and _holds_encryption(file, stop)):
            return True
        file.seek(stop)
    return False


def _number(file: IO[bytes], marked: bool = False) -> int | None:
    """A variable-length number of EBML (RFC 8794); None if it is invalid, or an unknown size.

    Args:
        marked: keep the length bits, as in element ids.
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value, most = int.from_bytes(first + file.read(length - 1), "big"), (1 << 7 * length) - 1
    if marked:
        return value
    return None if value & most == most else value & most


def _scrambled(head: bytes) -> bool:
    """Whether most packets of a transport stream's streams carry the scrambling bits."""
    places = (
        range(begin, len(head) - 4, stride)
        for stride in STRIDES
        for begin in range(min(stride, len(head)))
        if head[begin : begin + 2 * stride + 1 : stride] == bytes([SYNC]) * 3
    )
    packets = [head[place : place + 4] for place in next(places, ()) if head[place] == SYNC]
    flags = [packet[3] & SCRAMBLED for packet in packets if int.from_bytes(packet[1:3], "big") & NULL != NULL]
    return sum(map(bool, flags)) > len(flags) / 2
