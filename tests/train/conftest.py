"""A model so small that a training step takes milliseconds, and an experiment around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import SETTINGS

# Room for the captions of the world.
TINY_MODEL: dict[str, Any] = SETTINGS | {
    "tokenizer_vocab": 400,
    "text": SETTINGS["text"] | {"max_position_embeddings": 128},
}
STAGE = {"steps": 6, "batch": 4, "warmup": 1, "save_every": 3, "log_every": 1}
ALL = ["video_tower", "audio_tower", "qformers", "projectors", "space"]


@pytest.fixture(scope="session")
def write_experiment():
    """A function that writes the tiny experiment."""
    return write_tiny_experiment


def write_tiny_experiment(folder: Path, **changes: Any) -> Path:
    """The tiny experiment as a YAML file in `folder`; `changes` replace whole sections."""
    values = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "model": TINY_MODEL,
        "data": {"train": "world:train,frames=2,size=32", "val": "world:val,frames=2,size=32"},
        "text": STAGE,
        "contrastive": STAGE | {"muon_lr": 4e-3, "decoder_lr": 1e-3},
        "instruct": STAGE | {"tower_lr": 1e-3, "train": ALL, "lora": {"rank": 4, "alpha": 8}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


@pytest.fixture
def experiment(tmp_path: Path):
    """The tiny experiment, its runs in the test's own folder."""
    from mllm.experiment import load_experiment

    return load_experiment(write_tiny_experiment(tmp_path))


@pytest.fixture(scope="session")
def world():
    """The training split of the world at the tiny model's size."""
    from mllm.records.source import open_source

    return open_source("world:train,frames=2,size=32")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, world) -> Path:
    """The tiny model, random, as a checkpoint folder."""
    import torch

    from mllm.experiment import Model
    from mllm.models.checkpoint import build_model, save
    from train.pipeline import source_texts

    torch.manual_seed(0)
    model, processor = build_model(Model(**TINY_MODEL), list(source_texts(world, 50)))
    return save(model, processor, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(tiny_folder: Path):
    """(model, processor), fresh for each test."""
    from mllm.models.checkpoint import load

    return load(tiny_folder)
