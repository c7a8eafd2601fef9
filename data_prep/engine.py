"""Runs a function over many recordings, in local processes or on a Ray cluster.

On a cluster, every node must see the files under the same path. `RAY_ADDRESS` names the cluster; without it
Ray starts one on this machine.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from mllm.errors import ConfigError, MllmError

Engine = Literal["local", "ray"]
Key = TypeVar("Key")
AT_ONCE = 32  # items of one cluster task


@dataclass
class Outcome(Generic[Key]):
    """The outcome of one item: `value`, or the `error` that it raised.

    `TimeoutError` means that it took too long, `ProcessDied` that it crashed its process.
    """

    key: Key
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """Returns the value.

        Raises:
            the error.
        """
        if self.error is not None:
            raise self.error
        return self.value


class ProcessDied(Exception):
    """A worker process ended while processing an item."""


def run(
    function: Callable[..., Any],
    items: Mapping[Key, tuple[Any, ...]],
    engine: Engine = "local",
    workers: int | None = None,
    timeout: float | None = None,
    isolated: bool = True,
) -> Generator[Outcome[Key], None, None]:
    """Calls a function on every item and yields outcomes as they arrive; closing it stops the workers.

    Args:
        function: must be importable by name in other processes.
        workers: processes; None for one per core (of this machine, or of the cluster).
        timeout: seconds per item.
        isolated: always use separate processes, which an item may hang or crash; otherwise a single worker
            runs in this process.

    Raises:
        ConfigError: there is no Ray.
        MllmError: processes cannot be started.
    """
    if items and engine == "ray":
        yield from _on_ray(function, items, workers, timeout, isolated)
    elif items:
        yield from _local(function, items, workers or os.cpu_count() or 1, timeout, isolated)


def _local(
    function: Callable[..., Any],
    items: Mapping[Key, tuple[Any, ...]],
    workers: int,
    timeout: float | None,
    isolated: bool,
) -> Iterator[Outcome[Key]]:
    workers = min(workers, len(items))
    if workers == 1 and not isolated:
        for key, arguments in items.items():
            yield _outcome(key, function, arguments)
        return
    from concurrent.futures import TimeoutError, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from pebble import ProcessExpired, ProcessPool

    # Some decoders leak memory, so workers are replaced regularly.
    with ProcessPool(max_workers=workers, context=get_context("spawn"), max_tasks=500) as pool:
        tasks: dict[Any, Key] = {
            pool.schedule(function, args=arguments, timeout=timeout): key for key, arguments in items.items()
        }
        try:
            for task in as_completed(tasks):
                error = task.exception()
                if isinstance(error, TimeoutError):
                    error = TimeoutError(f"took more than {timeout:g} s")
                elif isinstance(error, ProcessExpired):
                    error = ProcessDied(str(error))
                elif isinstance(error, BrokenProcessPool):  # not caused by the item
                    raise MllmError(
                        f"worker processes cannot be kept running ({error}): is there memory left? "
                        "give fewer --workers"
                    )
                yield Outcome(tasks[task], None if error else task.result(), error)
        except BaseException:  # including exceptions of the consumer
            pool.stop()
            raise


def _on_ray(
    function: Callable[..., Any],
    items: Mapping[Key, tuple[Any, ...]],
    workers: int | None,
    timeout: float | None,
    isolated: bool,
) -> Iterator[Outcome[Key]]:
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'mllm[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs plans and missing progress bars
    rows = [{"item": pickle.dumps((key, arguments))} for key, arguments in items.items()]
    at_once = max(1, min(AT_ONCE, len(rows) // (4 * (workers or 1)))) if isolated else 1
    done = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // at_once)).map_batches(
        _work_on,  # type: ignore[arg-type]  # Ray passes keyword arguments on, which its types lack
        batch_size=at_once,
        compute=ray.data.TaskPoolStrategy(size=workers),
        fn_kwargs={"function": function, "timeout": timeout, "isolated": isolated},
    )
    for row in done.iter_rows():
        yield pickle.loads(row["outcome"])


def _work_on(
    batch: dict[str, Any], function: Callable[..., Any], timeout: float | None, isolated: bool
) -> dict[str, list[bytes]]:
    """Runs one cluster task: a batch of items."""
    items = dict(pickle.loads(item) for item in batch["item"])
    return {"outcome": [pickle.dumps(outcome) for outcome in _local(function, items, 1, timeout, isolated)]}


def _outcome(key: Key, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome[Key]:
    try:
        return Outcome(key, function(*arguments))
    except Exception as error:
        return Outcome(key, error=error)
