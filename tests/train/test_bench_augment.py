"""`mllm bench augment`: what loads is timed beside ours, what does not says why."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from mllm.command import bench

FAKE = """
import numpy as np

def kind(low, high, p):
    return lambda sound, rate: np.zeros_like(sound)

AddGaussianSNR = PitchShift = TimeMask = kind
"""


def install(folder: Path, name: str, code: str) -> None:
    """A module and what pip would know about it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code, encoding="utf-8")
    known = folder / f"{name}-1.2.dist-info"
    known.mkdir()
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
    (known / "top_level.txt").write_text(name, encoding="utf-8")


def test_each_library_is_timed_or_says_why_not(tmp_path, monkeypatch) -> None:
    install(tmp_path, "audiomentations", FAKE)
    install(tmp_path, "torch_audiomentations", "import a_module_that_nobody_has")
    install(tmp_path, "kornia", "import os; os._exit(3)")
    install(tmp_path, "albumentations", "raise ModuleNotFoundError(name='albumentations')")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "augment.json"
    result = CliRunner().invoke(
        bench.app, ["augment", "--rounds", "1", "--json", str(file)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert numbers["audiomentations"]["release"] == "audiomentations 1.2"
    assert set(numbers["audiomentations"]["ms"]) == {"noise", "pitch", "time mask"}
    assert all(len(pair) == 2 and pair[1] > 0 for pair in numbers["audiomentations"]["ms"].values())
    reasons = [numbers[name]["reason"] for name in ("torch_audiomentations", "kornia", "albumentations")]
    assert reasons == [
        "does not load: No module named 'a_module_that_nobody_has'", "ends the process", "not installed",
    ]  # fmt: skip
