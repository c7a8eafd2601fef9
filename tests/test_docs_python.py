"""docs/python.md: its code blocks run, in their order, each seeing what those before it have defined."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from mllm.models.checkpoint import find_shipped
from tests.media_files import make, tone
from tests.test_answerer_remote import Server
from tests.train.conftest import write_tiny_experiment


def blocks(root: Path) -> list[tuple[str, int, str]]:
    """(heading, line, code) of every block."""
    text = (root / "docs" / "python.md").read_text(encoding="utf-8")
    found = []
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        heading = text[: block.start()].rsplit("\n## ", 1)[-1].splitlines()[0]
        found.append((heading, text[: block.start(1)].count("\n"), block[1]))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Server,), {"requests": []}))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder that holds what the page names."""
    (tmp_path / "clips").mkdir()
    for name in ("clip.mp4", "clips/a.mp4", "clips/b.mp4"):
        make(tmp_path / name, seconds=3, fps=8, sounds=[tone(3, 44_100)])
    (tmp_path / "configs").mkdir()
    write_tiny_experiment(tmp_path, name="smoke", output="runs").rename(tmp_path / "configs/smoke.yaml")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/nano").symlink_to(find_shipped("nano"), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_block_runs(root, folder, server, capsys):
    names: dict = {}
    for heading, line, code in blocks(root):
        source = "\n" * line + code.replace("http://localhost:8000", server)
        exec(compile(source, str(root / "docs/python.md"), "exec"), names)
        assert capsys.readouterr().out.strip(), f"the block under '{heading}' printed nothing"
    assert isinstance(names["answers"][1], names["mllm"].Unread)
    assert sum(names["ranking"].probabilities) == pytest.approx(1)
