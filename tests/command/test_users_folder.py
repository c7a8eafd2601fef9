"""A command started beside a user's own train.py, eval/, serve.py and data_prep/ runs ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.command.cli import COMMAND
from serve.launcher import Server

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("mllm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names of our packages, each of which ends whoever imports it."""
    for name in ("train.py", "serve.py", "eval/__init__.py", "data_prep/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise RuntimeError('the file of the user was imported')\n")
    return tmp_path


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["train", "eval", "serve", "data"])
@pytest.mark.parametrize("command", [(SCRIPT,), (sys.executable, "-m", "mllm.command.cli"), COMMAND])
def test_a_command_runs_our_packages(folder: Path, command: tuple, verb: str) -> None:
    if not SCRIPT.exists():
        pytest.skip("mllm is not installed as a script")
    done = run(folder, *command, verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_so_do_the_processes_that_it_spawns(folder: Path) -> None:
    words = ["data", "world", "--clips", "2", "--split", "val", "--workers", "2", "--out", "clips"]
    done = run(folder, *COMMAND, *words)
    assert done.returncode == 0, done.stderr
    assert (folder / "clips/records.jsonl").is_file()


def test_vllm_and_its_processes_import_nothing_from_there(folder: Path, monkeypatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    variables = Server("nano").variables()
    environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    spawned = (
        "import serve, multiprocessing as m; p = m.get_context('spawn').Process(target=print, args=(1,))"
    )
    code = f"{spawned}; p.start(); p.join(); print(serve.__file__, p.exitcode)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"1\n{ROOT / 'serve/__init__.py'} 0\n", done.stderr


def test_a_script_beside_them_is_told_which_file_is_in_the_way(folder: Path) -> None:
    (folder / "ask.py").write_text("from mllm.experiment import load_experiment\nload_experiment()\n")
    done = run(folder, sys.executable, "ask.py")
    assert "is in the way of mllm's own package" in done.stderr.splitlines()[-1]
    assert "rename it, or start Python with -P" in done.stderr.splitlines()[-1]
    assert run(folder, sys.executable, "-P", "ask.py").returncode == 0
