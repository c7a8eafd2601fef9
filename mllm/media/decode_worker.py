"""One process that decodes recordings for another one: `python -m mllm.media.decode_worker SOCKET`.

It may be lost: a file that crashes a decoder, never ends or swells in memory takes this process with it, and
nothing else. `decode_pool` starts it and says what crosses the socket.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import MediaError
from mllm.media.recording import load_clip, probe
from mllm.media.sources import MediaLimits, Source, memory_file

ORPHAN = 5  # s: how much longer than its time a worker lives whose owner does not watch it
NO_ROOM = (errno.EFBIG, errno.ENOMEM, errno.ENOSPC)
TOO_MUCH = "decoding it takes too much memory: ask for a smaller size or a shorter cut"
ARRAYS = ("frame_times", "waveform", "frames")  # of a Clip; the widest numbers first, so that all are aligned
FIELDS = ("duration", "source", "is_image", "picture_end", "clock_jumps")


def main(socket: int) -> None:
    """Serves requests until the other side of the socket is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, who then closes the socket
    connection = Connection(socket)
    threading.Thread(target=_end_with_owner, args=[socket], daemon=True).start()
    try:
        _send(connection, {"ready": True})
        while True:
            request = json.loads(connection.recv_bytes())
            try:
                _answer(connection, request)
            except MediaError as error:
                _send(connection, {"error": str(error)})
            except MemoryError:
                _send(connection, {"error": f"{request['source']['name']}: {TOO_MUCH}"})
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    _send(connection, {"error": f"{request['source']['name']}: {TOO_MUCH}"})
                    continue
                _send(connection, {"bug": traceback.format_exc()})
            finally:
                signal.alarm(0)
    except (EOFError, ConnectionError):
        return


def _end_with_owner(socket: int) -> None:
    """Ends this process when its owner is gone, whatever it is decoding."""
    watch = select.poll()
    watch.register(socket, 0)  # a hang-up is told, asked for or not
    watch.poll()
    os._exit(0)


def _answer(connection: Connection, request: dict[str, Any]) -> None:
    limits = MediaLimits(**request["limits"])
    source, audio = (_source(connection, request[side]) for side in ("source", "audio"))
    assert source is not None
    _bound(limits)
    if request["call"] == "probe":
        _send(connection, {"info": asdict(probe(source, limits))})
        return
    choose = _ask(connection) if request["chooses"] else None
    clip = load_clip(source, limits=limits, audio=audio, choose=choose, **request["options"])
    arrays = {name: array for name in ARRAYS if (array := getattr(clip, name)) is not None}
    reply = {
        "arrays": {name: [array.shape, array.dtype.str] for name, array in arrays.items()},
        "fields": {name: getattr(clip, name) for name in FIELDS},
    }
    with memory_file() as memory:
        for array in arrays.values():
            memory.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        memory.flush()
        _send(connection, {"clip": reply})
        send_handle(connection, memory.fileno(), None)


def _bound(limits: MediaLimits) -> None:
    """Sets what one recording may take of this process; the owner watches the time, too."""
    if limits.max_decode_seconds is not None:
        signal.alarm(min(int(limits.max_decode_seconds) + ORPHAN, 2**31 - 1))
    bound_memory(limits.max_decode_bytes)


def bound_memory(most_bytes: float | None) -> None:
    """Sets how much memory this process may take; what asks for more is told that there is none."""
    bound = resource.RLIM_INFINITY if most_bytes is None else int(most_bytes)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, bound),  # heap and what is mapped to write
        (resource.RLIMIT_FSIZE, bound),  # the memory that goes back
    ):
        hard = resource.getrlimit(what)[1]
        within = (
            most
            if hard == resource.RLIM_INFINITY
            else hard
            if most == resource.RLIM_INFINITY
            else min(most, hard)
        )
        resource.setrlimit(what, (within, hard))


def _source(connection: Connection, described: dict[str, Any] | None) -> Source | None:
    if described is None:
        return None
    if described["in_memory"]:
        return Source.of_file(described["name"], os.fdopen(recv_handle(connection), "rb", buffering=0))
    return Source(described["name"], Path(described["path"]))


def _ask(connection: Connection) -> Callable[[float], np.ndarray]:
    """Which times are wanted of a recording that lasts so long (s), the owner knows."""

    def choose(duration: float) -> np.ndarray:
        _send(connection, {"choose": duration})
        return np.frombuffer(connection.recv_bytes(), np.float64)

    return choose


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
