"""`mllm align`: the line that people read, JSON, the picture, and errors of one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import typer
from typer.testing import CliRunner, Result

from mllm.command.align import align
from mllm.errors import ConfigError, MediaError, MllmError
from tests.media_files import make
from tests.sounding import bursts, later


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A sound, a late copy under a name that is not ASCII, a slow one, another sound, and a mute video."""
    folder = tmp_path_factory.mktemp("recordings")
    sound = bursts(30)
    for name, samples in (
        ("a.wav", sound),
        ("später 声.wav", later(sound, 0.24)),
        ("slow.flac", later(sound, -1.5, drift=1500)),
        ("other.wav", bursts(30, seed=1)),
    ):
        soundfile.write(folder / name, samples, 16_000)
    make(folder / "mute.mp4", seconds=1)
    return folder


def run(*words: str | Path) -> Result:
    app = typer.Typer()
    app.command()(align)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_how_late_a_recording_is(recordings: Path) -> None:
    late = run(recordings / "a.wav", recordings / "später 声.wav").stdout
    assert late == f"{recordings / 'später 声.wav'} is 0.240 s late (confidence 1.00)\n"
    early = run(recordings / "a.wav", recordings / "slow.flac").stdout
    assert "slow.flac is 1.50" in early
    assert " s early (confidence 1.00, drift +15" in early
    unsure = run(recordings / "a.wav", recordings / "other.wav").stdout
    assert unsure.startswith("unsure: at best, ")
    events = run(recordings / "a.wav", recordings / "später 声.wav", "--level", "event").stdout
    assert "matched)" in events


def test_json_and_picture(recordings: Path, tmp_path: Path) -> None:
    two = (recordings / "a.wav", recordings / "später 声.wav")
    told = json.loads(run(*two, "--json", "--method", "hybrid", "--png", tmp_path / "a.png").stdout)
    assert told["offset"] == pytest.approx(0.24, abs=0.004)
    assert (told["method"], told["unsure"], told["drift"]) == ("hybrid", False, 0)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    shown = run(*two, "--png", tmp_path / "b.png").stdout.splitlines()
    assert shown[1] == str(tmp_path / "b.png")
    (tmp_path / "file").touch()
    with pytest.raises(MllmError, match="cannot be made"):
        run(*two, "--png", tmp_path / "file" / "c.png")


def test_two_sounds_need_no_torch(recordings: Path) -> None:
    two = [str(recordings / "a.wav"), str(recordings / "später 声.wav")]
    code = (
        "import sys; from mllm.search.alignment.align import align; "
        f"print(align(*{two!r}).unsure, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False []\n"


def test_errors_are_one_line(recordings: Path, tmp_path: Path) -> None:
    sound = recordings / "a.wav"
    with pytest.raises(MediaError, match="none.wav: no such file"):
        run(sound, tmp_path / "none.wav")
    with pytest.raises(MediaError, match="a.wav: no moving picture to align: give a second recording"):
        run(sound)
    with pytest.raises(MediaError, match="mute.mp4: no sound to align"):
        run(recordings / "mute.mp4")
    with pytest.raises(ConfigError, match="no method 'best': choose from dtw, attention, hybrid"):
        run(sound, sound, "--method", "best")
    (tmp_path / "bad.wav").write_text("404 Not Found")
    with pytest.raises(MediaError) as caught:
        run(sound, tmp_path / "bad.wav")
    assert "\n" not in str(caught.value)
