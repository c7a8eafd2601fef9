"""Where work on many recordings runs: what is an item's fault, and what is not."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from data_prep.engine import run
from mllm.errors import MllmError


def test_items_are_worked_on_in_processes_and_an_error_is_the_item_s_own() -> None:
    outcomes = {outcome.key: outcome for outcome in run(int, {"one": ("1",), "none": ("x",)}, workers=2)}
    assert outcomes["one"].result() == 1
    with pytest.raises(ValueError):
        outcomes["none"].result()


def test_processes_that_do_not_start_are_no_item_s_fault_with_a_mocked_pool(monkeypatch) -> None:
    class Broken:
        def __init__(self, **options) -> None: ...

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *error) -> None: ...

        def stop(self) -> None: ...

        def schedule(self, function, args, timeout) -> Future:
            task: Future = Future()
            task.set_exception(BrokenProcessPool("All workers expired"))
            return task

    monkeypatch.setattr("pebble.ProcessPool", Broken)
    with pytest.raises(MllmError, match="worker processes cannot be kept running .* give fewer --workers"):
        list(run(int, {"one": ("1",), "two": ("2",)}, workers=2))
