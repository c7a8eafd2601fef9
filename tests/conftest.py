"""What all tests share: seeds, threads, and the folder of real recordings."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in each run, and no limit of time: machines are slow when they are busy.
settings.register_profile("mllm", derandomize=True, deadline=None)
settings.load_profile("mllm")

# Before anything imports torch: tests are small, and more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TERM", "dumb")

SCHEDULING = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the one vLLM server run in one process of pytest-xdist."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("server"))


@pytest.fixture(autouse=True)
def _scheduling() -> Iterator[None]:
    """A test must not leave its process real-time, as some encoders do: all that runs beside it starves."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == SCHEDULING, "this test changed how its process is scheduled"


@pytest.fixture(autouse=True)
def _seed() -> None:
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each conversation has that is checked from here on."""
    from mllm.records import chat

    found: list[int] = []
    checked = chat._checked

    def counted(messages):
        found.append(len(messages))
        return checked(messages)

    monkeypatch.setattr(chat, "_checked", counted)
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory) -> Path:
    """A Whisper model with random weights, as a folder."""
    from tests.tiny_whisper import save_tiny_whisper

    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture
def heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights say nothing likely, which is not decoded again."""
    monkeypatch.setattr("mllm.models.transcriber.TEMPERATURES", (0.0,))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings that MLLM_REAL_DATA names; skips where there is none."""
    folder = os.environ.get("MLLM_REAL_DATA")
    if not folder:
        pytest.skip("MLLM_REAL_DATA is not set: name a folder of real recordings")
    if not Path(folder).is_dir():
        pytest.fail(f"MLLM_REAL_DATA names {folder}, which is not a folder")
    return Path(folder)
