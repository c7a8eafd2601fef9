"""Starts vLLM on a checkpoint, waits until it is ready, and stops it without leaving anything behind.

    with Server(checkpoint) as server:
        openai.OpenAI(base_url=server.api, api_key="none")

vLLM runs in its own process group and writes to a log file. Nothing here imports vLLM, so the launcher works
with both the CPU and the GPU build.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mllm.errors import ConfigError, MllmError
from mllm.vllm import in_flight
from serve.engine_settings import EngineSettings
from serve.vllm_log import how_it_ended, last_line
from serve.warm_up import warm_up

HEALTH_TIMEOUT = 900.0  # seconds: compiling a large model on a CPU takes minutes
STOP_TIMEOUT = 15.0  # seconds between SIGTERM and SIGKILL
GROUP_TIMEOUT = 1.0  # seconds for remaining processes to end, before they are killed


class ServerError(MllmError):
    """vLLM did not start, or ended; the message contains its last error."""

    code, status = "server_failed", 503


@dataclass
class Server(EngineSettings):
    """A vLLM server for one checkpoint; a context manager.

    Args:
        host, port: where to listen; port 0 picks a free one.
        log: file for vLLM's output; by default a temporary one, removed after a clean stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    log: Path | None = None
    process: subprocess.Popen | None = field(default=None, init=False)
    seconds_to_start: float = field(default=0.0, init=False)
    _scratch: tempfile.TemporaryDirectory | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)  # where this run's lines begin (bytes)
    _started: bool = field(default=False, init=False, repr=False)
    _own_log: bool = field(default=False, init=False, repr=False)

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}"

    @property
    def api(self) -> str:
        """The `base_url` for the OpenAI client."""
        return f"{self.url}/v1"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, tick: Callable[[float, str], None] = lambda seconds, line: None) -> None:
        """Starts vLLM, waits until it is healthy, and sends a first question.

        Args:
            tick: called twice a second with the elapsed seconds and the last line of the log.

        Raises:
            MllmError: no such checkpoint, vLLM not installed, or the port is taken.
            ServerError: vLLM ended before it was ready; the message holds its last error line.
        """
        began = time.monotonic()
        command = self.command()
        self.port = _free_port(self.host, self.port)
        with self._open_log() as log:
            self.process = subprocess.Popen(
                [*command, "--host", self.host, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._scratch_variables() | self.variables(),
                start_new_session=True,  # its own process group: Ctrl-C reaches it only through stop()
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait(began, tick)
            tick(time.monotonic() - began, "asking the first question")
            self.warm_up()
        except BaseException:
            self.stop(keep_log=True)
            raise
        self.seconds_to_start = time.monotonic() - began

    def _open_log(self) -> BinaryIO:
        """Opens the log; after a restart, to append to it."""
        if self.log is None:
            handle, name = tempfile.mkstemp(prefix="mllm-serve-", suffix=".log")
            os.close(handle)
            self.log, self._own_log = Path(name), True
        file = self.log.open("ab" if self._started else "wb")
        self._started = True
        self._log_start = file.tell()
        return file

    def _scratch_variables(self) -> dict[str, str]:
        """Makes a scratch folder for sockets, temporary files and recordings in flight; `stop` deletes it."""
        # By default torch caches compiled code among the temporary files: keep it for the next start.
        compiled = Path(tempfile.gettempdir()) / f"torchinductor_mllm_{os.getuid()}"
        self._scratch = tempfile.TemporaryDirectory(prefix="mllm-serve-", ignore_cleanup_errors=True)
        variables = {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))}
        folders = {in_flight.FOLDER: "in_flight", "VLLM_RPC_BASE_PATH": "sockets", "TMPDIR": "temporary"}
        for name, folder in folders.items():
            path = Path(self._scratch.name) / folder
            path.mkdir()
            variables[name] = str(path)
        return variables

    def _wait(self, began: float, tick: Callable[[float, str], None]) -> None:
        assert self.process is not None
        assert self.log is not None
        while not self.healthy():
            seconds = time.monotonic() - began
            if self.process.poll() is not None:
                raise ServerError(f"vLLM did not start: {self._how_it_ended()} (whole log: {self.log})")
            if seconds > HEALTH_TIMEOUT:
                raise ServerError(f"vLLM is not ready after {HEALTH_TIMEOUT:.0f} s (log: {self.log})")
            tick(seconds, last_line(self.log))
            time.sleep(0.5)

    def warm_up(self) -> None:
        """Sends a first question, which is slow, before the users do."""
        warm_up(self.api, self.model, self.flags)

    def healthy(self) -> bool:
        """Whether vLLM answers on /health."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except OSError:  # refused, reset, timed out, or a status above 399
            return False

    def wait(self) -> None:
        """Blocks until the server ends by itself.

        Raises:
            ServerError: always, since a server is not expected to end.
        """
        assert self.process is not None
        self.process.wait()
        raise ServerError(f"vLLM ended: {self._how_it_ended()} (whole log: {self.log})")

    def _how_it_ended(self) -> str:
        """How vLLM ended, and which recordings were being read."""
        assert self.process is not None
        assert self.log is not None
        how = how_it_ended(self.process.wait(), self.log, self._log_start)
        reading = in_flight.left_behind(Path(self._scratch.name) / "in_flight") if self._scratch else []
        return how + (f"; it was reading {' and '.join(reading[:3])}" if reading else "")

    def stop(self, keep_log: bool = False) -> None:
        """Terminates vLLM, then kills what is left of its process group. Safe to call again."""
        process, self.process = self.process, None
        if process is None:
            return
        died = process.poll() is not None
        try:
            if not died:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
            _wait_for_group(process.pid)
        finally:  # also on a second Ctrl-C
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._scratch is not None:
                self._scratch.cleanup()
        if self._own_log and not died and not keep_log and self._log_start == 0 and self.log is not None:
            self.log.unlink(missing_ok=True)
            self.log, self._started = None, False

    def curl(self) -> str:
        """A shell command to try the server with."""
        messages = [{"role": "user", "content": "Hello!"}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": 32})
        return f"curl {self.api}/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _wait_for_group(group: int) -> None:
    """Gives the remaining processes of vLLM a moment to end by themselves, as they free shared memory."""
    end = time.monotonic() + GROUP_TIMEOUT
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)


def _die_with_parent() -> None:
    """In the child: requests SIGTERM for when the parent is killed (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_port(host: str, port: int) -> int:
    """Returns the port itself, or a free one for 0.

    Raises:
        ConfigError: if the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a port is 0 to 65535"
            raise ConfigError(
                f"cannot listen on {host}:{port} ({reason}): choose another --port, or 0 for a free one"
            ) from None
        return probe.getsockname()[1]
