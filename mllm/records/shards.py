"""Shards: recordings decoded once, at the model's input size, in memory-mapped Arrow files.

A folder written by `mllm data build` holds

    records.jsonl        the records, with `shard://<number>` in place of recordings
    shard-00000.arrow …  one row per recording, readable by Hugging Face `datasets`
    build.json           its origin and settings, and the number of rows in each shard

`records.open_source` opens it by the folder's name. A row holds the frames that the windows need, as JPEG or
raw, the sound at 16 kHz, and the origin of both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import simplejpeg

from mllm.errors import ConfigError, RecordError
from mllm.media.clip import Clip
from mllm.media.windows import WindowSpec
from mllm.records.conversation import MediaPart
from mllm.records.jsonl import JsonlSource
from mllm.records.record import Record

VERSION = 2  # of the shard format; 2: sound in steps of 1/32768
MANIFEST = "build.json"
RECORDS = "records.jsonl"
REFERENCE = "shard://"
FrameFormat = Literal["jpeg", "uint8"]

SCHEMA = pa.schema(
    [
        ("frames", pa.list_(pa.binary())),  # JPEG, or raw RGB of height × width × 3 bytes
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("frame_times", pa.list_(pa.float64())),  # s
        ("waveform", pa.binary()),  # int16, little-endian, 16 kHz mono; null without sound
        ("duration", pa.float64()),  # s
        ("is_image", pa.bool_()),
        ("picture_end", pa.float64()),  # s
        ("source", pa.string()),  # the recording's name in messages
        ("provenance", pa.string()),  # JSON: path, bytes, start, end, audio
    ]
)


def to_row(clip: Clip, provenance: dict[str, Any], frames: FrameFormat, quality: int) -> pa.RecordBatch:
    """A record batch of one row of SCHEMA; raw frames are not copied.

    Args:
        quality: JPEG quality, 1 to 100.
    """
    height, width = (0, 0) if clip.frames is None else clip.frames.shape[1:3]
    sound = None
    if clip.waveform is not None:
        sound = np.clip(np.rint(clip.waveform * 32768), -32768, 32767).astype("<i2").tobytes()
    rest = {
        "height": height,
        "width": width,
        "frame_times": clip.frame_times.tolist(),
        "waveform": sound,
        "duration": clip.duration,
        "is_image": clip.is_image,
        "picture_end": clip.picture_end,
        "source": clip.source,
        "provenance": json.dumps(provenance, ensure_ascii=False),
    }
    columns = pa.RecordBatch.from_pylist([rest], SCHEMA.remove(0)).columns
    return pa.RecordBatch.from_arrays([_stored(clip.frames, frames, quality), *columns], schema=SCHEMA)


def _stored(pictures: np.ndarray | None, frames: FrameFormat, quality: int) -> pa.Array:
    """uint8 [frames, height, width, 3] -> one list of binaries."""
    pictures = np.zeros((0, 1, 1, 3), np.uint8) if pictures is None else np.ascontiguousarray(pictures)
    sizes = [picture.size for picture in pictures]
    data: Any = pictures.reshape(-1)
    if frames == "jpeg":
        # Takes half the time of Pillow, with the same library underneath.
        coded = [simplejpeg.encode_jpeg(picture, quality, colorsubsampling="420") for picture in pictures]
        data, sizes = b"".join(coded), [len(piece) for piece in coded]
    offsets = pa.py_buffer(np.cumsum([0, *sizes]).astype(np.int32))  # load_clip returns less than 2 GB
    binaries = pa.Array.from_buffers(pa.binary(), len(sizes), [None, offsets, pa.py_buffer(data)])
    return pa.ListArray.from_arrays(pa.array([0, len(sizes)], pa.int32()), binaries)


def to_clip(table: pa.Table, frames: FrameFormat) -> Clip:
    """The Clip of a table of one row; raw frames are a read-only view of the mapped file."""
    row = table.drop_columns("frames").to_pylist()[0]
    stored = table["frames"][0].values
    shape = (len(stored), row["height"], row["width"], 3)
    pictures = None
    if len(stored) and frames == "uint8":
        pictures = np.frombuffer(stored.buffers()[2], np.uint8, math.prod(shape)).reshape(shape)
    elif len(stored):
        pictures = np.empty(shape, np.uint8)
        for picture, data in zip(pictures, stored, strict=True):
            coded = np.frombuffer(data.as_buffer(), np.uint8)
            # Without these shortcuts the result equals Pillow's bit for bit.
            simplejpeg.decode_jpeg(coded, fastdct=False, fastupsample=False, buffer=picture)
    waveform = None
    if row["waveform"] is not None:
        waveform = np.frombuffer(row["waveform"], "<i2").astype(np.float32) / 32768
    return Clip(
        pictures,
        np.asarray(row["frame_times"], np.float64),
        waveform,
        row["duration"],
        row["source"],
        row["is_image"],
        row["picture_end"],
    )


def write_shard(path: Path, rows: Iterable[pa.RecordBatch]) -> None:
    """Writes rows of `to_row` as one Arrow file, with one record batch per row, to be read one by one."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for row in rows:
            writer.write_batch(row)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def rows_in(path: Path) -> int | None:
    """The number of rows in a shard; None if it is missing, truncated or unreadable."""
    try:
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).read_all().num_rows
    except (OSError, pa.ArrowException):
        return None


