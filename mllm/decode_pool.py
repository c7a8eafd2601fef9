"""Recordings of strangers, decoded in processes that may be lost: `load_clip(source, isolated=True)`.

A crash, a hang or a bomb costs its own request a MediaError of one line; the next one finds another worker
warm. A worker (`decode_worker`) imports the decoders alone, takes a request as JSON over a socket, and gives
its arrays back in shared memory; nothing that it says is run or unpickled here.
"""

from __future__ import annotations

import atexit
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import numpy as np

from mllm.clip import Clip, MediaInfo
from mllm.errors import MediaError
from mllm.sources import MediaLimits, Source, memory_file

SLOW = 2.0  # s: a request that takes longer no longer counts among those that run side by side
MOST_WORKERS = 32  # at once, those with slow requests included
MOST_WARM = 8  # of them that are started before anybody asks
REQUESTS = 500  # after so many a worker is replaced: some decoders leak
MOST_BYTES = 1_000_000  # of a worker's message; its arrays come by shared memory
BUSY = "too many recordings are being decoded: try again later"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy would start some that nothing uses

Choose = Callable[[float], np.ndarray]


class WorkerLost(MediaError):
    """A recording that ended the process that decoded it, or held it for too long."""


class DecodersBusy(MediaError):
    """More recordings wait to be decoded than can be in the time that they may take."""


class DecodePool:
    """Warm worker processes; several threads may ask at once.

    Args:
        side_by_side: requests that are worked on at once, one for each core by default. One that takes longer
            than SLOW makes room for the next, so that a few that hang do not hold up the rest.
    """

    def __init__(self, side_by_side: int | None = None):
        self.side_by_side = side_by_side or os.cpu_count() or 1
        self._turns = threading.Semaphore(self.side_by_side)
        self._places = threading.Semaphore(MOST_WORKERS)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Starts workers without waiting for them, so that no request has to."""
        with self._lock:
            self._idle += [_Worker() for _ in range(min(self.side_by_side, MOST_WARM) - len(self._idle))]

    def probe(self, source: Source, limits: MediaLimits) -> MediaInfo:
        """`media.probe` in a worker."""
        reply, _ = self._ask({"call": "probe"}, source, None, limits, None)
        return MediaInfo(**reply["info"])

    def load_clip(
        self,
        source: Source,
        audio: Source | None,
        limits: MediaLimits,
        choose: Choose | None,
        options: dict[str, Any],
    ) -> Clip:
        """`media.load_clip` in a worker; `choose` is called here.

        Raises:
            MediaError: as there.
            WorkerLost: the worker crashed over it, or took too long.
        """
        request = {"call": "load_clip", "chooses": choose is not None, "options": options}
        reply, memory = self._ask(request, source, audio, limits, choose)
        return _clip(reply["clip"], memory)

    def close(self) -> None:
        """Ends the workers that wait; those at work end when they are done."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def _ask(
        self,
        request: dict[str, Any],
        source: Source,
        audio: Source | None,
        limits: MediaLimits,
        choose: Choose | None,
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        described = {side: _described(each) for side, each in (("source", source), ("audio", audio))}
        seconds = limits.max_decode_seconds
        with self._turn(source.name, seconds) as give_way:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or _Worker()
            try:
                message = request | described | {"limits": asdict(limits)}
                reply, memory = worker.ask(message, (source, audio), seconds, choose, give_way)
            except BaseException as error:
                worker.kill()
                with self._lock:  # so that the next request need not wait for it
                    self._idle.insert(0, _Worker())
                if isinstance(error, _Lost):
                    raise WorkerLost(f"{source.name}: {error}: convert it again, or leave it out") from None
                raise
            self._take_back(worker)
        if "error" in reply:
            raise MediaError(reply["error"])
        if "bug" in reply:
            raise RuntimeError(f"decoding {source.name} failed in its worker:\n{reply['bug']}")
        return reply, memory

    def _take_back(self, worker: _Worker) -> None:
        worn = worker.asked >= REQUESTS
        with self._lock:
            if worn:
                self._idle.insert(0, _Worker())
            elif kept := len(self._idle) < self.side_by_side:
                self._idle.append(worker)
        if worn or not kept:
            worker.end()

    @contextmanager
    def _turn(self, name: str, seconds: float | None) -> Iterator[Callable[[], None]]:
        """Waits for a place; gives what lets the next request in."""
        until = None if seconds is None else time.monotonic() + seconds
        if not self._places.acquire(timeout=_left(until)):
            raise DecodersBusy(f"{name}: {BUSY}")
        if not self._turns.acquire(timeout=_left(until)):
            self._places.release()
            raise DecodersBusy(f"{name}: {BUSY}")
        holds = [True]

        def give_way() -> None:
            if holds:
                holds.clear()
                self._turns.release()

        try:
            yield give_way
        finally:
            give_way()
            self._places.release()


