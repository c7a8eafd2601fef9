"""Measures OpenMP's wait policy: training, evaluation and indexing, passive and active, one thread and two.

    python scripts/wait_policy.py                     # on a quiet machine: nothing else running
    python scripts/wait_policy.py --rounds 5 --busy   # beside a process that keeps one core busy

All variants alternate within a round, so that changes of the machine affect them equally. Prints the median
of wall and CPU seconds, and the load before each round; put the table into docs/log.md with the machine's
name. `mllm.command.cli.before_torch` sets the default derived from it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from mllm.command.cli import COMMAND

ROOT = Path(__file__).resolve().parent.parent


def works(folder: Path) -> dict[str, list[str]]:
    """The commands to measure, by name."""
    stage: dict[str, object] = {"steps": 20, "warmup": 1, "batch": 32, "text_batch": 0}
    stage |= {"compile": "false", "num_threads": "null"}
    settings = [f"contrastive.{name}={value}" for name, value in stage.items()]
    train = ["train", "contrastive", str(ROOT / "configs/nano.yaml"), "start=nano", "text.steps=0", *settings]
    world = ["eval", "world", "--model", "nano", "--media", "arrays", "--split", "val", "--clips", "16"]
    index = ["--index", str(folder / "index")]
    return {
        "train": [*train, "data.workers=0", f"output={folder / 'runs'}", "--restart"],
        "eval": [*world, "--no-blind", "--search-clips", "0", "--out", str(folder / "eval")],
        "index": ["index", "add", str(folder / "world"), "--model", "nano", *index, "--rebuild"],
    }


def measure(words: list[str], policy: str, threads: int) -> tuple[float, float]:
    """(wall, CPU) seconds of a command and all its children."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, *words], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed:\n{output.decode(errors='replace')[-2000:]}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["train", "eval", "index"], action="append")
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps one core busy")
    options = parser.parse_args()
    times: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
    try:
        with tempfile.TemporaryDirectory(prefix="wait-policy-") as name:
            folder = Path(name)
            world = [*COMMAND, "data", "world", "--clips", "24", "--split", "val"]
            world += ["--out", str(folder / "world")]
            subprocess.run(world, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            for number in range(options.rounds):
                print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
                for work, words in works(folder).items():
                    if work not in (options.only or [work]):
                        continue
                    for threads in (1, 2):
                        for policy in ("passive", "active"):
                            times[work, policy, threads].append(measure(words, policy, threads))
    finally:
        if other is not None:
            other.kill()
            other.wait()
    print("| work | threads | policy | wall, s | CPU, s |\n| --- | ---: | --- | ---: | ---: |")
    for (work, policy, threads), runs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {work} | {threads} | {policy} | {wall:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
