"""The two engines that `mllm bench serve` compares, running side by side with the same requests.

vLLM is called over HTTP, as in practice. Hugging Face `generate()` runs in a process of its own without HTTP,
its best case.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

from mllm.errors import MllmError
from mllm.records.answers import Generation
from mllm.records.openai_parts import media_url
from serve.bench_load import Request, serve_fifo

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from mllm.answerer import Answerer

PROMPT = "Tell me all that you know about the red star, the blue circle and the bell that rings."
QUESTION = "What is seen and heard?"
SETUPS = [
    ("float32", 1),
    ("bfloat16", 1),
    ("float32", 2),
    ("bfloat16", 2),
]  # (dtype, threads) to try
LARGEST_BATCH = 64  # of Hugging Face
KEEP_ALIVE = 2.0  # s; vLLM closes idle connections after five
ANSWER_TIMEOUT = 1800.0  # s, of the Hugging Face process


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU seconds so far of a process and its descendants, by name; ended ones count for their parent."""
    seconds: dict[str, float] = {}
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
            name = "server" if process.pid == pid else process.name()
            ended = times.children_user + times.children_system
            seconds[name] = seconds.get(name, 0.0) + times.user + times.system + ended
        except psutil.NoSuchProcess:
            continue
    return seconds


class Vllm:
    """A running server.

    Args:
        url: where it listens.
        pid: its process, to measure CPU time; None for a server that was not started here.
    """

    name = "vLLM"

    def __init__(self, url: str, pid: int | None):
        self.url, self.pid = url.rstrip("/"), pid
        self._loop = asyncio.new_event_loop()
        self._numbers = iter(range(10**9))

        async def open_session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
                timeout=aiohttp.ClientTimeout(900),
            )

        self._session = self._loop.run_until_complete(open_session())
        try:
            self._model = self._loop.run_until_complete(self._first_model())
        except MllmError:
            self.close()
            raise

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of each process; "client" is this process."""
        own = time.process_time()
        return {"client": own} | (cpu_seconds(self.pid) if self.pid else {})

    def together(self, level: int, tokens: int, times: int) -> int:
        """Sends `level` concurrent requests, `times` times; returns the number of generated tokens."""

        async def ask() -> int:
            return sum(await asyncio.gather(*(self._answer(tokens) for _ in range(level))))

        return sum(self._loop.run_until_complete(ask()) for _ in range(times))

    def mixed(self, requests: Sequence[Request]) -> list[float]:
        """Latencies (s) of requests sent at their arrival times."""

        async def ask(request: Request, began: float) -> float:
            await asyncio.sleep(max(0.0, began + request.arrival - time.perf_counter()))
            await self._answer(request.tokens)
            return time.perf_counter() - began - request.arrival

        async def ask_all() -> list[float]:
            began = time.perf_counter()
            return await asyncio.gather(*(ask(request, began) for request in requests))

        return self._loop.run_until_complete(ask_all())

    def first_token(self, clip: bytes) -> float:
        """Seconds to the first token of a question about a recording."""
        parts = [
            {"type": "video_url", "video_url": {"url": media_url(clip, "video")}},
            {"type": "text", "text": QUESTION},
        ]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        began = time.perf_counter()
        self._loop.run_until_complete(self._post(body))
        return time.perf_counter() - began

    async def _answer(self, tokens: int) -> int:
        # The number in front defeats the prefix cache, which would save later requests their prefill.
        message = {"role": "user", "content": f"{next(self._numbers)} {PROMPT}"}
        reply = await self._post({"messages": [message], "max_tokens": tokens, "ignore_eos": True})
        return reply["usage"]["completion_tokens"]

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, "temperature": 0} | body
        try:
            async with self._session.post(f"{self.url}/v1/chat/completions", json=body) as response:
                reply = await response.json()
                status = response.status
        except aiohttp.ClientError as error:
            raise MllmError(f"{self.url} did not answer: {error}") from None
        if status != 200:
            raise MllmError(f"{self.url} answered with status {status}: {str(reply)[:300]}")
        return reply

    async def _first_model(self) -> str:
        try:
            async with self._session.get(f"{self.url}/v1/models") as response:
                return (await response.json())["data"][0]["id"]
        except (aiohttp.ClientError, KeyError, ValueError) as error:
            raise MllmError(f"no OpenAI-compatible server at {self.url}: {error}") from None


class HuggingFace:
    """`generate()` in a process of its own, with the same methods as `Vllm`.

    `best` holds the fastest (dtype, threads) found by `choose`, by number of concurrent requests.
    """

    name = "Hugging Face"

    def __init__(self, checkpoint: str | Path):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        with _environment(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS=str(max(count for _, count in SETUPS))):
            self._process = context.Process(target=_work, args=(other, str(checkpoint)), daemon=True)
            self._process.start()
        other.close()
        self.best: dict[int, tuple[str, int]] = {}
        self._wait()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()

    def cpu(self) -> dict[str, float]:
        assert self._process.pid is not None
        return cpu_seconds(self._process.pid)

    def choose(self, level: int, tokens: int) -> tuple[str, int]:
        """Tries every set-up with `level` concurrent requests and keeps the fastest for them."""
        cores = os.cpu_count() or 1
        setups = [setup for setup in SETUPS if setup[1] <= cores]
        seconds = {}
        for setup in setups:
            self.best[level] = setup
            self.together(level, 4, 1)  # warm
            began = time.perf_counter()
            self.together(level, tokens, 1)
            seconds[setup] = time.perf_counter() - began
        self.best[level] = min(seconds, key=lambda setup: seconds[setup])
        return self.best[level]

    def together(self, level: int, tokens: int, times: int) -> int:
        return self._ask("together", self._setup(level), level, tokens, times)

    def mixed(self, requests: Sequence[Request]) -> list[float]:
        return self._ask("mixed", self._setup(16), list(requests))

    def first_token(self, clip: bytes) -> float:
        return self._ask("first_token", self._setup(1), clip)

    def _setup(self, level: int) -> tuple[str, int]:
        """The best set-up for the nearest number of requests tried."""
        if not self.best:
            return SETUPS[0]
        return self.best[min(self.best, key=lambda tried: (abs(tried - level), tried))]

    def _ask(self, *call: Any) -> Any:
        self._pipe.send(call)
        return self._wait()

    def _wait(self) -> Any:
        try:
            if not self._pipe.poll(ANSWER_TIMEOUT):
                raise MllmError(f"Hugging Face did not answer for {ANSWER_TIMEOUT:.0f} s")
            failed, value = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise MllmError(f"the process of Hugging Face ended, status {self._process.exitcode}") from None
        if failed:
            raise MllmError(f"Hugging Face generate: {value}")
        return value


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets variables for child processes started within; OpenMP reads them when torch is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the process of Hugging Face ---------------------------------------------------------------


def _work(pipe: Connection, checkpoint: str) -> None:
    """Serves calls (method, set-up, …) until the other end of the pipe is closed."""
    try:
        generator = Generator(checkpoint)
        pipe.send((False, None))
        while True:
            method, setup, *arguments = pipe.recv()
            generator.use(*setup)
            pipe.send((False, getattr(generator, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send((True, f"{type(error).__name__}: {error}"))


class Generator:
    """The checkpoint in transformers, loaded once for each dtype used."""

    def __init__(self, checkpoint: str):
        self.checkpoint = checkpoint
        self._answerers: dict[str, Answerer] = {}

    def use(self, dtype: str, threads: int) -> None:
        import torch

        from mllm.answerer import Answerer

        torch.set_num_threads(threads)
        if dtype not in self._answerers:
            self._answerers[dtype] = Answerer.from_pretrained(self.checkpoint, dtype, batch=LARGEST_BATCH)
        self.answerer = self._answerers[dtype]

    def together(self, level: int, tokens: int, times: int) -> int:
        for _ in range(times):
            self._generate(range(level), tokens)
        return level * tokens * times

    def mixed(self, requests: Sequence[Request]) -> list[float]:
        def answer(batch: Sequence[Request]) -> None:
            self._generate([one.number for one in batch], max(one.tokens for one in batch))

        return serve_fifo(requests, answer, most=LARGEST_BATCH)

    def first_token(self, clip: bytes) -> float:
        began = time.perf_counter()
        parts = [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]
        for _ in self.answerer.stream([{"role": "user", "content": parts}], Generation(max_tokens=1)):
            pass
        return time.perf_counter() - began

    def _generate(self, numbers: Sequence[int], tokens: int) -> None:
        conversations = [[{"role": "user", "content": f"{number} {PROMPT}"}] for number in numbers]
        self.answerer.answer(conversations, Generation(max_tokens=tokens, min_tokens=tokens))


Engine = Vllm | HuggingFace
