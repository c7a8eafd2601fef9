"""What `mllm bench serve` asks for, how it counts, and that both engines are measured in turn."""

from __future__ import annotations

import itertools
import json
import os
import time

import pytest

from serve.bench import Part, bench_serve
from serve.bench_engines import HuggingFace, Vllm, cpu_seconds
from serve.bench_load import Request, goodput, percentile, poisson, serve_fifo
from serve.bench_report import notes_of, table_of
from serve.bench_rounds import Bench


def test_requests_arrive_by_chance_and_the_same_ones_for_both_engines():
    requests = poisson(rate=10, count=2000, lengths=(8, 256), seed=3)
    assert requests == poisson(rate=10, count=2000, lengths=(8, 256), seed=3)
    assert requests[-1].arrival == pytest.approx(200, rel=0.1)
    assert {8, 256} <= {request.tokens for request in requests} <= set(range(8, 257))
    gaps = [b.arrival - a.arrival for a, b in itertools.pairwise(requests)]
    assert min(gaps) >= 0
    assert percentile(gaps, 0.95) == pytest.approx(0.3, rel=0.2)  # of an exponential: three times the mean


def test_a_fifo_answers_all_that_wait_as_one_batch():
    batches = []

    def answer(batch):
        batches.append([request.number for request in batch])
        time.sleep(0.4)

    requests = [Request(0, 0.0, 8), Request(1, 0.1, 8), Request(2, 0.2, 8), Request(3, 1.2, 8)]
    latencies = serve_fifo(requests, answer, most=64)
    assert batches == [[0], [1, 2], [3]]
    assert latencies == pytest.approx([0.4, 0.7, 0.6, 0.4], abs=0.19)
    batches.clear()
    serve_fifo([Request(number, 0.0, 8) for number in range(5)], answer, most=2)
    assert batches == [[0, 1], [2, 3], [4]]


def test_percentile_and_goodput():
    assert percentile(range(1, 101), 0.95) == 95
    assert percentile([7.0], 0.95) == 7.0
    p95 = {1: 0.4, 2: 0.9, 4: 1.3, 8: 0.8}
    assert goodput(p95, limit=1.0) == 2  # a rate that is met by luck above one that is not does not count
    assert goodput(p95, limit=2.0) == 8
    assert goodput(p95, limit=0.1) == 0.0


def test_cpu_seconds_hold_what_children_used():
    before = sum(cpu_seconds_of_this_process().values())
    sum(range(3_000_000))
    assert sum(cpu_seconds_of_this_process().values()) > before


def cpu_seconds_of_this_process() -> dict[str, float]:
    return cpu_seconds(os.getpid())


class Fake:
    """An engine of a known speed."""

    def __init__(self, name: str, seconds: float, order: list[str]):
        self.name, self.seconds, self.order = name, seconds, order
        self.used = 0.0
        self.best: dict = {}

    def cpu(self):
        return {"server": self.used}

    def choose(self, level, tokens):
        return ("float32", 1)

    def together(self, level, tokens, times):
        self.order.append(self.name)
        time.sleep(self.seconds)
        self.used += self.seconds / 2
        return level * tokens * times

    def mixed(self, requests):
        # Twice the latency at twice the rate.
        rate = len(requests) / requests[-1].arrival
        return [self.seconds * rate] * len(requests)

    def first_token(self, clip):
        time.sleep(self.seconds)
        return self.seconds


@pytest.fixture
def bench():
    order: list[str] = []
    vllm, other = Fake("vLLM", 0.05, order), Fake("Hugging Face", 0.1, order)
    return Bench(vllm, other, rounds=5, say=lambda line: None), order  # type: ignore[arg-type]


def test_engines_take_turns_and_each_round_gives_a_ratio(bench):
    measured, order = bench
    figures = measured.fixed(level=4, tokens=8, times=2)
    first = [order[i] for i in range(2, 12, 2)]
    assert first == ["vLLM", "Hugging Face", "vLLM", "Hugging Face", "vLLM"]  # after one of each to warm up
    assert len(figures["rounds"]) == 5
    assert figures["ratio"]["min"] <= figures["ratio"]["median"] <= figures["ratio"]["max"]
    assert figures["ratio"]["median"] == pytest.approx(2, rel=0.5)
    assert figures["cpu_ratio"] == pytest.approx(2)
    assert figures["vllm"]["cpu_ms_per_token"] == pytest.approx(1000 * 0.025 / 64)


def test_an_engine_that_breaks_the_largest_limit_is_asked_no_more(bench):
    measured, _ = bench
    figures = measured.mixed([10, 40, 160], (8, 16), seconds=4, limits=(0.6, 2.5))
    assert set(figures["p95_seconds"]["vllm"]) == {10, 40, 160}
    assert set(figures["p95_seconds"]["hugging_face"]) == {10, 40}
    met = figures["requests_per_second_within"]
    assert met["0.6"] == {"vllm": 10, "hugging_face": 0}
    assert met["2.5"] == {"vllm": 40, "hugging_face": 10}


def test_the_report_marks_a_busy_machine(bench):
    measured, _ = bench
    numbers = {
        "checkpoint": "nano",
        "rounds": 5,
        "vllm": {"settings": "on the CPU: compiled"},
        "fixed": [measured.fixed(1, 8, 1)],
        "mixed": measured.mixed([10.0], (8, 16), 1, (0.01, 2.0)),
        "media": measured.media([b"one", b"two", b"three"]),
    }
    measured.others = [0.0, 0.01, 0.9]
    numbers["machine"] = measured.machine((0.2, 0, 0))
    assert "BUSY" not in notes_of(numbers)
    measured.others = [0.5, 0.6, 0.9]
    numbers["machine"] = measured.machine((0.2, 0, 0))
    assert "THE MACHINE WAS BUSY" in notes_of(numbers)
    assert "the very first question about a video was answered after" in notes_of(numbers)
    table = table_of(numbers)
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert rows[0][0] == "tokens/s, 1 at a time × 8 tokens"
    assert "float32, 1 thread" in rows[0][2]
    assert rows[1][1:3] == ("below 10", "below 10")
    assert rows[2][3] == "1.0×"
    assert rows[3][1].startswith("50 ms (")
    json.dumps(numbers)


@pytest.mark.slow
def test_hugging_face_answers_in_its_own_process(checkpoint):
    engine = HuggingFace(checkpoint)
    try:
        assert engine.choose(2, 4)[0] in ("float32", "bfloat16")
        assert engine.together(2, 4, 1) == 8
        assert len(engine.mixed(poisson(50, 4, (2, 4), seed=0))) == 4
        assert sum(engine.cpu().values()) > 0
    finally:
        engine.close()


@pytest.mark.slow
def test_bench(server, checkpoint, tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench_serve(
        checkpoint, url=server.url, part=list(Part), tokens=4, concurrency=[1, 2], rounds=1,
        rate=[4.0], seconds=0.5, json_file=out,
    )  # fmt: skip
    numbers = json.loads(out.read_text())
    assert [one["at_a_time"] for one in numbers["fixed"]] == [1, 2]
    assert all(one["ratio"]["median"] > 0 for one in numbers["fixed"])
    assert set(numbers["mixed"]["requests_per_second_within"]) == {"1", "2"}
    assert set(numbers["media"]) == {"very_first", "cold", "again"}
    assert "tokens/s" in capsys.readouterr().out


def test_no_server_at_the_address():
    from mllm.errors import MllmError

    with pytest.raises(MllmError, match="no OpenAI-compatible server at http://127.0.0.1:1"):
        Vllm("http://127.0.0.1:1", None)
