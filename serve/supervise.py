"""What `mllm serve` does with its server: starts it, says where it listens, watches it, stops it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from serve.launcher import Server, ServerError


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
