"""Fan work out over processes: the only module that uses Dask.

Each item runs in a worker process with one thread. A worker that is killed loses its own item, not the run.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.run.machine import cores, memory_available

T = TypeVar("T")
R = TypeVar("R")
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Lost:
    """An item without result.

    Attributes:
        reason: "worker_died" (its process was killed) or "failed" (the function raised).
        detail: kind of error, for a verdict's sentence.
    """

    reason: str
    detail: str


def default_num_workers(num_items: int, memory_mb: int) -> int:
    """As many processes as there are cores, items and room in memory for; at least one."""
    room = int(memory_available().amount / (memory_mb * 2**20))
    return max(1, min(cores().amount, num_items, room))


def fan_out(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    num_workers: int | None = None,
    progress: Advance | None = None,
    memory_mb: int = 1500,
    scheduler: str | None = None,
) -> "list[R | Lost]":
    """Apply a picklable function to every item; results in the order of the items.

    Args:
        function: importable by the workers; large results are written by it, small ones returned.
        items: picklable.
        num_workers: processes; default by cores and memory. One worker or one item runs in this process.
        progress: called with (done, total) after each item.
        memory_mb: expected peak of one item, to choose the default number of workers.
        scheduler: address of a running Dask scheduler to use instead of local processes.
    """
    total = len(items)
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; expected at least 1.")
    workers = min(num_workers or default_num_workers(total, memory_mb), max(total, 1))
    if scheduler is None and workers == 1:
        results: list[R | Lost] = []
        for item in items:
            results.append(_call(function, item))
            if progress:
                progress(len(results), total)
        return results
    with _client(workers, scheduler) as client:
        return _gather(client, function, items, progress)


def _call(function: Callable[[T], R], item: T) -> "R | Lost":
    try:
        return function(item)
    except Exception as error:
        logging.getLogger("prdit.fanout").exception("An item failed")
        return Lost("failed", type(error).__name__)


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    settings = {
        # One task at a time per worker: a worker that dies loses no waiting task, and its own is not tried again.
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.work-stealing": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.admin.tick.limit": "1h",
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": "1",
        "distributed.nanny.pre-spawn-environ.ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    }
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":  # it sets the level of each of its loggers when imported
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(settings):
        if scheduler is not None:
            with Client(scheduler) as client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # a free port; None would still take 8787
                silence_logs=logging.CRITICAL,
                memory_limit=0,  # the system's own limit decides; Dask's would kill workers by an estimate
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


def _gather(client: Any, function: Callable[[T], R], items: Sequence[T], progress: Advance | None) -> "list[R | Lost]":
    """Results in order. An item whose worker died is tried once more, alone.

    A worker that dies also loses finished results that were not fetched yet. Run alone, only an item that kills its worker is
    lost, and one that lacked memory beside others succeeds.
    """
    from distributed import as_completed

    results: dict[int, R | Lost] = {}

    def note(index: int, result: "R | Lost") -> None:
        results[index] = result
        if progress:
            progress(len(results), len(items))

    futures = {client.submit(_call, function, item, pure=False): index for index, item in enumerate(items)}
    again = []
    for future in as_completed(list(futures)):
        result = _outcome(future)
        if isinstance(result, Lost) and result.reason == "worker_died":
            again.append(futures[future])
        else:
            note(futures[future], result)
    for index in sorted(again):
        note(index, _outcome(client.submit(_call, function, items[index], pure=False)))
    return [results[index] for index in range(len(items))]


def _outcome(future: Any) -> Any:
    """Wait for one future: its value, or `Lost`."""
    error = future.exception()
    result = future.result() if error is None else None
    future.release()
    if error is None:
        return result
    return Lost("worker_died" if type(error).__name__ == "KilledWorker" else "failed", type(error).__name__)
