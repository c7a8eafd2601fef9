"""Load for the serving benchmark: requests with random arrivals, and statistics of their latencies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One request of a mixed load: arrival (s from the start) and length of its answer in tokens."""

    number: int
    arrival: float
    tokens: int


def poisson(rate: float, count: int, lengths: tuple[int, int], seed: int) -> list[Request]:
    """`count` requests arriving as a Poisson process of `rate` per second; lengths uniform in `lengths`."""
    dice = random.Random(seed)
    requests, now = [], 0.0
    for number in range(count):
        now += dice.expovariate(rate)
        requests.append(Request(number, now, dice.randint(*lengths)))
    return requests


def serve_fifo(
    requests: Sequence[Request], answer: Callable[[Sequence[Request]], None], most: int
) -> list[float]:
    """A plain server around `generate()`: repeatedly answers all waiting requests as one batch.

    Args:
        answer: answers one batch; returns when the longest answer is done.
        most: largest batch.

    Returns:
        The latency of each request in seconds, from its arrival.
    """
    waiting = list(requests)
    latencies = []
    began = time.perf_counter()
    while waiting:
        now = time.perf_counter() - began
        if waiting[0].arrival > now:
            time.sleep(waiting[0].arrival - now)
            continue
        batch = [request for request in waiting if request.arrival <= now][:most]
        answer(batch)
        done = time.perf_counter() - began
        latencies += [done - request.arrival for request in batch]
        waiting = waiting[len(batch) :]
    return latencies


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def goodput(p95_at: dict[float, float], limit: float) -> float:
    """The highest rate below the first one over the limit; 0 if even the lowest is over it.

    Args:
        p95_at: request rate (per second) -> 95th percentile of latency (s).
    """
    best = 0.0
    for rate in sorted(p95_at):
        if p95_at[rate] > limit:
            break
        best = rate
    return best
