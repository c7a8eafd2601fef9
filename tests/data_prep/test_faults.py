"""Killed at any moment, or out of disk: what is done stays whole, and the same command goes on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
import pytest
import torch

from data_prep import features, shard_build, transcribe
from mllm.media.windows import WindowSpec
from mllm.models.checkpoint import save
from mllm.records.record import write_records
from tests.media_files import make, tone
from tests.tiny import tiny

KILLS = 10
SPEC = WindowSpec(window_seconds=1.0, frames_per_window=2, max_windows=3, image_size=32)
Work = Callable[..., Any]


def records_in(folder: Path, count: int = 48, seconds: Callable[[int], float] = lambda n: 1 + n % 3) -> Path:
    """As many recordings with sound, each different, and a record about each; `seconds` of their number."""
    rows = []
    for number in range(count):
        path = make(
            folder / f"{number}.mp4",
            seconds=seconds(number),
            sounds=[tone(seconds(number), 44_100, 200 + 10 * number)],
        )
        user = [{"type": "video", "video": str(path)}, {"type": "text", "text": "What is heard?"}]
        rows.append({"id": str(number), "messages": [{"role": "user", "content": user}], "answer": "a tone"})
    write_records(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


# --- what is killed, and all that it leaves ---


def build_shards(rows: Path, model: Path, out: Path) -> None:
    shard_build.build(shard_build.make_plan(rows, shard_build.Storage(SPEC), 2), "rows", out, workers=1)


def build_shards_side_by_side(rows: Path, model: Path, out: Path) -> None:
    """Its workers outlive it for a moment when it is killed."""
    shard_build.build(shard_build.make_plan(rows, shard_build.Storage(SPEC), 2), "rows", out, workers=2)


def fill_features(rows: Path, model: Path, out: Path) -> None:
    features.SCENES, features.WINDOWS = 4, 6
    features.fill(str(model), str(rows), out, 1.0)


def write_transcripts(rows: Path, model: Path, out: Path) -> None:
    transcribe.transcribe(rows, transcribe.Whisper(str(model), "en"), out)


def contents(out: Path) -> dict[Any, Any]:
    """Every file, or every feature of a cache, whose own files tell of times and accesses."""
    if not (out / "cache.db").is_file():
        outlived(out)
        return {path.name: path.read_bytes() for path in out.iterdir()}
    with diskcache.Cache(str(out)) as cache:
        return {key: cache[key] for key in cache.iterkeys()}


def kept(out: Path) -> int:
    """How much of the work is done; half files that a kill leaves do not count."""
    if (out / "cache.db").is_file():
        return len(contents(out))
    return len([path for path in out.glob("*") if path.suffix != ".part"])


def outlived(out: Path) -> None:
    """Waits for workers that outlive a killed build to end: until then their half files come and go."""
    for _ in range(600):
        if not list(out.glob("shard-*.part")):
            return
        time.sleep(0.05)
    raise AssertionError(f"half shards stay in {out}")


def kill_again_and_again(work: Work, arguments: tuple, out: Path, seed: int, moments: int) -> None:
    """In a process that has imported everything: forks the work, and kills it at random moments."""
    torch.set_num_threads(1)
    random = np.random.default_rng(seed)
    begin = time.monotonic()
    _forked(work, (*arguments, out.with_name("timed")), None)
    whole = time.monotonic() - begin
    kills, met = 0, set()
    # On a busy machine some kills come too early for any work: they go on until they met it at three moments.
    while kills < KILLS or (len(met) < moments and kills < 5 * KILLS):
        finished = _forked(work, (*arguments, out), random.uniform(0, whole))
        kills += not finished
        met.add(kept(out))
        if finished:
            shutil.rmtree(out)
    assert len(met) >= moments, "kills met the work at different moments"
    _forked(work, (*arguments, out), None)


def _forked(work: Work, arguments: tuple, seconds: float | None) -> bool:
    """Whether it came to its end within so many seconds; else it was killed."""
    child = os.fork()
    if not child:
        work(*arguments)
        os._exit(0)
    end = time.monotonic() + (seconds or 1e9)
    while time.monotonic() < end:
        reaped, status = os.waitpid(child, os.WNOHANG)
        if reaped:
            assert status == 0, "the work itself failed"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("work", [build_shards, build_shards_side_by_side, fill_features, write_transcripts])
def test_killed_again_and_again_it_ends_as_if_it_never_was(work: Work, tmp_path: Path, request) -> None:
    rows = records_in(tmp_path, 12 if work is write_transcripts else 48)
    model = tmp_path / "model"
    if work is fill_features:
        save(*tiny(), model)
    elif work is write_transcripts:
        model = request.getfixturevalue("tiny_whisper")
    spawn = get_context("spawn")
    moments = 1 if work is write_transcripts else 3  # it writes one file, from its first row to its last
    killer = spawn.Process(
        target=kill_again_and_again, args=(work, (rows, model), tmp_path / "killed", 0, moments)
    )
    killer.start()
    killer.join(480)
    assert killer.exitcode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "timed")


# --- a disk that is full ---

# One that hangs ends, and shows where its threads are.
MAIN = """
import faulthandler
faulthandler.dump_traceback_later(240, exit=True)
from mllm.command.cli import main
main()
"""


def on_a_small_disk(out: Path, size: str, words: list[str]) -> subprocess.CompletedProcess:
    """A command of ours, in a name space where `out` is a disk of that size; lists what it leaves there."""
    out.mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && {{ "$@"; code=$?; ls -AR "$0"; exit $code; }}'
    command = [sys.executable, "-c", MAIN, *words]
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(out), *command],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def small_disks(tmp_path_factory) -> None:
    tried = on_a_small_disk(tmp_path_factory.mktemp("try") / "disk", "1m", ["--version"])
    if "mount" in tried.stderr or "unshare" in tried.stderr:
        pytest.skip("this machine lets nobody mount a small disk")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "size", "said"),
    [
        ("build", "100k", "0.1 MB are free: give another --out"),
        ("build", "1m", "shards that are done stay, and the same command goes on with them"),
        ("features", "400k", "features cannot be kept (database or disk is full)"),
        ("transcribe", "4k", "cannot be written (No space left on device)"),
        ("import", "8k", "No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    verb: str, size: str, said: str, tmp_path: Path, small_disks, tiny_whisper: Path
) -> None:
    # Every eighth is looked at for the estimate: short ones, which promise too little.
    rows = records_in(tmp_path, 8 if verb == "transcribe" else 32, lambda number: 3 if number % 8 else 0.2)
    save(*tiny(), tmp_path / "model")
    (tmp_path / "e.yaml").write_text(f"start: {tmp_path / 'model'}\ndata: {{train: {rows}}}\n")
    out = tmp_path / "disk"
    turns = [{"from": "human", "value": "What is one and one?"}, {"from": "gpt", "value": "two"}]
    chats = [{"id": str(number), "conversations": turns} for number in range(200)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    words = {
        "build": ["build", str(tmp_path / "e.yaml"), "--out", str(out)],
        "features": ["features", str(tmp_path / "e.yaml"), f"data.cache.folder={out}"],
        "transcribe": [
            "transcribe",
            str(rows),
            "--model",
            str(tiny_whisper),
            "--language",
            "en",
            "--out",
            str(out),
        ],
        "import": ["import", "chats", "--annotations", str(tmp_path / "chats.json"), "--out", str(out)],
    }[verb]
    found = on_a_small_disk(out, size, ["data", *words])
    assert found.returncode == 2, found.stderr
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert ".part" not in found.stdout
