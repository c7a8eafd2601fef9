"""`mllm bench serve`: vLLM against Hugging Face generate, with the same weights, measured in alternation.

Alternating exposes both to the same load on a shared machine. CPU time is reported beside wall time. Hugging
Face runs with the dtype and number of threads that are fastest here. Three parts:

    fixed    simultaneous requests for the same number of tokens: the best case for Hugging Face
    mixed    random lengths and arrivals: the request rate at which 95 % are answered in time
    media    a question about a new video, and the same question again
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serve.bench_rounds import Bench


class Size(StrEnum):
    nano = "nano"
    smollm = "135m"


class Part(StrEnum):
    fixed = "fixed"
    mixed = "mixed"
    media = "media"


@dataclass(frozen=True)
class Plan:
    """The load for a model of one size, scaled to a run of a few minutes."""

    levels: tuple[int, ...]  # concurrent requests
    tokens: int
    lengths: tuple[int, int]  # of mixed answers, tokens
    rates: tuple[float, ...]  # of arrival, requests/s
    work: int  # minimum tokens of a measurement, so that it lasts long enough


PLANS = {
    Size.nano: Plan((1, 16, 64), 128, (8, 256), (1, 2, 4, 8, 12, 16, 24, 32, 48, 64), 2048),
    Size.smollm: Plan((1, 4, 16), 32, (8, 32), (0.5, 1, 2, 3, 4, 6, 8, 12, 16), 32),
}
LIMITS = (1.0, 2.0)  # s, of the 95th percentile of the latency of mixed requests


Checkpoint = Annotated[Path | None, typer.Argument(help="Checkpoint; by default nano, or what --size says.")]
SizeOption = Annotated[
    Size, typer.Option(help="135m: a random decoder of SmolLM2-135M's dimensions, made on the fly.")
]
Parts = Annotated[list[Part] | None, typer.Option(help="Measure only this; repeatable.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each engine, in turn.")]
Tokens = Annotated[int | None, typer.Option(min=2, help="Tokens of each answer that is fixed.")]
Concurrency = Annotated[list[int] | None, typer.Option(help="Requests at a time; repeatable.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Length of each mixed load.")]
Rate = Annotated[list[float] | None, typer.Option(help="Mixed requests a second; repeatable.")]
Url = Annotated[
    str | None, typer.Option(help="Measure this server instead of starting one (its CPU stays unknown).")
]
Flags = Annotated[str, typer.Option(help="Further flags for vLLM, in one word: '--dtype float32'.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")]


def bench_serve(
    checkpoint: Checkpoint = None,
    size: SizeOption = Size.nano,
    part: Parts = None,
    rounds: Rounds = 5,
    tokens: Tokens = None,
    concurrency: Concurrency = None,
    seconds: Seconds = 8.0,
    rate: Rate = None,
    url: Url = None,
    flags: Flags = "",
    json_file: JsonFile = None,
) -> dict[str, Any]:
    """vLLM beside Hugging Face generate, in turn: tokens a second, requests in time, first tokens, CPU."""
    from mllm.command.bench import report
    from serve.bench_report import notes_of, table_of
    from serve.supervise import stop_signals

    plan, parts = PLANS[size], part or list(Part)
    load = os.getloadavg()
    with stop_signals(), contextlib.ExitStack() as stack:
        bench, numbers = _both_engines(stack, checkpoint, size, rounds, url, flags)
        numbers |= _measure(bench, plan, parts, tokens or plan.tokens, concurrency, rate, seconds)
        numbers["machine"] = bench.machine(load)
    report(table_of(numbers), numbers, json_file, notes_of(numbers))
    return numbers


def _both_engines(
    stack: contextlib.ExitStack,
    checkpoint: Path | None,
    size: Size,
    rounds: int,
    url: str | None,
    flags: str,
) -> tuple[Bench, dict[str, Any]]:
    """Starts both engines with the same weights, until the stack is closed; also returns their settings."""
    from rich.console import Console

    from mllm.models.checkpoint import find_shipped
    from serve.bench_engines import HuggingFace, Vllm
    from serve.bench_models import random_checkpoint
    from serve.bench_rounds import Bench
    from serve.launcher import Server

    status = stack.enter_context(Console(stderr=True, highlight=False).status("…"))
    if checkpoint is None and size is Size.smollm:
        status.update("making a random decoder …")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mllm-bench-"))
        checkpoint = random_checkpoint(Path(folder) / "random-135m")
    checkpoint = find_shipped("nano") if checkpoint is None else checkpoint
    server = None
    if url is None:
        status.update("starting vLLM …")
        server = Server(checkpoint, port=0, flags=shlex.split(flags))
        stack.callback(server.stop)
        server.start(lambda seconds, line: status.update(f"starting vLLM, {seconds:.0f} s"))
    process = server.process if server else None
    vllm = Vllm(server.url if server else str(url), process.pid if process else None)
    stack.enter_context(contextlib.closing(vllm))
    status.update("loading the model into Hugging Face …")
    hugging_face = stack.enter_context(contextlib.closing(HuggingFace(checkpoint)))
    settings = {
        "settings": server.choices() if server else None,
        "seconds_to_start": server.seconds_to_start if server else None,
    }
    numbers = {"checkpoint": checkpoint.name, "rounds": rounds, "vllm": settings}
    return Bench(vllm, hugging_face, rounds, status.update), numbers


def _measure(
    bench: Bench,
    plan: Plan,
    parts: list[Part],
    tokens: int,
    levels: list[int] | None,
    rates: list[float] | None,
    seconds: float,
) -> dict[str, Any]:
    from serve.warm_up import synthetic_clip

    numbers: dict[str, Any] = {}
    if Part.fixed in parts:
        numbers["fixed"] = [
            bench.fixed(level, tokens, max(1, plan.work // (level * tokens)))
            for level in levels or plan.levels
        ]
    if Part.mixed in parts:
        if not bench.hugging_face.best:
            bench.hugging_face.choose(16, max(8, plan.tokens // 4))
        numbers["mixed"] = bench.mixed(sorted(rates or plan.rates), plan.lengths, seconds, LIMITS)
    if Part.media in parts:
        numbers["media"] = bench.media([synthetic_clip(seed) for seed in range(bench.rounds + 1)])
    return numbers
