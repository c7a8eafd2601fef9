"""A worker process, seen from the process that started it. Private to `decode_pool`."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO, Any

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Choose, Clip
from mllm.media.sources import Source, memory_file

SLOW = 2.0  # s: a request that takes longer no longer counts as concurrent
LONGEST_WAIT = 1e6  # s
STARTING = 60.0  # s that a worker may take to start, before its time for a request begins
MOST_BYTES = 1_000_000  # of a worker's message; arrays come in shared memory
NOT_STARTED = "no process to decode recordings can be started ({})"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy would start threads that nothing uses


class Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        self.asked = 0
        self.ready = False  # whether it has reported that it has started
        try:
            self.errors = memory_file()  # its stderr, with the last words of its libraries
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
        """Sends a request; returns the reply, and the memory that holds a clip's arrays.

        Raises:
            Lost: if the process ended, or took too long.
            MediaError: if it never started, or files cannot be passed to it or from it.
        """
        self.asked += 1
        self.errors.seek(0)  # shares its position with the process
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
            raise Lost(f"decoding it takes longer than {seconds:g} s") from None
        except (EOFError, ConnectionError):
            last_words = self._last_words()
            if not self.ready:
                raise MediaError(NOT_STARTED.format(last_words)) from None
            raise Lost(last_words) from None

    def _receive(self, until: float | None, give_way: Callable[[], None]) -> dict[str, Any]:
        remaining = left(until)
        if not self.connection.poll(SLOW if remaining is None else min(SLOW, remaining)):
            give_way()
            if not self.connection.poll(left(until)):
                raise TimeoutError
        message: dict[str, Any] = json.loads(self.connection.recv_bytes(MOST_BYTES))
        return message

    def _last_words(self) -> str:
        """Why the process ended."""
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its decoder hung up"
        if status == -signal.SIGKILL:
            return "decoding it was killed, probably for want of memory"
        if status == -signal.SIGALRM:  # this process was too busy to watch the time
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


class Lost(Exception):
    """A worker ended, or did not answer in time."""


def _started(socket: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a worker with its end of the socket."""
    if not sys.executable:
        raise MediaError(NOT_STARTED.format("it is not known where Python lies: set sys.executable"))
    # -P and the path: nothing in the user's folder may be imported in place of our modules.
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
    """Turns a lack of file descriptors, on either side, into a MediaError."""
    try:
        yield
    except (ConnectionError, EOFError):
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: no descriptor was free on this side
        cause = getattr(error, "strerror", None) or os.strerror(errno.EMFILE)
        raise MediaError(f"files cannot be passed between processes ({cause}): raise `ulimit -n`") from None


def left(until: float | None) -> float | None:
    """Seconds until a deadline, at most what the system can wait for; None without a deadline."""
    return None if until is None else min(max(0.0, until - time.monotonic()), LONGEST_WAIT)


def described(source: Source) -> dict[str, Any]:
    """A source as JSON; a file in memory follows as a descriptor."""
    in_memory = source.file is not None
    return {"name": source.name, "in_memory": in_memory, "path": None if in_memory else source.handle()}


def _mapped(descriptor: int) -> mmap.mmap | None:
    """Maps a worker's memory privately: writable, and unaffected by later writes of the worker."""
    try:
        size = os.fstat(descriptor).st_size
        access = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=access) if size else None
    finally:
        os.close(descriptor)


def unpacked(reply: dict[str, Any], memory: mmap.mmap | None) -> Clip:
    arrays: dict[str, Any] = {"frames": None, "waveform": None}
    offset = 0
    for name, (shape, kind) in reply["arrays"].items():
        count = math.prod(shape)
        held = memory if memory is not None and count else b""
        arrays[name] = np.frombuffer(held, kind, count, offset if count else 0).reshape(shape)
        offset += arrays[name].nbytes
    return Clip(**arrays, **reply["fields"])
