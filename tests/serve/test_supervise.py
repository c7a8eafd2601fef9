"""What `mllm serve` does when vLLM ends by itself; a small program stands in vLLM's place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.serve.test_launcher import visit


@pytest.fixture
def supervised(tmp_path):
    """`serve_forever` in a process of its own; returns (process, port, a way to read what it says)."""
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model/config.json").write_text("{}")
    started = []

    def start(restarts: int, first_pause: float, flags: Sequence[str] = ()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = tmp_path / "run.py"
        program.write_text(
            f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from test_launcher import FakeServer\nfrom serve import supervise\n"
            f"supervise.FIRST_PAUSE = {first_pause}\n"
            f"server = FakeServer({str(tmp_path / 'my-model')!r}, port={port}, flags={list(flags)!r})\n"
            f"sys.exit(supervise.serve_forever(server, {restarts}))\n"
        )
        said = tmp_path / "said.txt"
        environment = os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "300"}
        with said.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(program)], stdout=file, stderr=file, env=environment
            )
        started.append(process)
        return process, f"http://127.0.0.1:{port}", said

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(text: str, said: Path, times: int = 1) -> None:
    for _ in range(200):
        if said.read_text().count(text) >= times:
            return
        time.sleep(0.1)
    raise AssertionError(f"{text!r} was not said {times} times: {said.read_text()}")


def test_starts_again_and_gives_up_after_a_limit(supervised, tmp_path):
    process, url, said = supervised(restarts=2, first_pause=0.1)
    for ready in (1, 2, 3):
        wait_for("is served at", said, times=ready)
        assert process.poll() is None
        visit(f"{url}/crash")
    assert process.wait(30) == 1
    text = said.read_text()
    assert text.count("vLLM ended: signal 11 (SIGSEGV") == 3
    assert "starting it again in 0.1 s (1 of 2)" in text
    assert "starting it again in 0.2 s (2 of 2)" in text
    assert "giving up: it was started again 2 times in a row" in text
    assert not [path for path in tmp_path.glob("mllm-serve-*") if path.is_dir()]


def test_the_server_that_was_started_again_answers(supervised):
    _, url, said = supervised(restarts=2, first_pause=0.1)
    wait_for("is served at", said)
    visit(f"{url}/crash")
    wait_for("is served at", said, times=2)
    with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
        assert response.status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_while_it_waits_to_start_again(supervised, tmp_path, number):
    process, url, said = supervised(restarts=2, first_pause=60.0)
    wait_for("is served at", said)
    visit(f"{url}/crash")
    wait_for("starting it again in 60 s", said)
    process.send_signal(number)
    assert process.wait(10) == 0
    assert not [path for path in tmp_path.glob("mllm-serve-*") if path.is_dir()]


def test_a_server_that_never_was_ready_is_not_started_again(supervised):
    process, _, said = supervised(restarts=2, first_pause=0.1, flags=["--fail"])
    assert process.wait(30) == 1
    assert "vLLM did not start: exit status 3: ValueError: the model is too large" in said.read_text()
    assert "again" not in said.read_text()
