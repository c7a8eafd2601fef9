"""Measures two engines in alternation on one machine: wall and CPU time, and the load of other programs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import psutil

from serve.bench_engines import Engine, HuggingFace, Vllm
from serve.bench_load import goodput, percentile, poisson

BUSY = 0.15  # cores used by other programs (median) above which the machine counts as busy


@dataclass
class Sample:
    """One measurement of one engine: wall time (s), CPU time by process (s), cores used by other programs."""

    value: Any
    wall: float
    cpu: dict[str, float]
    others: float

    @property
    def cpu_total(self) -> float:
        return sum(seconds for name, seconds in self.cpu.items() if name != "client")


class Bench:
    """Runs measurements on both engines."""

    def __init__(self, vllm: Vllm, hugging_face: HuggingFace, rounds: int, say: Callable[[str], None]):
        self.engines: dict[str, Engine] = {"vllm": vllm, "hugging_face": hugging_face}
        self.hugging_face = hugging_face
        self.rounds = rounds
        self.say = say
        self.others: list[float] = []

    def sample(self, name: str, run: Callable[[Engine], Any]) -> Sample:
        """Measures a call on one engine while the other one is idle."""
        before, busy, began = self._cpu(), _busy_seconds(), time.perf_counter()
        value = run(self.engines[name])
        wall = time.perf_counter() - began
        after, busy = self._cpu(), _busy_seconds() - busy
        used = {
            engine: {
                process: after[engine][process] - before[engine].get(process, 0.0)
                for process in after[engine]
            }
            for engine in after
        }
        ours = sum(sum(seconds.values()) for seconds in used.values())
        self.others.append(max(0.0, busy - ours) / wall)
        return Sample(value, wall, used[name], self.others[-1])

    def in_turn(self, run: Callable[[Engine], Any], rounds: int | None = None) -> list[dict[str, Sample]]:
        """Takes a sample of each engine in every round, alternating which goes first."""
        samples = []
        for number in range(rounds or self.rounds):
            names = list(self.engines)[:: 1 if number % 2 == 0 else -1]
            taken = {name: self.sample(name, run) for name in names}
            samples.append({name: taken[name] for name in self.engines})
        return samples

    def fixed(self, level: int, tokens: int, times: int) -> dict[str, Any]:
        """Tokens per second of `level` simultaneous requests for the same number of tokens."""
        self.say(f"{level} at a time: which dtype and threads are Hugging Face's best …")
        best = self.hugging_face.choose(level, max(8, tokens // 4))
        self.say(f"{level} at a time, {tokens} tokens each …")
        for engine in self.engines.values():
            engine.together(level, tokens, 1)  # warm
        rounds = self.in_turn(lambda engine: engine.together(level, tokens, times))
        figures = {
            name: {
                "tokens_per_second": statistics.median(r[name].value / r[name].wall for r in rounds),
                "cpu_ms_per_token": statistics.median(
                    1000 * r[name].cpu_total / r[name].value for r in rounds
                ),
                "cpu_seconds": {
                    process: sum(r[name].cpu[process] for r in rounds) for process in rounds[0][name].cpu
                },
            }
            for name in self.engines
        }
        rates = [{name: r[name].value / r[name].wall for name in r} for r in rounds]
        return {
            "at_a_time": level,
            "tokens": tokens,
            "hugging_face_best": {"dtype": best[0], "threads": best[1]},
            **figures,
            "ratio": _spread([rate["vllm"] / rate["hugging_face"] for rate in rates]),
            "cpu_ratio": _ratio(
                figures["hugging_face"]["cpu_ms_per_token"], figures["vllm"]["cpu_ms_per_token"]
            ),
            "rounds": rates,
        }

    def mixed(
        self, rates: Sequence[float], lengths: tuple[int, int], seconds: float, limits: Sequence[float]
    ) -> dict[str, Any]:
        """Requests of random lengths and arrivals: the rate up to which 95 % are answered in time.

        Rates are tried on both engines in ascending order, until an engine exceeds the largest limit.
        """
        p95: dict[str, dict[float, float]] = {name: {} for name in self.engines}
        cpu: dict[str, dict[float, float]] = {name: {} for name in self.engines}
        going = list(self.engines)
        for seed, rate in enumerate(rates):
            for name in list(going):
                self.say(
                    f"{rate:g} requests/s of {lengths[0]}–{lengths[1]} tokens: {self.engines[name].name} …"
                )
                requests = poisson(rate, max(16, round(rate * seconds)), lengths, seed)
                sample = self.sample(name, methodcaller("mixed", requests))
                p95[name][rate] = percentile(sample.value, 0.95)
                cpu[name][rate] = 1000 * sample.cpu_total / sum(request.tokens for request in requests)
                if p95[name][rate] > max(limits):
                    going.remove(name)
        met = {f"{limit:g}": {name: goodput(p95[name], limit) for name in self.engines} for limit in limits}
        return {
            "lengths": list(lengths),
            "rates": list(rates),
            "p95_seconds": p95,
            "cpu_ms_per_token": cpu,
            "requests_per_second_within": met,
        }

    def media(self, clips: Sequence[bytes]) -> dict[str, Any]:
        """Seconds to the first token of a question about a new recording, and of the same question again."""
        self.say("questions about recordings …")
        cold: list[dict[str, Sample]] = []
        again: list[dict[str, Sample]] = []
        for number, clip in enumerate(clips):
            names = list(self.engines)[:: 1 if number % 2 == 0 else -1]
            for samples in (cold, again):
                samples.append({name: self.sample(name, methodcaller("first_token", clip)) for name in names})
        # The very first of this server, unless it was in use before.
        figures: dict[str, Any] = {"very_first": cold[0]["vllm"].value}
        for kind, samples in (("cold", cold[1:]), ("again", again[1:])):  # the first clip warms up
            figures[kind] = {
                name: {
                    "seconds": statistics.median(sample[name].value for sample in samples),
                    "cpu_ms": statistics.median(1000 * sample[name].cpu_total for sample in samples),
                }
                for name in self.engines
            }
            ratios = [sample["hugging_face"].value / sample["vllm"].value for sample in samples]
            figures[kind]["ratio"] = _spread(ratios)
        return figures

    def machine(self, load_before: tuple[float, float, float]) -> dict[str, Any]:
        """Load of the machine; `busy` means that wall times are unreliable."""
        others = statistics.median(self.others) if self.others else 0.0
        return {
            "cpus": len(psutil.Process().cpu_affinity())
            if hasattr(psutil.Process, "cpu_affinity")
            else os.cpu_count(),
            "load_before": load_before[0],
            "load_after": os.getloadavg()[0],
            "others_cores": {"median": others, "max": max(self.others, default=0.0)},
            "busy": others > BUSY,
        }

    def _cpu(self) -> dict[str, dict[str, float]]:
        return {name: engine.cpu() for name, engine in self.engines.items()}


def _busy_seconds() -> float:
    """CPU seconds used so far by all processes of this machine."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratio(theirs: float, ours: float) -> float | None:
    return theirs / ours if ours else None
