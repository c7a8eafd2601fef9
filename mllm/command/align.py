"""`mllm align`: how late sound is against picture, one recording against another, a transcript."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mllm.search.alignment.engine import Alignment

First = Annotated[str, typer.Argument(metavar="A", help="A recording.", show_default=False)]
Second = Annotated[
    str | None,
    typer.Argument(
        metavar="[B]",
        help="Another recording, or a transcript (.srt, .vtt, .ass, .txt, .json of `mllm transcribe`). "
        "Without: the sound of A against its picture.",
        show_default=False,
    ),
]


def align(
    first: First,
    second: Second = None,
    level: Annotated[
        str | None,
        typer.Option(help="frame (default), event (default for a text without times) or semantic."),
    ] = None,
    method: Annotated[str, typer.Option(help="dtw, attention or hybrid.")] = "dtw",
    features: Annotated[
        str | None, typer.Option(help="What is compared: mel, onset, motion, speech, words or space.")
    ] = None,
    between: Annotated[
        str | None, typer.Option(help="sound-sound, picture-sound or sound-transcript; found by default.")
    ] = None,
    band: Annotated[
        float | None,
        typer.Option(help="Seconds by which the path may leave a straight line. Default: by features."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="Largest offset that is tried, in seconds. Default: any; 10 for a picture."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint of the shared space, at level semantic. Default: ours.")
    ] = None,
    whisper: Annotated[
        str, typer.Option(help="A base, a hub id or a folder of Whisper, to hear words.")
    ] = "whisper-base",
    language: Annotated[str | None, typer.Option(help="Spoken, such as de; detected by default.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw it to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the path.")] = False,
) -> None:
    """Find how late B is against A, or the sound of A against its picture, or say that it is unsure."""
    from mllm.search.alignment.align import Settings
    from mllm.search.alignment.align import align as aligned

    chosen: dict[str, Any] = {"between": between, "level": level, "method": method, "features": features}
    chosen |= {"band": band, "limit": limit, "model": model, "whisper": whisper, "language": language}
    found = aligned(first, second, Settings(**chosen))
    if png is not None:
        from mllm.search.alignment.picture import draw

        draw(found, png, line_of(found))
    typer.echo(json.dumps(found.as_dict(), ensure_ascii=False) if as_json else line_of(found))
    if png is not None and not as_json:
        typer.echo(f"{png}")


def line_of(alignment: Alignment) -> str:
    """An alignment for people: 'b.wav is 0.240 s late (confidence 1.00, drift +12 ± 3 ppm)'."""
    sure = f"confidence {alignment.confidence:.2f}"
    line = alignment.line
    if line is None:
        lines = alignment.lines or ()
        heard = sum(one["start"] is not None for one in lines)
        found = f"{heard} of {len(lines)} lines of {alignment.second} are heard ({sure})"
        return f"unsure: {found}" if alignment.unsure else found
    late = "late" if round(line.offset, 3) >= 0 else "early"
    own = alignment.between == "picture-sound" and alignment.first == alignment.second
    who = "sound" if own else alignment.second
    notes = [sure]
    if line.drift:
        notes.append(f"drift {line.drift:+.0f} ± {line.error:.0f} ppm")
    if alignment.events is not None:
        first, second = alignment.events
        notes.append(f"{alignment.matched} events of {first} and {second} matched")
    found = f"{who} is {abs(line.offset):.3f} s {late} ({', '.join(notes)})"
    return f"unsure: at best, {found}" if alignment.unsure else found
