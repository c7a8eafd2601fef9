"""A process of vLLM's engine ends when the one that started it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, sys, time

def engine():
    from mllm.vllm.plugin import end_with_parent
    end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=engine, name=sys.argv[1])
    process.start()
    process.join()
"""


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("name", "stays"), [("EngineCore", False), ("VllmWorker-0", False), ("Mine", True)])
def test_an_engine_ends_with_its_parent_and_nothing_else_does(tmp_path, name, stays):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(program), name], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    engine = int(parent.stdout.readline())
    assert is_alive(engine)
    parent.kill()
    parent.wait()
    for _ in range(20 if stays else 100):
        if not is_alive(engine):
            break
        time.sleep(0.1)
    assert is_alive(engine) == stays
    if stays:
        os.kill(engine, 9)
