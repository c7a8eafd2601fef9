"""docs/adding.md as somebody else's package: its blocks are found by their entry points and work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from mllm.command.cli import COMMAND
from mllm.errors import RecordError
from mllm.experiment import Data, Model
from mllm.records.source import open_source
from tests.media_files import make
from tests.tiny import SETTINGS, SMALL
from tests.train.conftest import STAGE

ROOT = Path(__file__).resolve().parents[1]
VIVIT = {"type": "vivit", "image_size": 32, "tubelet_size": [2, 16, 16], **SMALL}
EXPERIMENT = {
    "name": "theirs",
    "output": "runs",
    "model": SETTINGS | {"video": VIVIT, "window_seconds": 1.0},
    "data": {"train": "beeps:8", "val": "beeps:4"},
    **{name: {"steps": 0} for name in ("text", "contrastive", "instruct")},
    "align": STAGE | {"steps": 2, "batch": 2},
    "greeting": {"language": "de"},
}


def blocks(language: str) -> list[str]:
    """The code blocks of the page, in order."""
    text = ROOT.joinpath("docs/adding.md").read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def acme(tmp_path_factory) -> Path:
    """The package as pip would install it: the page's modules, and its entry points as metadata."""
    folder = tmp_path_factory.mktemp("acme")
    project = {}
    groups: dict[str, dict[str, str]] = {}
    modules: dict[str, None] = {}  # in order
    for block in blocks("toml"):
        values = tomllib.loads(re.sub(r"^ +", "", block, flags=re.MULTILINE))
        for group, entries in values.get("project", {}).pop("entry-points", {}).items():
            groups.setdefault(group, {}).update(entries)
            modules |= dict.fromkeys(value.partition(":")[0] for value in entries.values())
        project |= {name: value for name, value in values.items() if value}
    assert list(modules) == project["tool"]["setuptools"]["py-modules"]
    for module, code in zip(modules, blocks("python"), strict=True):
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{project['project']['name']}-{project['project']['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 0.1\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in groups[group].items()) for group in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def mllm(acme, tmp_path, monkeypatch):
    """`mllm(*words)` in a new folder, as a process that finds acme; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, fails: bool = False) -> str:
        paths = os.pathsep.join((str(ROOT), str(acme)))
        environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"}
        done = subprocess.run(
            [*COMMAND, *words], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def test_a_verb_and_a_measurement(mllm):
    assert re.search(r"^  greet +A verb of acme\.$", mllm("--help"), re.MULTILINE)
    assert mllm("greet", "Ann") == "hello Ann\n"
    assert re.fullmatch(r"\d+ greetings/s\n", mllm("bench", "greet", "--times", "10"))
    assert "Measured by acme." in mllm("bench", "--help")


def test_a_misspelt_key_of_a_section_is_named(mllm, tmp_path):
    (tmp_path / "theirs.yaml").write_text("greeting:\n  langauge: de\n")
    assert mllm("train", "text", "theirs.yaml", fails=True) == (
        "error: theirs.yaml:2: unknown key 'greeting.langauge': did you mean 'greeting.language'?\n"
    )


@pytest.mark.slow
def test_an_importer_reads_what_another_package_names(mllm, tmp_path):
    (tmp_path / "clips").mkdir()
    make(tmp_path / "clips/a.mp4", seconds=1, fps=4)
    row = {"number": 7, "clip": "a", "question": "Which way?", "answer": "left"}
    (tmp_path / "questions.json").write_text(json.dumps([row]))
    mllm(
        "data",
        "import",
        "street-qa",
        "--annotations",
        "questions.json",
        "--media",
        "clips",
        "--out",
        "street",
    )
    (record,) = (tmp_path / "street/records.jsonl").read_text().splitlines()
    assert json.loads(record)["answer"] == "left"


@pytest.mark.slow
def test_a_tower_a_source_and_a_stage_train_what_a_benchmark_scores(mllm, tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    printed = mllm("train", "align", "theirs.yaml")
    assert "align 2/2  loss" in printed
    assert f"align: {Path('runs/theirs/align/final')}" in printed

    rows = []
    for number, bird in enumerate(("robin", "owl")):
        soundfile.write(tmp_path / f"{number}.wav", np.sin(np.arange(16_000) / (9 + number)), 16_000)
        rows.append(
            {"file": f"{number}.wav", "birds": ["owl", "robin"], "bird": bird, "captions": ["it sings."]}
        )
    (tmp_path / "birds.json").write_text(json.dumps(rows))
    mllm(
        "eval",
        "birds",
        "--birds",
        ".",
        "--model",
        "runs/theirs",
        "--max-tokens",
        "3",
        "--no-blind",
        "--out",
        "out",
    )
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["benchmark"] == "birds"
    assert metrics["splits"]["test"]["types"]["species"]["count"] == 2
    assert metrics["splits"]["test"]["retrieval"]["audio"]["clips"] == 2


def test_options_that_a_source_refuses_are_named(acme, monkeypatch):
    monkeypatch.syspath_prepend(str(acme))
    assert open_source("beeps:3").name == "beeps:3"
    with pytest.raises(RecordError, match="^data source 'beeps:many': invalid literal for int"):
        open_source("beeps:many")


def test_what_the_page_says_of_experiments_is_right():
    sections = [yaml.safe_load(block) for block in blocks("yaml")]
    assert [list(section) for section in sections] == [["model"], ["data"]]
    Model.model_validate(sections[0]["model"])
    Data.model_validate(sections[1]["data"])
