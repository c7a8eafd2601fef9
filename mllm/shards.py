"""Shards: recordings decoded once, at the size that a model sees, in Arrow files that are mapped into memory.

A folder that `mllm data build` wrote holds

    records.jsonl        the records; where a recording stood, `shard://<number>`
    shard-00000.arrow …  one row for each recording, read as Hugging Face `datasets` read theirs
    build.json           what it was built from, and how

`records.open_source` opens it by the folder's name. A row holds the frames that the windows need, as JPEG or
as they are, the sound at 16 kHz, and where both came from.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from mllm.errors import RecordError
from mllm.media import Clip
from mllm.records import JsonlSource, Record

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
        ("source", pa.string()),  # what messages about it call the recording
        ("provenance", pa.string()),  # JSON: path, bytes, start, end, audio
    ]
)


def to_row(clip: Clip, provenance: dict[str, Any], frames: FrameFormat, quality: int) -> dict[str, Any]:
    """A row of SCHEMA.

    Args:
        quality: of JPEG, 1 to 100.
    """
    pictures = [] if clip.frames is None else list(clip.frames)
    height, width = (0, 0) if clip.frames is None else clip.frames.shape[1:3]
    sound = None
    if clip.waveform is not None:
        sound = np.rint(np.clip(clip.waveform, -1, 1) * 32767).astype("<i2").tobytes()
    return {
        "frames": [
            picture.tobytes() if frames == "uint8" else _jpeg(picture, quality) for picture in pictures
        ],
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


def to_clip(row: dict[str, Any], frames: FrameFormat) -> Clip:
    """The Clip of a row."""
    pictures = None
    if row["frames"]:
        shape = (row["height"], row["width"], 3)
        pictures = np.stack(
            [
                np.frombuffer(data, np.uint8).reshape(shape)
                if frames == "uint8"
                else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                for data in row["frames"]
            ]
        )
    waveform = None
    if row["waveform"] is not None:
        waveform = np.frombuffer(row["waveform"], "<i2").astype(np.float32) / 32767
    return Clip(
        pictures,
        np.asarray(row["frame_times"], np.float64),
        waveform,
        row["duration"],
        row["source"],
        row["is_image"],
        row["picture_end"],
    )


def write_shard(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of SCHEMA as one Arrow file, one record batch a row: what is read is read alone."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for row in rows:
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


class ShardSource(JsonlSource):
    """A built folder as a Source: its records, with every recording as a Clip in memory.

    Raises:
        RecordError: the folder was not built to its end.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        if not (self.folder / RECORDS).is_file():
            raise RecordError(f"{folder}: built in part only: the same `mllm data build` goes on with it")
        self.frames: FrameFormat = self.manifest["frames"]
        self._table: Any = None
        super().__init__(self.folder / RECORDS)
        self.name = self.folder.name

    def clip(self, number: int) -> Clip:
        """The recording with that number."""
        if self._table is None:  # opened by each process for itself, mapped, not read
            import datasets

            shards = [self.folder / shard_name(shard) for shard in range(self.manifest["shards"])]
            self._table = datasets.concatenate_datasets(
                [datasets.Dataset.from_file(str(shard)) for shard in shards]
            )
        return to_clip(self._table[number], self.frames)

    def _records(self, index: int) -> list[Record]:
        clips: dict[int, Clip] = {}  # the same object for all records: neighbours share one prefix

        def loaded(value: Any) -> Any:
            if isinstance(value, str) and (match := re.fullmatch(rf"{REFERENCE}(\d+)", value)):
                number = int(match[1])
                if number not in clips:
                    clips[number] = self.clip(number)
                return clips[number]
            return value

        return [
            record | {"messages": [_with(message, loaded) for message in record["messages"]]}
            for record in super()._records(index)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}


def _with(message: dict[str, Any], change: Any) -> dict[str, Any]:
    parts = [
        {key: change(value) if key == part["type"] else value for key, value in part.items()}
        for part in message["content"]
    ]
    return message | {"content": parts}


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
