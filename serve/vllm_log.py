"""Reads vLLM's log: why vLLM ended, and its current activity."""

from __future__ import annotations

import re
import signal
from pathlib import Path

LAST_BYTES = 256 * 1024  # of the log that are read: older errors are not why it ended

_ERROR = re.compile(r"(?:\b\w*(?:Error|Exception|NotFound)|\berror|Value error[,]?)[:,] ?(\S.*)")
# Consequences of an error that is logged elsewhere.
_ECHO = re.compile(
    r"Engine core initialization failed|failed to start|Failed core proc|root cause above"
    r"|EngineDeadError|EngineCore encountered an issue"
)
_HARMLESS = re.compile(r"^(\(\w+ pid=\d+\) )?(INFO|WARNING|DEBUG) ")  # log levels of vLLM's own lines
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?(\w+ \d\d-\d\d \d\d:\d\d:\d\d )?(\[[^\]]*\] )?")
# Written by Python's faulthandler, which the launcher enables: the kind of crash, then the stack of each
# thread. In the engine's process torch's own handler writes a single stack of C and Python frames.
_CRASH = re.compile(r"Fatal Python error: (.+)|!+ (\w+) encountered !+")
_OURS = re.compile(r"/(mllm/(?:\w+/)?\w+\.py)$")
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+),? in (\S+)')

_SIGNALS = {
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code",
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGABRT: "native code gave up",
    signal.SIGKILL: "killed from outside, as the system does when memory runs out",
    signal.SIGTERM: "asked to stop from outside",
}


def how_it_ended(status: int, log: Path, start: int = 0) -> str:
    """One line with the signal or exit status, and the location or error found in the log.

    Args:
        status: return code of `subprocess`, negative for a signal.
        start: offset of this run in the log (bytes).
    """
    lines = _last_lines(log, start)
    crash = _crash(lines)
    if status < 0:
        number = signal.Signals(-status)
        meaning = f", {_SIGNALS[number]}" if number in _SIGNALS else ""
        return f"signal {-status} ({number.name}{meaning})" + (f": {crash}" if crash else "")
    if crash:
        return f"its engine crashed: {crash}"
    if not _errors(lines) and any(_ECHO.search(line) for line in lines):
        return "its engine's process is gone without a word: killed from outside, or out of memory"
    return f"exit status {status}: {last_error(log, start)}"


def last_error(log: Path, start: int = 0) -> str:
    """The line of vLLM's log that best explains why it ended."""
    errors = _errors(_last_lines(log, start))
    # Pydantic prints its reason on the line after "1 validation error for …".
    reasons = [line for line in errors if line.startswith("Value error")]
    found = (reasons or errors or [last_line(log) or "it said nothing"])[-1]
    return re.sub(r"\s*\[type=.*", "", found).strip()[:300]


def last_line(log: Path) -> str:
    """The last non-blank line of a log, without vLLM's prefix."""
    lines = [line for line in _last_lines(log, max(0, log.stat().st_size - 4096)) if line.strip()]
    return _PREFIX.sub("", lines[-1]).strip() if lines else ""


def _last_lines(log: Path, start: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace").splitlines()


def _errors(lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        match = _ERROR.search(line)
        if match and not _ECHO.search(line) and not _HARMLESS.match(line):
            found.append(match.group(0))
    return found


def _crash(lines: list[str]) -> str | None:
    """Kind and location of the last crash in the log, preferring a frame of our own code."""
    starts = [index for index, line in enumerate(lines) if _CRASH.search(line)]
    if not starts:
        return None
    kind = _CRASH.search(lines[starts[-1]])
    assert kind is not None
    frames: list[re.Match[str]] = []
    for line in lines[starts[-1] + 1 :]:
        if line.startswith("Thread ") and frames:  # other threads, which did not crash
            break
        if line.startswith("Current thread"):
            frames = []
        if match := _FRAME.match(line):
            frames.append(match)
    reason = (kind[1] or kind[2]).strip()
    frames = [frame for frame in frames if "sigaction" not in frame[1]]
    ours = [frame for frame in frames if _OURS.search(frame[1])]
    for frame in ours[:1] or frames[:1]:
        own = _OURS.search(frame[1])
        file = own[1] if own else "/".join(Path(frame[1]).parts[-2:])
        return f"{reason} in {file}, line {frame[2]} ({frame[3]})"
    return reason
