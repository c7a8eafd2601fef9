"""A process that decodes recordings for another one: `python -m mllm.media.decode_worker SOCKET`.

It is expendable: a file that crashes a decoder, never ends or exhausts memory ends only this process.
`decode_pool` starts it and describes the protocol.
"""

from __future__ import annotations

import errno
import json
import os
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
from typing import IO, Any

import numpy as np

from mllm.errors import MediaError
from mllm.media.clip import Clip
from mllm.media.recording import Decoding
from mllm.media.sources import MediaLimits, Source, bound_memory, memory_file

ORPHAN = 5  # s that a worker outlives its time limit if its owner fails to kill it
NO_ROOM = (errno.EFBIG, errno.ENOMEM, errno.ENOSPC)
TOO_MUCH = "decoding it takes too much memory: ask for a smaller size or a shorter cut"
ARRAYS = ("frame_times", "waveform", "frames")  # of a Clip; the widest dtype first, for alignment
FIELDS = ("duration", "source", "is_image", "picture_end", "clock_jumps")


def main(socket: int) -> None:
    """Serves requests until the other side closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, who then closes the socket
    connection = Connection(socket)
    threading.Thread(target=_end_with_owner, args=[socket], daemon=True).start()
    desk = _Desk(connection)
    try:
        _send(connection, {"ready": True})
        while True:
            desk.answer(json.loads(connection.recv_bytes()))
    except (EOFError, ConnectionError):
        return


def _end_with_owner(socket: int) -> None:
    """Ends this process when its owner is gone, whatever it is decoding."""
    watch = select.poll()
    watch.register(socket, 0)  # a hang-up is always reported
    watch.poll()
    os._exit(0)


class _Desk:
    """Keeps one recording open, and answers requests about it."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.name = ""
        self.limits = MediaLimits()
        self.recording: Decoding | None = None

    def answer(self, request: dict[str, Any]) -> None:
        """Sends the reply, or the reason why there is none."""
        if request["call"] == "close":
            self.recording = None
            return
        memory: IO[bytes] | None = None
        try:
            reply, memory = self._reply(request)
        except MediaError as error:
            reply = {"error": str(error)}
        except MemoryError:
            reply = {"error": f"{self.name}: {TOO_MUCH}"}
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                reply = {"error": f"{self.name}: {TOO_MUCH}"}
            else:
                reply = {"bug": traceback.format_exc()}
        finally:
            signal.alarm(0)
        _send(self.connection, reply | {"open": self.recording is not None})
        if memory is not None:
            with memory:
                send_handle(self.connection, memory.fileno(), None)

    def _reply(self, request: dict[str, Any]) -> tuple[dict[str, Any], IO[bytes] | None]:
        if "open" in request:
            self._open(**request["open"])
        else:
            _bound(self.limits)
        recording = self.recording
        assert recording is not None
        match request["call"]:
            case "info":
                return {"info": asdict(recording.info)}, None
            case "digest":
                return {"digest": recording.digest}, None
            case "clip":
                choose = _ask(self.connection) if request["chooses"] else None
                return _packed(recording.clip(choose=choose, **request["options"]))
        return {}, None

    def _open(self, sources: list[dict[str, Any]], limits: dict[str, Any]) -> None:
        self.name, self.recording, self.limits = sources[0]["name"], None, MediaLimits(**limits)
        source, *audio = [_source(self.connection, described) for described in sources]
        _bound(self.limits)
        self.recording = Decoding(source, self.limits, audio[0] if audio else None)


def _packed(clip: Clip) -> tuple[dict[str, Any], IO[bytes]]:
    """A clip as JSON, and a file with its concatenated arrays."""
    arrays = {name: array for name in ARRAYS if (array := getattr(clip, name)) is not None}
    reply = {
        "arrays": {name: [array.shape, array.dtype.str] for name, array in arrays.items()},
        "fields": {name: getattr(clip, name) for name in FIELDS},
    }
    memory = memory_file()
    try:
        for array in arrays.values():
            memory.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        memory.flush()
    except OSError:
        memory.close()
        raise
    return {"clip": reply}, memory


def _bound(limits: MediaLimits) -> None:
    """Limits time and memory for one recording; the owner watches the time, too."""
    if limits.max_decode_seconds is not None:
        signal.alarm(min(int(limits.max_decode_seconds) + ORPHAN, 2**31 - 1))
    bound_memory(limits.max_decode_bytes)


def _source(connection: Connection, described: dict[str, Any]) -> Source:
    if described["in_memory"]:
        return Source.of_file(described["name"], os.fdopen(recv_handle(connection), "rb", buffering=0))
    return Source(described["name"], Path(described["path"]))


def _ask(connection: Connection) -> Callable[[float], np.ndarray]:
    """A `choose` that asks the owner which times are wanted, given the duration (s)."""

    def choose(duration: float) -> np.ndarray:
        _send(connection, {"choose": duration})
        return np.frombuffer(connection.recv_bytes(), np.float64)

    return choose


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
