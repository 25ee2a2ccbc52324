"""Fan work out over processes: the only module that uses Dask.

Each item runs in a process with one thread under limits of memory and time (`tasks.run.child`), a few in one that is started
here, many in one beside each Dask worker. A process that is killed loses its own item, not the run.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Self, TypeVar

import cloudpickle
import psutil

from tasks.run.child import Allowance, Child, Lost, attempt, need_more
from tasks.run.machine import cores, memory_available

__all__ = ["Allowance", "Lost", "Pool", "default_num_workers", "need_more"]

T = TypeVar("T")
_IN_FLIGHT = 2  # items per worker that are submitted at once: one runs, one waits
_START_S = 120  # a shared machine may need long to start Python
logger = logging.getLogger("prdit.fanout")


def default_num_workers(num_items: int, memory_mb: int) -> int:
    """As many processes as there are cores, items and room in memory for; at least one."""
    room = int(memory_available().amount / (memory_mb * 2**20))
    return max(1, min(cores().amount, num_items, room))


class Pool:
    """Worker processes that start when they are first needed and end with the `with` block.

    Args:
        num_workers: processes; default by cores and memory. 1 means this process: it can be debugged, limits of time are not kept,
            and an item that crashes it ends the run.
        memory_mb: expected peak of one item, to choose the default number of workers.
        scheduler: address of a running Dask scheduler to use instead of local processes.

    Raises: ValueError: num_workers is below 1.
    """

    def __init__(self, *, num_workers: int | None = None, memory_mb: int = 1500, scheduler: str | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; expected at least 1.")
        self._num_workers = num_workers
        self._memory_mb = memory_mb
        self._scheduler = scheduler
        self._stack = ExitStack()
        self._client: Any = None
        self._child = Child()
        self._stack.callback(self._child.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None and error is not None:
            _kill_workers(client)
        self._stack.close()

    def map(
        self,
        function: Callable[[T], Any],
        items: Iterable[T],
        *,
        few: int = 1,
        allowance: Callable[[T], Allowance] | None = None,
    ) -> "Iterator[tuple[T, Any]]":
        """Apply a picklable function to every item; (item, result) in the order in which they finish.

        Items are taken from the iterable, in this thread, as workers become free, so it may be longer than memory. An item whose
        worker died is tried once more, alone, when all others are done. The result of a function that yields is a list; where
        such an item is lost, `Lost.done` has what it yielded.

        Args:
            function: importable by the workers; large results are written by it, small ones returned.
            items: picklable.
            few: up to so many items run in one process, which takes less time than starting a cluster.
            allowance: what an item may cost; without it there are no limits.
        """
        items = iter(items)
        workers = self._num_workers or default_num_workers(2**31, self._memory_mb)
        first = list(islice(items, max(workers, few + 1)))
        everything = chain(first, items)

        def allowed(item: T) -> Allowance | None:
            return allowance(item) if allowance else None

        if self._num_workers == 1 and self._scheduler is None:
            return ((item, attempt(function, item, allowed(item))) for item in everything)
        if len(first) <= few or (self._scheduler is None and workers == 1):
            return self._one_by_one(function, everything, allowed)
        return self._gather(self._connected(min(workers, len(first))), function, everything, allowed)

    def _one_by_one(
        self, function: Callable[[T], Any], items: Iterable[T], allowed: "Callable[[T], Allowance | None]"
    ) -> "Iterator[tuple[T, Any]]":
        for item in items:
            call = cloudpickle.dumps((function, item))
            result = self._child.run(call, allowed(item))
            if isinstance(result, Lost) and result.reason == "worker_died":
                result = self._child.run(call, allowed(item))
            yield item, result

    def _connected(self, workers: int) -> Any:
        if self._client is None:
            self._client = self._stack.enter_context(_client(workers, self._scheduler))
        elif self._scheduler is None and len(self._client.cluster.workers) < workers:
            with _sigint_blocked():
                self._client.cluster.scale(workers)
                self._client.wait_for_workers(workers, timeout=_START_S)
        return self._client

    def _gather(
        self,
        client: Any,
        function: Callable[[T], Any],
        items: Iterable[T],
        allowed: "Callable[[T], Allowance | None]",
    ) -> "Iterator[tuple[T, Any]]":
        from distributed import as_completed

        limit = _IN_FLIGHT * max(1, sum(client.nthreads().values()))
        items = iter(items)
        running: dict[Any, T] = {}
        finished = as_completed()

        def submitted(item: T) -> Any:
            return client.submit(_in_child, cloudpickle.dumps((function, item)), allowed(item), pure=False)

        def submit(count: int) -> None:
            for item in islice(items, count):
                future = submitted(item)
                running[future] = item
                finished.add(future)

        # A worker that dies also loses finished results that were not fetched yet. Run alone, only an item that kills its process
        # is lost, and one that lacked memory beside others succeeds.
        again: list[T] = []
        submit(limit)
        for future in finished:
            item = running.pop(future)
            result = _outcome(future)
            submit(1)
            if isinstance(result, Lost) and result.reason == "worker_died":
                again.append(item)
            else:
                yield item, result
        for item in again:
            yield item, _outcome(submitted(item))


_children = threading.local()


def _in_child(call: bytes, allowance: Allowance | None) -> Any:
    """In a Dask worker: do the work in the process beside it."""
    if not hasattr(_children, "own"):
        _children.own = Child()
    return _children.own.run(call, allowance)


def _outcome(future: Any) -> Any:
    """Wait for one future: its value, or `Lost`."""
    error = future.exception()
    result = future.result() if error is None else None
    future.release()
    if error is None:
        return result
    return Lost("worker_died" if type(error).__name__ == "KilledWorker" else "failed", type(error).__name__)


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
    }
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":  # it sets the level of each of its loggers when imported
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(settings), ExitStack() as stack:
        if scheduler is not None:
            yield stack.enter_context(Client(scheduler))
            return
        with _sigint_blocked():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",  # a free port; None would still take 8787
                    silence_logs=logging.CRITICAL,
                    memory_limit=0,  # the system's own limit decides; Dask's would kill workers by an estimate
                )
            )
            client = stack.enter_context(Client(cluster))
        yield client


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT for the threads and processes that are started in the block, as those inherit it.

    Ctrl-C reaches every process of a terminal. This one ends the run and its workers; a worker that is interrupted itself would
    print a traceback and be started again. This process still gets the signal when the block ends.
    """
    _start_resource_tracker()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start Python's process that removes the semaphores of killed workers, without its warning that it does so."""
    before = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before:
            os.environ["PYTHONWARNINGS"] = before
        else:
            del os.environ["PYTHONWARNINGS"]


def _kill_workers(client: Any) -> None:
    """End local workers at once, when the run has failed or was interrupted: nobody waits for what they do."""
    for nanny in getattr(client.cluster, "workers", {}).values():
        process = getattr(nanny, "process", None)
        if process is not None and process.pid is not None:
            nanny.auto_restart = False
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process.pid).kill()
