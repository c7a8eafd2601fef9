"""Recordings of strangers, decoded in processes that may be lost: `open_recording(source, isolated=True)`.

A crash, a hang or a bomb costs its own recording a MediaError of one line; the next one finds another worker
warm. A worker (`decode_worker`) imports the decoders alone, keeps one recording open, takes requests as JSON
over a socket, and gives its arrays back in shared memory; nothing that it says is run or unpickled here.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO, Any

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Clip, MediaInfo
from mllm.media.recording import Choose, Recording, warn_of_jumps
from mllm.media.sources import MediaLimits, Source, memory_file

_log = logging.getLogger(__name__)

SLOW = 2.0  # s: a request that takes longer no longer counts among those that run side by side
LONGEST_WAIT = 1e6  # s
STARTING = 60.0  # s that a worker may take to start; only then its time for a request begins
MOST_WORKERS = 32  # at once, those with slow requests and with recordings that stay open included
MOST_WARM = 8  # of them that are started before anybody asks
REQUESTS = 500  # after so many a worker is replaced: some decoders leak
MOST_BYTES = 1_000_000  # of a worker's message; its arrays come by shared memory
NOT_STARTED = "no process to decode recordings can be started ({})"
BUSY = "too many recordings are being decoded: try again later"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy would start some that nothing uses


class WorkerLost(MediaError):
    """A recording that ended the process that decoded it, or held it for too long."""

    code = "decoder_lost"


class DecodersBusy(MediaError):
    """More recordings wait to be decoded than can be in the time that they may take."""

    code, status = "busy", 429


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

    def open(self, source: Source, audio: Source | None, limits: MediaLimits) -> IsolatedRecording:
        """A recording for a worker to open as soon as something is asked of it."""
        return IsolatedRecording(self, source, audio, limits)

    def close(self) -> None:
        """Ends the workers that wait; those at work end when they are done."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    @contextmanager
    def turn(self, name: str, until: float | None) -> Iterator[Callable[[], None]]:
        """Waits until a request may be worked on; gives what lets the next one begin beside it.

        Raises:
            DecodersBusy: that takes too long.
        """
        if not self._turns.acquire(timeout=_left(until)):
            raise DecodersBusy(f"{name}: {BUSY}")
        given = False

        def give_way() -> None:
            nonlocal given
            if not given:
                given = True
                self._turns.release()

        try:
            yield give_way
        finally:  # also if Ctrl-C ends the waiting
            give_way()

    def take_place(self, name: str, until: float | None) -> None:
        """Waits until there may be another worker.

        Raises:
            DecodersBusy: that takes too long.
        """
        if not self._places.acquire(timeout=_left(until)):
            raise DecodersBusy(f"{name}: {BUSY}")

    def leave_place(self) -> None:
        self._places.release()

    def worker(self) -> _Worker:
        """One that waits, or a new one; one that was killed meanwhile, for want of memory, is passed over."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _Worker()
            if worker.process.poll() is None:
                return worker
            worker.kill()

    def replace(self) -> None:
        """Starts another worker, so that the next request need not wait for it."""
        with self._lock:
            if len(self._idle) < self.side_by_side:
                self._idle.insert(0, _Worker())

    def take_back(self, worker: _Worker) -> None:
        """Lets a worker wait for the next recording."""
        worn = worker.asked >= REQUESTS
        if worn:
            self.replace()
        with self._lock:
            kept = not worn and len(self._idle) < self.side_by_side
            if kept:
                self._idle.append(worker)
        if not kept:
            worker.end()


class IsolatedRecording(Recording):
    """A recording that a worker opens when something is first asked of it, and keeps open until `close`.

    Raises:
        MediaError: as for other recordings.
        WorkerLost: the worker crashed over it, or took too long.
        DecodersBusy: too many wait.
    """

    def __init__(self, pool: DecodePool, source: Source, audio: Source | None, limits: MediaLimits):
        self.name = source.name
        self._pool, self._source, self._audio, self._limits = pool, source, audio, limits
        self._worker: _Worker | None = None
        self._is_open = False

    @cached_property
    def info(self) -> MediaInfo:
        return MediaInfo(**self._ask({"call": "info"})[0]["info"])

    @cached_property
    def digest(self) -> str:
        found: str = self._ask({"call": "digest"})[0]["digest"]
        return found

    def clip(
        self,
        start: float | None = None,
        end: float | None = None,
        size: int | None = None,
        choose: Choose | None = None,
        want_video: bool = True,
        want_audio: bool = True,
    ) -> Clip:
        options = {
            "start": start,
            "end": end,
            "size": size,
            "want_video": want_video,
            "want_audio": want_audio,
        }
        request = {"call": "clip", "chooses": choose is not None, "options": options}
        reply, memory = self._ask(request, choose)
        clip = _clip(reply["clip"], memory)
        warn_of_jumps(clip.source, clip.clock_jumps)
        return clip

    def begin(self) -> None:
        self._ask({"call": "open"})

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            worker.connection.send_bytes(b'{"call": "close"}')
            self._pool.take_back(worker)
        except OSError:  # it ended while nobody asked
            worker.kill()
        finally:
            self._pool.leave_place()

    def _ask(
        self, request: dict[str, Any], choose: Choose | None = None
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        seconds, pool = self._limits.max_decode_seconds, self._pool
        until = None if seconds is None else time.monotonic() + seconds
        if self._worker is None:
            pool.take_place(self.name, until)
        try:
            with pool.turn(self.name, until) as give_way:
                reply, memory = self._answer(request, choose, give_way)
        finally:
            if self._worker is None:
                pool.leave_place()
        if "error" in reply:
            raise MediaError(reply["error"])
        return reply, memory

    def _answer(
        self, request: dict[str, Any], choose: Choose | None, give_way: Callable[[], None]
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        sources = [] if self._is_open else [self._source, *filter(None, [self._audio])]
        if sources:
            described = [_described(source) for source in sources]
            request = request | {"open": {"sources": described, "limits": asdict(self._limits)}}
        try:
            self._worker = self._worker or self._pool.worker()
            reply, memory = self._worker.ask(
                request, sources, self._limits.max_decode_seconds, choose, give_way
            )
            if "bug" in reply:
                raise RuntimeError(f"decoding {self.name} failed in its worker:\n{reply['bug']}")
            self._is_open = reply["open"]
        except BaseException as error:
            self._lose()
            if isinstance(error, _Lost):
                _log.warning("%s took its decoder with it: %s", self.name, error)
                raise WorkerLost(f"{self.name}: {error}: convert it again, or leave it out") from None
            raise
        return reply, memory

    def _lose(self) -> None:
        worker, self._worker, self._is_open = self._worker, None, False
        if worker is not None:
            worker.kill()
            if worker.ready:
                self._pool.replace()


class _Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        self.asked = 0
        self.ready = False  # it has said that it has started
        try:
            self.errors = memory_file()  # what its libraries say when they give up
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self.process = _started(theirs.fileno(), self.errors)
                self.connection = Connection(ours.detach())
        except OSError as error:
            raise MediaError(NOT_STARTED.format(error.strerror)) from None

    def ask(
        self,
        request: dict[str, Any],
        sources: Sequence[Source],
        seconds: float | None,
        choose: Choose | None,
        give_way: Callable[[], None],
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        """The reply, and the memory that a clip lies in.

        Raises:
            _Lost: the process ended, or took too long.
            MediaError: it never started, or files cannot be passed to it or from it.
        """
        self.asked += 1
        self.errors.seek(0)  # the process writes where we stand
        self.errors.truncate()
        try:
            self.connection.send_bytes(json.dumps(request).encode())
            for source in sources:
                if source.file is not None:
                    with _passing():
                        send_handle(self.connection, source.file.fileno(), None)
            if not self.ready:
                self._receive(time.monotonic() + STARTING, give_way)
                self.ready = True
            until = None if seconds is None else time.monotonic() + seconds
            reply = self._receive(until, give_way)
            while "choose" in reply:
                assert choose is not None
                times = np.asarray(choose(reply["choose"]), np.float64).ravel()
                self.connection.send_bytes(times.tobytes())
                reply = self._receive(until, give_way)
            if "clip" not in reply:
                return reply, None
            with _passing():
                return reply, _mapped(recv_handle(self.connection))
        except TimeoutError:
            if not self.ready:
                raise MediaError(NOT_STARTED.format(f"it takes longer than {STARTING:g} s")) from None
            raise _Lost(f"decoding it takes longer than {seconds:g} s") from None
        except (EOFError, ConnectionError):
            last_words = self._last_words()
            if not self.ready:
                raise MediaError(NOT_STARTED.format(last_words)) from None
            raise _Lost(last_words) from None

    def _receive(self, until: float | None, give_way: Callable[[], None]) -> dict[str, Any]:
        left = _left(until)
        if not self.connection.poll(SLOW if left is None else min(SLOW, left)):
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
        if status == -signal.SIGALRM:  # its owner was held up, and did not watch
            return "decoding it takes too long"
        self.errors.seek(0)
        said = self.errors.read(MOST_BYTES).decode(errors="replace").strip()
        if "bad_alloc" in said:
            return "decoding it takes too much memory"
        if status < 0:
            return f"it crashed its decoder (signal {-status}, {signal.Signals(-status).name})"
        last = "".join(c for c in said.rpartition("\n")[2][:200] if c.isprintable())
        return f"its decoder ended with status {status}" + (f": {last}" if last else "")

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


def _started(socket: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process, at the other end of whose socket we are."""
    if not sys.executable:
        raise MediaError(NOT_STARTED.format("it is not known where Python lies: set sys.executable"))
    # -P and the path: what stands in the user's folder must not be imported in place of ours.
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mllm.media.decode_worker", str(socket)],
        pass_fds=[socket],
        env=os.environ | THREADS | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )


@contextmanager
def _passing() -> Iterator[None]:
    """Files on their way from one process to the other: both need a free descriptor."""
    try:
        yield
    except (ConnectionError, EOFError):
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: it was sent, and none was free here
        cause = getattr(error, "strerror", None) or os.strerror(errno.EMFILE)
        raise MediaError(f"files cannot be passed between processes ({cause}): raise `ulimit -n`") from None


def _left(until: float | None) -> float | None:
    """Seconds; no more than the system can wait."""
    return None if until is None else min(max(0.0, until - time.monotonic()), LONGEST_WAIT)


def _described(source: Source) -> dict[str, Any]:
    """A source as JSON; a file in memory follows as a descriptor."""
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
        held = memory if memory is not None and count else b""
        arrays[name] = np.frombuffer(held, kind, count, offset if count else 0).reshape(shape)
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
        return _pool


@atexit.register
def _close() -> None:
    if _pool is not None:
        _pool.close()


def _after_fork() -> None:
    """A forked process lets go of its parent's workers, which end with the parent, and begins its own."""
    global _pool, _lock
    for worker in _pool._idle if _pool is not None else []:
        worker.connection.close()
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
