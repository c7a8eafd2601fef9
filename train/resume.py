"""Finds where an interrupted stage resumes: its newest complete checkpoint.

transformers silently resumes from incomplete checkpoints: without the optimizer's state the learning rate
stays at 0, without the random state dropout differs.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml

from mllm.errors import ConfigError, MllmError
from mllm.models.checkpoint_check import weight_shapes

WEIGHTS, OPTIMIZER, SCHEDULER, STATE = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
)


def processes() -> int:
    """Number of training processes, as set by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-<n>` folders of a stage, newest first."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    numbered = [(int(match.group(1)), path) for path, match in found.items() if match and path.is_dir()]
    return [path for _, path in sorted(numbered, reverse=True)]


def last_checkpoint(folder: Path, passed_over: list[str] | None = None) -> Path | None:
    """The newest complete checkpoint of a stage; adds a line for each newer one to `passed_over`."""
    for candidate in checkpoints(folder):
        problem = what_is_missing(candidate, processes())
        if problem is None:
            return candidate
        if passed_over is not None:
            passed_over.append(f"{candidate.name} is not whole ({problem})")
    return None


def what_is_missing(checkpoint: Path, world: int) -> str | None:
    """What a checkpoint lacks to resume with `world` processes; None if it is complete."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except OSError:
        return f"{STATE} is missing"
    except ValueError:
        return f"{STATE} is damaged"
    if not isinstance(state, dict) or not checkpoint.name.endswith(f"-{state.get('global_step', '')}"):
        return f"{STATE} is damaged"
    if (checkpoint / "latest").is_file() or any(checkpoint.glob("pytorch_model_fsdp*")):
        needed = [SCHEDULER]  # DeepSpeed and FSDP store the rest in folders
    else:
        try:
            weight_shapes(checkpoint / WEIGHTS)
        except MllmError:
            return f"{WEIGHTS} is {'damaged' if (checkpoint / WEIGHTS).exists() else 'missing'}"
        needed = [OPTIMIZER, SCHEDULER]
    needed += ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]
    for name in needed:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        # torch.save writes zip files, whose directory is at the end.
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is damaged"
    return None


def settings_there(folder: Path) -> dict[str, Any] | None:
    """Reads the experiment that a run folder was made for; None for a new folder.

    Raises:
        ConfigError: it contains results, but no valid experiment.
    """
    written = folder / "experiment.yaml"
    problem = "is missing"
    if written.exists():
        try:
            before = yaml.safe_load(written.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            before = None
        if isinstance(before, dict):
            return before
        problem = "is damaged"
    work = [*checkpoints(folder), *(folder / name for name in ("final", "start") if (folder / name).exists())]
    if work:
        raise ConfigError(
            f"{written} {problem}, which says what {work[0].name} there was made with: put it back, give the "
            "run another name=, or throw the folder away with --restart"
        )
    return None


def check_processes(folder: Path) -> None:
    """Writes the number of processes into a run folder, or compares it with that written before.

    Raises:
        ConfigError: the number differs, so batches would differ as well.
    """
    note = folder / "processes.json"
    before = _noted(note) or next(filter(None, map(_that_saved, checkpoints(folder))), None)
    if before not in (None, processes()):
        raise ConfigError(
            f"{folder} was begun by {before} processes and {processes()} are here, so its batches would be "
            f"others: start {before} (torchrun --nproc-per-node {before}), give the run another name=, or "
            "start the stage afresh with --restart"
        )
    if before is None or not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"processes": processes()}) + "\n", encoding="utf-8")


def _noted(note: Path) -> int | None:
    try:
        return int(json.loads(note.read_text(encoding="utf-8"))["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _that_saved(checkpoint: Path) -> int | None:
    """Number of processes that wrote a checkpoint, counted by their random states."""
    ranks = len(list(checkpoint.glob("rng_state_*.pth")))
    return ranks or (1 if (checkpoint / "rng_state.pth").is_file() else None)
