"""Where a stopped stage goes on: from whole checkpoints, of the same experiment and as many processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from mllm.command import cli as command
from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from train import cli
from train.resume import last_checkpoint
from train.stages.text import TextStage

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def write_checkpoint(folder: Path, step: int, ranks: int = 1) -> Path:
    """What transformers writes, in small."""
    folder = folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"a": torch.zeros(9)}, folder / "model.safetensors")
    states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        torch.save({"step": step, "moments": torch.zeros(99)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut": halve,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_is_not_whole_is_passed_over_for_the_one_before(tmp_path, name, damage):
    before, newest = write_checkpoint(tmp_path, 90), write_checkpoint(tmp_path, 100)
    assert last_checkpoint(tmp_path) == newest
    DAMAGE[damage](newest / name)
    passed: list[str] = []
    assert last_checkpoint(tmp_path, passed) == before
    assert passed == [
        f"checkpoint-100 is not whole ({name} is {'missing' if damage == 'missing' else 'damaged'})"
    ]
    shutil.rmtree(before)
    assert last_checkpoint(tmp_path) is None


def test_other_folders_and_others_states_are_no_checkpoints(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    write_checkpoint(tmp_path, 3).rename(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_of_two_processes_needs_both_their_random_states(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before, newest = write_checkpoint(tmp_path, 3, ranks=2), write_checkpoint(tmp_path, 6, ranks=2)
    (newest / "rng_state_1.pth").unlink()
    passed: list[str] = []
    assert last_checkpoint(tmp_path, passed) == before
    assert "rng_state_1.pth is missing" in passed[0]


def test_another_number_of_processes_is_refused(tmp_path, write_experiment, monkeypatch):
    experiment = load_experiment(write_experiment(tmp_path))
    folder = TextStage().open(experiment).folder
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="was begun by 1 processes and 2 are here.*--restart") as caught:
        TextStage().open(experiment)
    assert "\n" not in str(caught.value)
    write_checkpoint(folder, 3)  # of a run that noted nothing
    (folder / "processes.json").unlink()
    with pytest.raises(ConfigError, match="was begun by 1 processes and 2 are here"):
        TextStage().open(experiment)
    assert TextStage().open(experiment, restart=True).resume is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="was begun by 2 processes and 1 are here.*--nproc-per-node 2"):
        TextStage().open(experiment)


@pytest.mark.parametrize("damage", [Path.unlink, DAMAGE["empty"], lambda path: path.write_text(": [")])
@pytest.mark.parametrize("work", ["checkpoint-3", "final", "start"])
def test_a_lost_experiment_does_not_start_over_what_it_made(tmp_path, write_experiment, work, damage):
    experiment = load_experiment(write_experiment(tmp_path))
    folder = TextStage().open(experiment).folder
    (folder / work).mkdir()
    damage(folder / "experiment.yaml")
    with pytest.raises(ConfigError, match=f"experiment.yaml is .*, which says what {work} there"):
        TextStage().open(experiment)
    assert (folder / work).exists()
    TextStage().open(experiment, restart=True)
    assert not (folder / work).exists()


@pytest.mark.slow
def test_a_stage_goes_on_from_the_checkpoint_before_with_the_same_losses(tmp_path, write_experiment, capsys):
    def losses(folder: Path) -> dict[int, float]:
        rows = json.loads((folder / "metrics.json").read_text())["rows"]
        return {row["step"]: row["loss"] for row in rows}

    path = write_experiment(tmp_path)
    folder = tmp_path / "runs/tiny/text"
    CliRunner().invoke(cli.app, ["text", str(path)], catch_exceptions=False)
    straight = losses(folder)
    shutil.rmtree(folder / "final")
    (folder / "checkpoint-6/optimizer.pt").unlink()
    with pytest.raises(SystemExit) as ended:
        command.main(["train", "text", str(path)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "text: checkpoint-6 is not whole (optimizer.pt is missing), so it is passed over" in said
    assert "text: goes on from checkpoint-3" in said
    assert losses(folder) == pytest.approx(straight, rel=1e-5)
