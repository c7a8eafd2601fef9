"""`mllm data show FILE`: what a record becomes, to be seen before anything is trained on it.

Prints the prompt with the trained tokens in green and the rest dimmed, and draws a contact sheet: one row for
each window, with its time mark, the frames that the video tower sees and the sound under them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.errors import MediaError, RecordError
from mllm.files import replacing
from mllm.records.chat import validate_messages

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.text import Text

    from mllm.media.windows import Window
    from mllm.models.encoded import Encoded
    from mllm.models.processor import MllmProcessor

# Pixels of the contact sheet.
THUMBNAIL = 96
WAVEFORM = 48
MARGIN = 8
MARK_WIDTH = 72


def show(
    file: Annotated[str, typer.Argument(help="A JSONL file of records, or a source such as world:val.")],
    row: Annotated[int, typer.Option(min=1, help="Which record, from 1.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint whose processor reads it; by default the one that ships.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The contact sheet (PNG), or a folder for it; beside the records unless given."),
    ] = None,
) -> None:
    """Show a record: the trained tokens in colour, the frames and sound as a contact sheet."""
    from rich.console import Console

    from mllm.models.checkpoint import load_processor

    record = pick(file, row)
    processor = load_processor(model)
    messages = validate_messages(record["messages"])
    parts = messages.media
    recordings = [read(processor, part.modality, part.source, part.options) for part in parts]
    encoded = processor.encode(messages, media=[features for _, features in recordings])

    console = Console(highlight=False, markup=False, soft_wrap=True)
    trained = sum(label != -100 for label in encoded.labels)
    facts = [f"{key} {record[key]}" for key in ("id", "task", "source") if record.get(key)]
    console.print(
        ", ".join([f"record {row}", *facts, f"{len(encoded.input_ids)} tokens, {trained} trained (green)"])
    )
    for part, (_, features) in zip(parts, recordings, strict=True):
        console.print(f"{part.modality}: {features.seen.line() if features.seen else 'one picture'}")
    console.print(coloured(encoded, processor), end="")
    if recordings:
        out = sheet_path(file, row, out)
        if out is None:
            console.print("contact sheet: --out says where; a generated source has no folder of its own")
            return
        with replacing(out) as partial:
            contact_sheet([windows for windows, _ in recordings]).save(partial, format="PNG")
        console.print(f"contact sheet: {out}")


def sheet_path(source: str, row: int, out: Path | None) -> Path | None:
    """Where the contact sheet of a row goes: to `out`, into it if it is a folder, else beside the records.

    None for a generated source without `out`: the current folder is not ours to write to.
    """
    if out is not None and not out.is_dir() and out.suffix:
        return out
    folder = out or (None if ":" in source else Path(source).parent)
    return folder and folder / f"{Path(source).stem.replace(':', '-')}.row{row}.sheet.png"


def pick(name: str, row: int) -> dict[str, Any]:
    """The row-th record (from 1) of a file or a source.

    Raises:
        RecordError: if the file has fewer records, or the record is invalid.
    """
    count = 0
    for record in islice(_records(name), row):
        count += 1
        if count == row:
            return record
    raise RecordError(f"{name} has {count} records: there is no row {row}")


def read(
    processor: MllmProcessor, modality: str, source: Any, options: dict[str, Any]
) -> tuple[list[Window], Any]:
    """The windows of one recording as the model gets them, and their features."""
    from mllm.media.recording import load_clip
    from mllm.media.windows import cut, load_windows

    if modality == "image":
        clip = load_clip(source, size=processor.image_size, **options)
        if clip.frames is None:
            raise MediaError(f"{clip.source}: it has no picture to take as an image: call it audio")
        windows, seen = cut(clip, processor.spec)[:1], None
        windows[0].frames = clip.frames[:1]
    else:
        windows, seen = load_windows(source, processor.spec, **processor.wanted(modality) | options)
    return windows, processor.media_from_windows(windows, modality, seen)


def coloured(encoded: Encoded, processor: MllmProcessor) -> Text:
    """The prompt: trained tokens green, placeholders as `<|video|>×8`, a line for each message."""
    from rich.text import Text

    tokenizer, end = processor.tokenizer, processor.end_id
    placeholders = set(processor.token_ids.values())
    text = Text()

    def kind(pair: tuple[int, int]) -> tuple[bool, int | None]:
        token, label = pair
        return label != -100, token if token in placeholders or token == end else None

    for (trained, special), run in groupby(zip(encoded.input_ids, encoded.labels, strict=True), kind):
        ids = [token for token, _ in run]
        style = "bold green" if trained else "dim"
        if special in placeholders:
            count = f"×{len(ids)}" if len(ids) > 1 else ""
            text.append(f"{tokenizer.convert_ids_to_tokens(special)}{count}", "cyan")
        else:
            text.append(tokenizer.decode(ids, skip_special_tokens=False), style)
            if special == end:
                text.append("\n")
    return text


def contact_sheet(recordings: Sequence[Sequence[Window]]) -> Image:
    """One row per window: time mark, frames, and the sound as a waveform; recordings under one another."""
    from PIL import Image, ImageDraw, ImageFont

    from mllm.media.windows import time_mark

    rows = [(window, index == 0) for windows in recordings for index, window in enumerate(windows)]
    columns = max((len(window.frames) for window, _ in rows if window.frames is not None), default=4)
    width = MARK_WIDTH + columns * THUMBNAIL + 2 * MARGIN
    heights = [_height(window) for window, _ in rows]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    top = MARGIN
    for (window, first), height in zip(rows, heights, strict=True):
        if first and top > MARGIN:
            draw.line((MARGIN, top - MARGIN // 2, width - MARGIN, top - MARGIN // 2), "silver")
        draw.text((MARGIN, top + 2), time_mark(window.start), "black", font=font)
        left, under = MARGIN + MARK_WIDTH, top
        if window.frames is not None:
            for column, frame in enumerate(window.frames):
                thumbnail = Image.fromarray(frame).resize(
                    (THUMBNAIL - 2, THUMBNAIL - 2), Image.Resampling.NEAREST
                )
                sheet.paste(thumbnail, (left + column * THUMBNAIL, top))
            under += THUMBNAIL
        if window.waveform is not None:
            _draw_waveform(
                draw, window.waveform, (left, under, left + columns * THUMBNAIL - 2, under + WAVEFORM)
            )
        if window.frames is None and window.waveform is None:
            draw.text((left, top + 2), "neither picture nor sound", "gray", font=font)
        top += height
    return sheet


def _height(window: Window) -> int:
    picture = THUMBNAIL if window.frames is not None else 0
    sound = WAVEFORM if window.waveform is not None else 0
    return max(picture + sound, 20) + MARGIN


def _draw_waveform(draw: Any, waveform: Any, box: tuple[int, int, int, int]) -> None:
    """The loudest swing in each column of pixels, on a scale on which 1.0 fills the box."""
    import numpy as np

    left, top, right, bottom = box
    middle, half = (top + bottom) / 2, (bottom - top) / 2 - 1
    draw.line((left, middle, right, middle), "silver")
    for column, samples in enumerate(np.array_split(waveform, right - left)):
        if len(samples):
            swing = min(float(np.abs(samples).max()), 1.0) * half
            draw.line((left + column, middle - swing, left + column, middle + swing), "steelblue")


def _records(name: str) -> Iterator[dict[str, Any]]:
    from mllm.records.record import read_records
    from mllm.records.source import open_source

    if ":" not in name:
        yield from read_records(name)
        return
    source = open_source(name)
    for index in range(len(source)):
        yield from source.conversations(index)
