"""`mllm transcribe`: what is said in recordings, with times, as text, subtitles or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mllm.errors import MediaError, MllmError
from mllm.files import write_atomically
from mllm.records.transcript import Form

Recordings = Annotated[list[str], typer.Argument(metavar="FILE…", help="Recordings with sound.")]
Model = Annotated[str, typer.Option(help="A base, a hub id or a folder of Whisper.")]


def transcribe(
    recordings: Recordings,
    srt: Annotated[bool, typer.Option("--srt", help="As SubRip subtitles.")] = False,
    vtt: Annotated[bool, typer.Option("--vtt", help="As WebVTT subtitles.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with the times of all words.")] = False,
    language: Annotated[str | None, typer.Option(help="Such as de; detected unless given.")] = None,
    model: Model = "whisper-base",
    out: Annotated[
        Path | None, typer.Option(help="File to write; of several recordings, the folder for a file each.")
    ] = None,
) -> None:
    """Write down what is said in recordings."""
    from mllm.models.transcriber import Transcriber

    forms: list[Form] = [name for name, given in (("srt", srt), ("vtt", vtt), ("json", json)) if given]  # type: ignore[misc]
    if len(forms) > 1:
        raise MllmError(f"--{forms[0]} and --{forms[1]}: one form at a time")
    form = forms[0] if forms else "txt"
    files = _files(recordings, form, out)
    transcriber = Transcriber.from_pretrained(model, language)
    failed = 0
    for recording, file in zip(recordings, files, strict=True):
        try:
            text = transcriber.transcribe(recording).written(form)
        except MediaError as error:
            if len(recordings) == 1:
                raise
            typer.echo(f"error: {error}", err=True)
            failed += 1
            continue
        if file is None:
            typer.echo(text, nl=False)
        else:
            write_atomically(file, text)
            typer.echo(f"{file}")
    if failed:
        raise MllmError(f"{failed} of {len(recordings)} recordings cannot be read, the others are done")


def _files(recordings: list[str], form: Form, out: Path | None) -> list[Path | None]:
    """Where each transcript goes; None is the standard output.

    Raises:
        MllmError: if several would go to one place.
    """
    if len(recordings) == 1:
        return [out]
    if out is None or out.is_file():
        raise MllmError(f"{len(recordings)} recordings need a folder to write to: give --out FOLDER")
    files: list[Path | None] = [out / f"{Path(recording).stem}.{form}" for recording in recordings]
    if (twice := next((file for file in files if files.count(file) > 1), None)) is not None:
        raise MllmError(f"two recordings would become {twice}: transcribe them one by one")
    return files