class _Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        self.asked = 0
        self.errors = memory_file()  # what its libraries say when they give up
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # -P and the path: what stands in the user's folder must not be imported in place of ours.
            path = os.pathsep.join(
                [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "mllm.decode_worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=os.environ | THREADS | {"PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self.errors,
                )
            except OSError as error:
                raise MediaError(
                    f"no process to decode recordings can be started ({error.strerror})"
                ) from None
            self.connection = Connection(ours.detach())

    def ask(
        self,
        request: dict[str, Any],
        sources: tuple[Source, Source | None],
        seconds: float | None,
        choose: Choose | None,
        give_way: Callable[[], None],
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        """The reply, and the memory that a clip lies in.

        Raises:
            _Lost: the process ended, or took too long.
        """
        self.asked += 1
        until = None if seconds is None else time.monotonic() + seconds
        try:
            self.connection.send_bytes(json.dumps(request).encode())
            for source in sources:
                if source is not None and source.file is not None:
                    send_handle(self.connection, source.file.fileno(), None)
            reply = self._receive(until, give_way)
            while "choose" in reply:
                assert choose is not None
                times = np.asarray(choose(reply["choose"]), np.float64).ravel()
                self.connection.send_bytes(json.dumps(times.tolist()).encode())
                reply = self._receive(until, give_way)
            return reply, _mapped(recv_handle(self.connection)) if "clip" in reply else None
        except TimeoutError:
            raise _Lost(f"decoding it takes longer than {seconds:g} s") from None
        except (EOFError, ConnectionError):
            raise _Lost(self._last_words()) from None

    def _receive(self, until: float | None, give_way: Callable[[], None]) -> dict[str, Any]:
        if not self.connection.poll(SLOW):
            give_way()
            if not self.connection.poll(_left(until)):
                raise TimeoutError
        message: dict[str, Any] = json.loads(self.connection.recv_bytes(MOST_BYTES))
        return message

    def _last_words(self) -> str:
        """How the process ended."""
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its decoder hung up"
        if status == -signal.SIGKILL:
            return "decoding it was killed, probably for want of memory"
        self.errors.seek(0)
        if b"bad_alloc" in self.errors.read():
            return "decoding it takes too much memory"
        if status < 0:
            return f"it crashed its decoder (signal {-status}, {signal.Signals(-status).name})"
        return f"its decoder ended with status {status}"

    def end(self) -> None:
        """Lets the process end by itself."""
        self.connection.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Lost(Exception):
    """A worker that ended, or does not come back."""


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())


def _described(source: Source | None) -> dict[str, Any] | None:
    """A source as JSON; a file in memory follows as a descriptor."""
    if source is None:
        return None
    in_memory = source.file is not None
    return {"name": source.name, "in_memory": in_memory, "path": None if in_memory else source.handle()}


def _mapped(descriptor: int) -> mmap.mmap | None:
    """A worker's memory: ours to write, and the worker's writing no longer seen."""
    try:
        size = os.fstat(descriptor).st_size
        access = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=access) if size else None
    finally:
        os.close(descriptor)


def _clip(reply: dict[str, Any], memory: mmap.mmap | None) -> Clip:
    arrays: dict[str, Any] = {"frames": None, "waveform": None}
    offset = 0
    for name, (shape, kind) in reply["arrays"].items():
        count = math.prod(shape)
        arrays[name] = np.zeros(shape, kind)
        if count:
            assert memory is not None
            arrays[name] = np.frombuffer(memory, kind, count, offset).reshape(shape)
            offset += arrays[name].nbytes
    return Clip(**arrays, **reply["fields"])


_pool: DecodePool | None = None
_lock = threading.Lock()


def shared_pool() -> DecodePool:
    """The pool of this process, begun at the first call."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = DecodePool()
            atexit.register(_pool.close)
        return _pool


def _after_fork() -> None:
    """A forked process leaves its parent's workers alone and begins its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
