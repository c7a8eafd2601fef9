"""What is no ordinary file is refused at once, in whatever way it is named: a pipe would hold its reader."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.check import check
from data_prep.check_rows import record_files
from data_prep.importers.tables import read_text
from mllm.errors import MediaError, MllmError, RecordError
from mllm.files import open_ordinary
from mllm.media.recording import load_clip, probe
from mllm.records.openai_parts import media_url
from mllm.records.record import read_records
from mllm.records.source import open_source
from tests.media_files import frame_folder


@pytest.fixture(autouse=True)
def no_waiting():
    """Whoever waits for a pipe is interrupted."""

    def stop(*_):
        raise AssertionError("held by a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def a_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(path.parent)  # a socket's address holds 108 characters
        listening.bind(path.name)
    return path


def link(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    return path


ODD = {
    "pipe": (pipe, r"not an ordinary file but a pipe \(FIFO\)"),
    "socket": (a_socket, "not an ordinary file but a socket"),
    "device": (lambda path: link(path, "/dev/zero"), "not an ordinary file but a device"),
    "link to a pipe": (lambda path: link(path, pipe(path.parent / "in" / "p")), r"but a pipe \(FIFO\)"),
    "link to nothing": (lambda path: link(path, "gone"), "a link to what is not there"),
    "link to itself": (lambda path: link(path, path.name), "(links|cannot be read)"),
}


@pytest.fixture(params=ODD)
def odd(request, monkeypatch, tmp_path) -> tuple[Callable[[Path], Path], str]:
    monkeypatch.chdir(tmp_path)
    return ODD[request.param]


def test_recordings(odd, tmp_path):
    make, message = odd
    path = make(tmp_path / "clip.mp4")
    for read in (open_ordinary, probe, load_clip):
        with pytest.raises(MediaError, match=message):
            read(path)
    with pytest.raises(MediaError, match=f"{message}|no such file"):
        media_url(path, "video")


def test_records_and_annotations(odd, tmp_path):
    make, message = odd
    path = make(tmp_path / "train.jsonl")
    with pytest.raises(RecordError, match=message):
        read_text(path)
    for read in (
        lambda: list(read_records(path)),
        lambda: open_source(str(path)),
        lambda: check(record_files([path])[0]),
    ):
        with pytest.raises(RecordError, match=f"{message}|is not a file|no data source|no record file"):
            read()


@pytest.mark.parametrize("name", ["frame_0002.png", "sound.wav", "fps.txt"])
def test_folders_of_frames(odd, tmp_path, name):
    make, message = odd
    folder = frame_folder(tmp_path / "clip", 3)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(MediaError, match=f"{name}: .*{message}"):
        load_clip(folder)


def test_what_records_name(odd, tmp_path):
    make, _ = odd
    make(tmp_path / "clip.mp4")
    content = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What?"}]
    row = {"id": "1", "messages": [{"role": "user", "content": content}], "answer": "A star."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    findings = check([tmp_path / "rows.jsonl"], workers=1).findings
    assert any(finding.kind == "not there" or "ordinary" in finding.what for finding in findings), findings


def test_a_file_that_a_pipe_replaces_between_look_and_open(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"0")
    look = os.stat

    def swap(at, **options):
        found = look(at, **options)
        if at == path:
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "stat", swap)
    with pytest.raises(MediaError, match="a pipe"):
        open_ordinary(path)


def test_who_writes_to_a_pipe_is_not_disturbed(tmp_path):
    """Opening it to read would wake him, and closing it again would end him."""
    path = pipe(tmp_path / "clip.mp4")
    with pytest.raises(MllmError, match="a pipe"):
        open_ordinary(path)
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