def require_windows(source: Any, spec: WindowSpec) -> None:
    """Checks that shards were built for a model that cuts recordings like this; other sources pass.

    Raises:
        ConfigError: if they were not; names the differences.
    """
    if not isinstance(source, ShardSource):
        return
    kept, wanted = source.manifest["windows"], asdict(spec)
    if differ := [f"{key} {kept[key]}, not {wanted[key]}" for key in wanted if kept[key] != wanted[key]]:
        raise ConfigError(
            f"{source.folder}: built for another model ({'; '.join(differ)}): build it for this experiment, "
            "`mllm data build` with another --out"
        )


class ShardSource(JsonlSource):
    """A built folder as a data source: its records, with every recording as a Clip in memory.

    Raises:
        RecordError: if the build was not finished, or was made by another release.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        if self.manifest.get("version") != VERSION:
            raise RecordError(f"{folder}: built by another release: `mllm data build … --restart` it")
        if not (self.folder / RECORDS).is_file():
            raise RecordError(f"{folder}: built in part only: the same `mllm data build` goes on with it")
        self.frames: FrameFormat = self.manifest["frames"]
        self._table: Any = None
        super().__init__(self.folder / RECORDS)
        self.name = self.folder.name

    def clip(self, number: int) -> Clip:
        """The recording with that number.

        Raises:
            RecordError: if a shard is missing or damaged.
        """
        if self._table is None:  # each process maps the files for itself
            import datasets

            shards = [self.folder / shard_name(shard) for shard in range(len(self.manifest["rows"]))]
            tables = []
            for shard, rows in zip(shards, self.manifest["rows"], strict=True):
                table = None
                with suppress(OSError, pa.ArrowException):
                    table = datasets.Dataset.from_file(str(shard))
                if table is None or table.num_rows != rows:
                    raise RecordError(f"{shard}: missing or cut off: `mllm data build` makes it again")
                tables.append(table)
            self._table = datasets.concatenate_datasets(tables).with_format("arrow")
        try:
            return to_clip(self._table[number], self.frames)
        except ValueError as error:  # of a JPEG
            raise RecordError(
                f"{self.folder}: recording {number} is damaged ({error}): build it afresh with --restart"
            ) from None

    def records(self, index: int) -> list[Record]:
        clips: dict[int, Clip] = {}  # the same object for all records of the scene

        def loaded(part: MediaPart) -> MediaPart:
            match = re.fullmatch(rf"{REFERENCE}(\d+)", part.source)
            if match is None:
                return part
            number = int(match[1])
            if number not in clips:
                clips[number] = self.clip(number)
            return part.of(clips[number])

        return [
            record | {"messages": record["messages"].with_media(loaded)} for record in super().records(index)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}
