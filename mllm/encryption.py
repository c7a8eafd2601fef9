"""Whether a recording is encrypted (DRM, pay TV), so that nothing here can decode it. Private to `scan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from mllm.sources import Source, open_ordinary

# Sample entries of encrypted tracks: Common Encryption (ISO/IEC 23001-7), and what iTunes sold.
ENCRYPTED_ENTRIES = {b"encv", b"enca", b"drmi", b"drms"}
INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}  # boxes on the way to the sample entries
STSD_HEADER = 8  # bytes in stsd before its first entry
CONTENT_ENCRYPTION, CLUSTER = b"\x50\x35", b"\x1f\x43\xb6\x75"  # Matroska elements
CONTENT_ENCODING = b"\x62\x40"
ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # content encryption object
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # extended one
)
HEAD = 1 << 20  # bytes that are searched, where the header has no fixed place
PACKET, SYNC, SCRAMBLED = 188, 0x47, 0xC0  # of a transport stream


def is_encrypted(source: Source, container: str) -> bool:
    """Whether the container says that any of its tracks is encrypted."""
    if container == "mov":
        with open_ordinary(source.handle(), source.name) as file:
            return any(entry in ENCRYPTED_ENTRIES for entry in _sample_entries(file, source.size()))
    if container not in ("matroska", "asf", "mpegts"):
        return False
    head = source.head(HEAD)
    if container == "matroska":
        tracks = head.partition(CLUSTER)[0]
        encoding = tracks.find(CONTENT_ENCODING)
        return encoding >= 0 and CONTENT_ENCRYPTION in tracks[encoding : encoding + 64]
    if container == "asf":
        return any(kind in head for kind in ASF_ENCRYPTION)
    return _scrambled(head)


def _sample_entries(file: IO[bytes], end: int) -> Iterator[bytes]:
    """Kinds of the sample entries of all tracks of an mp4 (ISO/IEC 14496-12)."""
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


def _scrambled(head: bytes) -> bool:
    """Whether most packets of a transport stream carry the scrambling bits."""
    first = next(
        (
            place
            for place in range(min(PACKET, len(head)))
            if head[place : place + PACKET + 1 : PACKET] == b"GG"
        ),
        None,
    )
    if first is None:
        return False
    flags = [
        head[place + 3] & SCRAMBLED for place in range(first, len(head) - 4, PACKET) if head[place] == SYNC
    ]
    return sum(map(bool, flags)) > len(flags) / 2
