"""Runs the server of `mllm serve`: starts it, prints its address, restarts it when it ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from mllm.errors import MllmError
from serve.launcher import Server, ServerError

if TYPE_CHECKING:
    from rich.console import Console

RESTARTS = 5  # in a row
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a restart, doubled each time
STEADY = 600.0  # seconds of uptime after which the count of restarts is reset


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Treats SIGTERM and a closed terminal like Ctrl-C, so that servers are stopped."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_forever(server: Server, restarts: int = RESTARTS) -> int:
    """Starts the server with a spinner, prints its address, and keeps it running until interrupted.

    Args:
        restarts: how many times in a row vLLM is restarted after it ended by itself.

    Returns:
        The exit status: 0 after Ctrl-C or SIGTERM, 1 if vLLM did not start or ended too often.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with stop_signals():
        try:
            _start(server, console)
            console.print("try it:", style="dim")
            print(server.curl(), flush=True)
            if choices := server.choices():
                console.print(choices, style="dim", markup=False)
            console.print(f"log: {server.log}\nCtrl-C stops the server", style="dim")
            _keep_running(server, console, restarts)
        except KeyboardInterrupt:
            console.print("stopping …", style="dim")
            server.stop()
            return 0
        except ServerError as error:
            _complain(console, f"error: {error}")
            return error.exit_status
        finally:
            server.stop()


def _start(server: Server, console: Console) -> None:
    with console.status("starting vLLM …") as status:
        server.start(
            lambda seconds, line: status.update(f"starting vLLM, {seconds:.0f} s  [dim]{_short(line)}")
        )
    console.print(
        f"[bold]{server.model}[/] is served at [bold]{server.api}[/]"
        f" (ready in {server.seconds_to_start:.0f} s)"
    )


def _keep_running(server: Server, console: Console, restarts: int) -> NoReturn:
    """Restarts the server whenever it ends; until then clients get refused connections.

    Raises:
        ServerError: when the restarts are used up.
    """
    failures = 0
    while True:
        ready = float("inf")
        try:
            if server.process is None:
                _start(server, console)
            ready = time.monotonic()
            server.wait()
        except MllmError as error:  # start() may fail too: the port is taken, the checkpoint is gone
            server.stop(keep_log=True)
            if time.monotonic() - ready > STEADY:
                failures = 0
            failures += 1
            if failures > restarts:
                reason = f"it was started again {restarts} times in a row" if restarts else "--restarts 0"
                raise ServerError(f"{error}\ngiving up: {reason}") from None
            pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
            _complain(console, f"{time.strftime('%H:%M:%S')} {error}")
            console.print(f"starting it again in {pause:g} s ({failures} of {restarts})")
            time.sleep(pause)


def _complain(console: Console, line: str) -> None:
    console.print(line, style="red", markup=False, soft_wrap=True)


def _short(line: str, width: int = 80) -> str:
    return line[:width].replace("[", "\\[")
