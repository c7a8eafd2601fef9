"""What vLLM's log says: the reason why it ended, and what it does now."""

from __future__ import annotations

import re
from pathlib import Path

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
