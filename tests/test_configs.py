"""The shipped experiments load, build their model, and name commands that exist; so does the README."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer.main

from mllm.command import cli
from mllm.experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def check_command(line: str) -> None:
    """A command line of ours names verbs, make targets and repository files that exist."""
    words = shlex.split(line, comments=True)
    if words[0] == "make" and len(words) > 1:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"`{line}`: no such target"
    if words[0] == "mllm" and len(words) > 1 and not words[1].startswith("-"):
        verbs = {entry.name: entry for entry in entry_points(group=cli.COMMANDS)}
        assert words[1] in verbs, f"`{line}`: no such verb"
        value = verbs[words[1]].load()
        if isinstance(value, typer.Typer) and len(words) > 2:
            assert words[2] in typer.main.get_group(value).commands, f"`{line}`: no such verb"
    for word in words:
        if re.match(r"(configs|docs|scripts|tests|mllm)/[\w./-]+\.\w+$", word):
            assert (ROOT / word).exists(), f"`{line}`: no such file {word}"


def commands(text: str) -> list[str]:
    """Lines of fenced blocks, or of a comment, that run mllm or make."""
    lines = [line.strip().removeprefix("#").strip().removeprefix("$ ") for line in text.splitlines()]
    lines = [re.sub(r"^torchrun .*--no-python ", "", line) for line in lines]
    return [line for line in lines if re.match(r"(mllm|make) \w", line)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_reads_back(path: Path, tmp_path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    copy = tmp_path / "copy.yaml"
    copy.write_text(experiment.dump_yaml(), encoding="utf-8")
    assert load_experiment(copy) == experiment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_the_commands_that_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    opening = text[: re.search(r"^[^#\n]", text, re.MULTILINE).start()]
    found = commands(opening)
    assert any(line.startswith("mllm train ") and str(path.relative_to(ROOT)) in line for line in found)
    for line in found:
        check_command(line)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_a_model_and_opens_the_worlds_it_names(path: Path) -> None:
    from mllm.models.checkpoint import build_model, load_processor
    from mllm.records.source import open_source

    settings = load_experiment(path)
    if settings.start == "nano":
        load_processor(settings.start)
    elif settings.start is not None:
        assert settings.start == "small" or settings.start.startswith("runs/")  # what another config makes
    elif any(
        isinstance(getattr(settings.model, part), str) for part in ("decoder", "video", "audio", "text")
    ):
        pytest.skip("its pretrained parts are not here")
    else:
        model, processor = build_model(settings.model, ["a red star moves left while a bell rings"] * 20)
        assert processor.spec == model.config.window_spec
    for name in (settings.data.train, settings.data.val):
        if name.startswith("world:"):
            assert len(open_source(name)) > 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"no {path.name} yet")
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in commands(block):
            check_command(line)
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"
