"""mllm.command.cli: verbs are found, only the chosen one is imported, errors are one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any

import pytest
import typer

from mllm.command import cli
from mllm.errors import MllmError
from serve.launcher import ServerError


@dataclass
class Entry:
    """Stands for an entry point."""

    name: str
    value: Any
    dist: Any = None
    module: str = "songs"

    def load(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `mllm` with the given verbs and returns (exit status, stdout, stderr)."""

    def run(verbs: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(cli, "entry_points", lambda group: [Entry(*verb) for verb in verbs.items()])
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        return exit_.value.code or 0, *capsys.readouterr()

    return run


def test_help_is_quick_and_imports_no_verb() -> None:
    code = (
        "import sys, mllm.command.cli\n"
        "try: mllm.command.cli.main(['--help'])\n"
        "except SystemExit as exit: assert not exit.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'serve', 'train'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor, so that a busy machine does not fail the test.
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 2
    for verb in cli.HELP:
        assert f"  {verb} " in result.stdout


def test_every_installed_verb_has_a_line_of_help() -> None:
    assert {entry.name for entry in entry_points(group=cli.COMMANDS) if entry.dist.name == "mllm"} == set(
        cli.HELP
    )


@pytest.mark.parametrize("verb", sorted(cli.HELP))
def test_every_installed_verb_loads(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert not exit_.value.code
    assert f"mllm {verb}" in capsys.readouterr().out


def test_a_user_error_is_one_line_and_status_2(run) -> None:
    def sing() -> None:
        raise MllmError("song.yaml row 2:\n  no melody: write one")

    assert run({"sing": sing}, "sing") == (2, "", "error: song.yaml row 2: no melody: write one\n")


def test_an_error_of_a_server_is_status_1(run) -> None:
    def sing() -> None:
        raise ServerError("vLLM ended: exit status 3")

    assert run({"sing": sing}, "sing")[0] == 1


def test_a_bug_keeps_its_traceback(run) -> None:
    def sing() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run({"sing": sing}, "sing")


def test_the_traceback_of_a_user_error_can_be_asked_for(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def sing() -> None:
        raise MllmError("no melody")

    monkeypatch.setenv("MLLM_TRACEBACK", "1")
    with pytest.raises(MllmError):
        run({"sing": sing}, "sing")


def test_a_verb_that_cannot_be_imported_does_not_disturb_the_others(run) -> None:
    def sing() -> None:
        print("la")

    verbs = {"serve": ModuleNotFoundError("No module named 'vllm'"), "sing": sing}
    assert run(verbs, "sing")[:2] == (0, "la\n")
    status, out, _ = run(verbs, "--help")
    assert status == 0
    assert "serve" in out
    status, _, error = run(verbs, "serve", "x", "--flag")
    assert status == 2
    assert error.startswith(
        "error: `mllm serve` is unavailable: ModuleNotFoundError: No module named 'vllm'; run"
    )
    assert error.count("\n") == 1


def test_groups_single_verbs_and_functions(run) -> None:
    group = typer.Typer()

    @group.command()
    def add(name: str) -> None:
        print("added", name)

    single = typer.Typer()

    @single.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def serve(context: typer.Context, port: int = 8000) -> None:
        print(port, *context.args)

    def search(query: str, top: Annotated[int, typer.Option()] = 5) -> None:
        print(query, top)

    def chat(words: list[str]) -> None:
        print(*words)

    chat.context_settings = {"ignore_unknown_options": True}  # type: ignore[attr-defined]
    verbs = {"index": group, "serve": single, "search": search, "chat": chat}
    assert run(verbs, "index", "add", "x")[:2] == (0, "added x\n")
    assert run(verbs, "serve", "--port", "1", "--dtype", "auto")[:2] == (0, "1 --dtype auto\n")
    assert run(verbs, "search", "a star", "--top", "3")[:2] == (0, "a star 3\n")
    assert run(verbs, "chat", "--video", "a.mp4")[:2] == (0, "--video a.mp4\n")
    status, out, error = run(verbs, "index")
    assert "add" in out + error
    assert status == 2


def test_the_exit_status_of_a_verb_is_kept(run) -> None:
    def sing() -> None:
        raise typer.Exit(1)

    assert run({"sing": sing}, "sing")[0] == 1


def test_a_mistyped_verb_names_the_nearest(run) -> None:
    status, _, error = run({"search": print}, "serch")
    assert status == 2
    assert "Did you mean 'search'?" in error


def test_verbs_of_other_packages_are_listed_behind_ours(run) -> None:
    _, out, _ = run({"aaa": print, "serve": print}, "--help")
    assert out.index("serve ") < out.index("aaa  ")


def test_version(run) -> None:
    status, out, _ = run({}, "--version")
    assert status == 0
    assert out.startswith("mllm 0.")


def test_the_command_is_installed() -> None:
    command = os.path.join(os.path.dirname(sys.executable), "mllm")
    result = subprocess.run([command, "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "No such command 'nonsense'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "data check {folder}/none.jsonl",
        "data import {folder}/none.json",
        "data formats",
        "chat --url http://127.0.0.1:9 hello",
        "index info --index {folder}",
        "search star --index {folder}",
        "serve --help",
        "eval records --help",
        "train all --help",
        "bench serve --help",
    ],
)
def test_what_needs_no_model_loads_no_torch(words, tmp_path):
    script = f"""
import sys
from mllm.command.cli import main
try:
    main({words.format(folder=tmp_path).split()!r})
except SystemExit:
    heavy = [name for name in ("torch", "transformers", "vllm", "matplotlib") if name in sys.modules]
    sys.exit(", ".join(heavy) or None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("active", "active")])
def test_waiting_threads_sleep_in_every_command_unless_the_user_says_otherwise(given, used):
    """Set before torch is loaded, which reads it once."""
    program = (
        "import os, sys\nfrom mllm.command import cli\n"
        "def said(app): print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "cli.typer.main.get_group = said\n"
        "cli.main(['eval'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [used, "False"]
