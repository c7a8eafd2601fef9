"""Decodes untrusted recordings in expendable processes: `open_recording(source, isolated=True)`.

A crash, a hang or a decompression bomb costs only its own recording, with a MediaError of one line; the next
one finds another warm worker. A worker (`decode_worker`) imports only the decoders, keeps one recording open,
takes requests as JSON over a socket, and returns arrays in shared memory; its output is never executed or
unpickled here.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

from mllm.errors import MediaError
from mllm.media.clip import Choose, Clip, MediaInfo, Recording, warn_of_jumps
from mllm.media.decode_process import Lost, Worker, described, left, unpacked
from mllm.media.sources import MediaLimits, Source

_log = logging.getLogger(__name__)

MOST_WORKERS = 32  # at once, including those with slow requests or open recordings
MOST_WARM = 8  # workers started in advance
REQUESTS = 500  # after which a worker is replaced, since some decoders leak
BUSY = "too many recordings are being decoded: try again later"


class WorkerLost(MediaError):
    """A recording crashed the process that decoded it, or occupied it for too long."""

    code = "decoder_lost"


class DecodersBusy(MediaError):
    """A recording waited too long for a worker."""

    code, status = "busy", 429


class DecodePool:
    """A pool of warm worker processes; thread-safe.

    Args:
        side_by_side: concurrent requests, by default one per core. A request that takes longer than SLOW no
            longer counts, so that a few that hang do not block the rest.
    """

    def __init__(self, side_by_side: int | None = None):
        self.side_by_side = side_by_side or os.cpu_count() or 1
        self._turns = threading.Semaphore(self.side_by_side)
        self._places = threading.Semaphore(MOST_WORKERS)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Starts workers in advance, without waiting for them."""
        with self._lock:
            self._idle += [Worker() for _ in range(min(self.side_by_side, MOST_WARM) - len(self._idle))]

    def open(self, source: Source, audio: Source | None, limits: MediaLimits) -> IsolatedRecording:
        """A recording that a worker opens on the first request."""
        return IsolatedRecording(self, source, audio, limits)

    def close(self) -> None:
        """Ends idle workers; busy ones end when they are done."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    @contextmanager
    def turn(self, name: str, until: float | None) -> Iterator[Callable[[], None]]:
        """Waits for a turn; yields a function that gives the turn up early, for slow requests.

        Raises:
            DecodersBusy: if the wait takes too long.
        """
        if not self._turns.acquire(timeout=left(until)):
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
        """Waits until another worker may be used.

        Raises:
            DecodersBusy: if the wait takes too long.
        """
        if not self._places.acquire(timeout=left(until)):
            raise DecodersBusy(f"{name}: {BUSY}")

    def leave_place(self) -> None:
        self._places.release()

    def worker(self) -> Worker:
        """An idle worker or a new one; skips workers that were killed meanwhile for lack of memory."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return Worker()
            if worker.process.poll() is None:
                return worker
            worker.kill()

    def replace(self) -> None:
        """Starts another worker, so that the next request does not have to wait for it."""
        with self._lock:
            if len(self._idle) < self.side_by_side:
                self._idle.insert(0, Worker())

    def take_back(self, worker: Worker) -> None:
        """Returns a worker to the pool."""
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
    """A recording that a worker opens on the first request, and keeps open until `close`.

    Raises:
        MediaError: as for other recordings.
        WorkerLost: if the worker crashed, or took too long.
        DecodersBusy: if too many recordings wait.
    """

    def __init__(self, pool: DecodePool, source: Source, audio: Source | None, limits: MediaLimits):
        self.name = source.name
        self._pool, self._source, self._audio, self._limits = pool, source, audio, limits
        self._worker: Worker | None = None
        self._is_open = self._is_closed = False

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
        clip = unpacked(reply["clip"], memory)
        warn_of_jumps(clip.source, clip.clock_jumps)
        return clip

    def begin(self) -> None:
        self._ask({"call": "open"})

    def close(self) -> None:
        worker, self._worker, self._is_closed = self._worker, None, True
        if worker is None:
            return
        try:
            worker.connection.send_bytes(b'{"call": "close"}')
            self._pool.take_back(worker)
        except OSError:  # it ended between requests
            worker.kill()
        finally:
            self._pool.leave_place()

    def _ask(
        self, request: dict[str, Any], choose: Choose | None = None
    ) -> tuple[dict[str, Any], mmap.mmap | None]:
        if self._is_closed:
            raise MediaError(f"{self.name}: it is closed: read it inside the `with` that opened it")
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
            listed = [described(source) for source in sources]
            request = request | {"open": {"sources": listed, "limits": asdict(self._limits)}}
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
            if isinstance(error, Lost):
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


_pool: DecodePool | None = None
_lock = threading.Lock()


def shared_pool() -> DecodePool:
    """The pool of this process, created by the first call."""
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
    """Detaches a forked process from its parent's workers, which end with the parent."""
    global _pool, _lock
    for worker in _pool._idle if _pool is not None else []:
        worker.connection.close()
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
