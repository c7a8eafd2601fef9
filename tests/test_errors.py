"""mllm.errors: every error has a code and a status, and the documentation lists them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mllm.media.decode_pool
import mllm.media.fetch
import mllm.vllm.api_rules
import serve.launcher
from mllm.errors import MllmError

ROOT = Path(__file__).resolve().parent.parent
OURS = ("mllm.", "data_prep.", "train.", "eval.", "serve.")


def classes(above: type[MllmError] = MllmError) -> Iterator[type[MllmError]]:
    yield above
    for kind in above.__subclasses__():
        if kind.__module__.startswith(OURS):
            yield from classes(kind)


def test_the_table_of_the_documentation_lists_every_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = {
        code: int(status) for code, status in re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", text, re.MULTILINE)
    }
    assert table == {kind.code: kind.status for kind in classes()}


@pytest.mark.parametrize(
    ("error", "code", "status", "exit_status"),
    [
        (MllmError("x"), "invalid_input", 400, 2),
        (mllm.media.fetch.FetchBusy("x"), "busy", 429, 2),
        (mllm.media.decode_pool.WorkerLost("x"), "decoder_lost", 400, 2),
        (mllm.vllm.api_rules.ApiError("x", "tools"), "invalid_request", 400, 2),
        (serve.launcher.ServerError("x"), "server_failed", 503, 1),
    ],
)
def test_codes(error: MllmError, code: str, status: int, exit_status: int) -> None:
    assert (error.code, error.status, error.exit_status) == (code, status, exit_status)
