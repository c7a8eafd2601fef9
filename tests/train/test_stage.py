"""Stages are found by their entry points and stand in one order, those of other packages among ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.models.checkpoint import resolve
from train.stage import Stage, before, find_stage, route, stages

ENTRIES = """
[mllm.stages]
align = align:AlignStage

[mllm.sections]
align = align:Align
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution with a module and entry points on sys.path, as pip would leave it."""

    def install(module: str, entries: str) -> Path:
        site = tmp_path / "site"
        info = site / "aligning-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "align.py").write_text(module)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aligning\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        monkeypatch.syspath_prepend(str(site))
        stages.cache_clear()
        return site

    yield install
    sys.modules.pop("align", None)
    stages.cache_clear()


def documented(root: Path) -> str:
    """The stage of docs/adding.md."""
    section = (root / "docs/adding.md").read_text().split("## A stage\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_stages_stand_in_the_order_of_their_positions():
    assert [stage.name for stage in route()] == ["text", "contrastive", "instruct"]
    assert [stage.name for stage in before(find_stage("instruct"))] == ["text", "contrastive"]
    assert before(find_stage("classifier")) == ()
    with pytest.raises(ConfigError, match="no stage is called 'instrcut': choose from text, contrastive"):
        find_stage("instrcut")


def test_finding_the_stages_loads_no_torch():
    code = "import sys, train.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stage_of_another_package_stands_among_ours(install, root, tmp_path, tiny_folder):
    install(documented(root), ENTRIES)
    assert [stage.name for stage in route()] == ["text", "contrastive", "align", "instruct"]
    assert [stage.name for stage in before(find_stage("align"))] == ["text", "contrastive"]
    for stage in ("align", "contrastive"):
        shutil.copytree(tiny_folder, tmp_path / "run" / stage / "final")
    assert resolve(tmp_path / "run")[0] == str(tmp_path / "run/align/final")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("import nowhere", "the stage 'align' of aligning cannot be imported: ModuleNotFoundError"),
        ("AlignStage = 3", "the stage 'align' of aligning is align:AlignStage, which is not a subclass of"),
    ],
)
def test_a_stage_that_is_none_is_named_with_its_package(install, module, problem):
    install(module, ENTRIES)
    with pytest.raises(ConfigError, match=problem):
        stages()


def test_two_stages_at_one_position_are_refused(install, root):
    install(documented(root).replace("1.5", "1"), ENTRIES)
    with pytest.raises(ConfigError, match="the stages align and contrastive both stand at position 1"):
        stages()


def test_every_stage_says_in_a_line_what_it_does():
    for stage in stages():
        assert isinstance(stage, Stage)
        assert stage.summary.endswith(".")
        assert "\n" not in stage.summary


@pytest.mark.slow
def test_the_documented_stage_trains(install, root, tmp_path, write_experiment):
    site = install(documented(root), ENTRIES)
    path = write_experiment(tmp_path)
    command = [sys.executable, "-m", "mllm.command.cli", "train", "align", str(path)]
    done = subprocess.run(
        [*command, "text.steps=0", "contrastive.steps=0", "align.steps=2", "align.batch=2", "align.lr=1e-3"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    assert "align: " in done.stdout
    assert (tmp_path / "runs/tiny/align/final/config.json").is_file()
