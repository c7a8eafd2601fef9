"""What is being read stands in a folder, for the launcher to find when the process that read it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mllm.vllm.in_flight import FOLDER, in_flight, left_behind


def test_stands_there_as_long_as_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with in_flight("video of 5 bytes"), in_flight("audio of 7 bytes"):
        assert sorted(file.read_text() for file in tmp_path.iterdir()) == [
            "audio of 7 bytes",
            "video of 5 bytes",
        ]
    with pytest.raises(ValueError), in_flight("image"):
        raise ValueError
    assert left_behind(tmp_path) == []


def test_is_found_after_a_crash(tmp_path):
    program = (
        "import os, signal\nfrom mllm.vllm.in_flight import in_flight\n"
        "with in_flight('video of 5 bytes'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ | {FOLDER: str(tmp_path)})
    assert ended.returncode == -signal.SIGKILL
    assert left_behind(tmp_path) == ["video of 5 bytes"]
    assert left_behind(tmp_path) == []


def test_nothing_is_written_without_a_folder_or_into_one_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    with in_flight("video"):
        pass
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    with in_flight("video"):
        pass
    assert not list(tmp_path.iterdir())
