"""`mllm transcribe`: what is said as text, subtitles and JSON, on the terminal and in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pysubs2
import pytest
import soundfile
import typer
from typer.testing import CliRunner, Result

from data_prep.world.voice import say
from mllm.command.transcribe import transcribe
from mllm.errors import MediaError, MllmError
from tests.media_files import make


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A folder with a voice under a name that is not ASCII, and a video without sound."""
    folder = tmp_path_factory.mktemp("recordings")
    word = say("train", "seven", "en-us", "calm", 0)
    soundfile.write(folder / "Gespräch 声.flac", np.tile(word, 3), 16_000)
    make(folder / "mute.mp4", seconds=1)
    return folder


@pytest.fixture
def run(tiny_whisper: Path, heard_once):
    """Runs the command with a tiny model."""
    app = typer.Typer()
    app.command()(transcribe)

    def ran(*words: str | Path) -> Result:
        words = (*words, "--model", tiny_whisper, "--language", "de")
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return ran


def test_what_is_said_is_printed_in_four_forms(run, recordings: Path, tmp_path: Path) -> None:
    voice = recordings / "Gespräch 声.flac"
    lines = run(voice).stdout.splitlines()
    said = json.loads(run(voice, "--json").stdout)
    assert said["language"] == "de"
    assert lines == "".join(f"{one['text']}\n" for one in said["segments"]).splitlines()
    for form in ("srt", "vtt"):
        read = pysubs2.SSAFile.from_string(run(voice, f"--{form}").stdout, format_=form)
        assert read[0].start == pytest.approx(1000 * said["segments"][0]["start"])
    run(voice, "--srt", "--out", tmp_path / "a.srt")
    assert (tmp_path / "a.srt").read_text("utf-8") == run(voice, "--srt").stdout


def test_nothing_is_said_in_a_video_without_sound(run, recordings: Path) -> None:
    assert run(recordings / "mute.mp4").stdout == ""


def test_several_recordings_become_a_file_each_and_one_that_cannot_be_read_stops_no_other(
    run, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("404 Not Found")
    three = [tmp_path / "bad.mp4", *sorted(recordings.iterdir())]
    with pytest.raises(MllmError, match="1 of 3 recordings cannot be read, the others are done"):
        run(*three, "--vtt", "--out", tmp_path / "said")
    assert sorted(path.name for path in (tmp_path / "said").iterdir()) == ["Gespräch 声.vtt", "mute.vtt"]


def test_what_cannot_be_done_is_said(run, recordings: Path, tmp_path: Path) -> None:
    voice = recordings / "Gespräch 声.flac"
    with pytest.raises(MediaError, match="no such file"):
        run(tmp_path / "missing.mp4")
    with pytest.raises(MllmError, match="--srt and --json: one form at a time"):
        run(voice, "--srt", "--json")
    with pytest.raises(MllmError, match="2 recordings need a folder to write to: give --out FOLDER"):
        run(voice, recordings / "mute.mp4")
    with pytest.raises(MllmError, match="two recordings would become .*: transcribe them one by one"):
        run(voice, voice, "--out", tmp_path / "said")
