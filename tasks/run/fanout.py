"""Fan work out over processes, here or on the workers of a runner (`tasks.run.runners`).

Each item runs in a process with limits (`tasks.run.child`), a few in one that is started here, many in one beside each Dask
worker. A process that is killed loses its own item, not the run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from traceback import format_exception
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import cloudpickle
import psutil

from storage.errors import ComputationError
from tasks.run.child import Allowance, Child, Lost, attempt, need_more
from tasks.run.clusters import SchedulerError
from tasks.run.interrupts import sigint_blocked
from tasks.run.machine import cores, memory_available
from tasks.run.runners import Local, Runner

__all__ = ["Allowance", "Lost", "Pool", "default_num_workers", "need_more"]

logger = logging.getLogger("prdit.run")
T = TypeVar("T")
_IN_FLIGHT = 2  # items per worker that are submitted at once: one runs, one waits
_START_S = 120  # a shared machine may need long to start Python
_TICK_S = 1.0  # how often one who waits may do something else
_END_S = 10.0  # so long the workers may take to end what they have started


def default_num_workers(num_items: int, memory_mb: int) -> int:
    """As many processes as there are cores, items and room in memory for; at least one."""
    room = int(memory_available().amount / (memory_mb * 2**20))
    return max(1, min(cores().amount, num_items, room))


class Pool:
    """Worker processes that start when they are first needed and end with the `with` block.

    Args:
        runner: where they are.
        memory_mb: expected peak of one item, to choose the number of processes on this machine where the runner leaves it open.
        one_thread: whether an item works with one thread and no GPU; else it has all that its process may use.
    """

    def __init__(self, runner: Runner | None = None, *, memory_mb: int = 1500, one_thread: bool = True) -> None:
        self._runner: Runner = runner or Local()
        self._one_thread = one_thread
        self._memory_mb = memory_mb
        self._local = self._runner.on_this_machine(one_thread)
        shared = (self._local.num_workers or 1) if self._local and not one_thread else 1
        self._kind = _Kind(uuid4().hex, one_thread, shared)
        self._stack = ExitStack()
        self._client: Any = None
        self._child = Child(one_thread=one_thread)
        self._stack.callback(self._child.close)

    @property
    def remote(self) -> bool:
        """Whether the work is done by the workers of a cluster, on this machine or others."""
        return self._local is None

    @property
    def here(self) -> bool:
        """Whether `each` works in this process."""
        return self._local is not None and self._local.num_workers == 1

    @property
    def num_workers(self) -> int:
        """How many items are worked on at once; where the runner leaves it open, the workers that its cluster has now."""
        known: int | None = getattr(self._local or self._runner, "num_workers", None)
        if self._local:
            return known or default_num_workers(2**31, self._memory_mb)
        return known or max(1, sum(self._connected(0).nthreads().values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            if error is not None:
                _kill_workers(client)
            with suppress(Exception):  # the scheduler may be lost, which has been said
                if client.status == "running":
                    client.run(_end_children, self._kind.token, on_error="ignore", callback_timeout=_END_S)
        self._stack.close()

    def each(
        self,
        function: Callable[[T], Any],
        items: Iterable[T],
        what: Callable[[T], str],
        tick: Callable[[], None] | None = None,
    ) -> "Iterator[tuple[T, Any]]":
        """`map` for items that the run cannot do without: what the function raises is raised here.

        Args:
            function, items: as for `map`. Where this machine does the work, and runner `local` does not ask for several processes,
                the items are done in this process, one after the other.
            what: an item in words, for messages.
            tick: called about every second, in this thread, while workers are waited for.

        Raises:
            UserError: what the function raised.
            ComputationError: the process of an item was killed twice.
            RuntimeError: the function raised something else on a worker; the message has its traceback.
            SchedulerError: as `map`.
        """
        if self.here:
            for item in items:
                yield item, function(item)
            return
        for item, result in self.map(function, items, few=0, tick=tick):
            if not isinstance(result, Lost):
                yield item, result
            elif result.error is not None:
                raise result.error
            elif result.reason == "worker_died":
                raise ComputationError(
                    f"The process that worked on {what(item)} ended twice ({result.detail}), the second time alone. SIGKILL "
                    "often means that memory was used up: lower the stage's batch_size, or give the workers of runner "
                    f"{self._runner.name} more. What is finished is kept."
                )
            else:
                raise RuntimeError(f"{what(item)}: {result.detail} on a worker\n{result.traceback}")

    def map(
        self,
        function: Callable[[T], Any],
        items: Iterable[T],
        *,
        few: int = 1,
        allowance: Callable[[T], Allowance] | None = None,
        tick: Callable[[], None] | None = None,
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
            tick: as for `each`.

        Raises:
            SchedulerError: no scheduler answers, or it was lost.
            RunnerError: something else is missing for the runner.
        """
        items = iter(items)
        workers = self.num_workers if self._local else 1
        first = list(islice(items, max(workers, few + 1)))
        everything = chain(first, items)

        def allowed(item: T) -> Allowance | None:
            return allowance(item) if allowance else None

        if self.here:
            return ((item, attempt(function, item, allowed(item))) for item in everything)
        if len(first) <= few or (self._local and workers == 1):
            return self._one_by_one(function, everything, allowed)
        return self._gather(self._connected(min(workers, len(first))), function, everything, allowed, tick)

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
            runner = self._local or self._runner
            self._client = self._stack.enter_context(runner.cluster(workers, self._one_thread))
        elif self._local and len(self._client.cluster.workers) < workers:
            with sigint_blocked():
                self._client.cluster.scale(workers)
                self._client.wait_for_workers(workers, timeout=_START_S)
        return self._client

    def _gather(
        self,
        client: Any,
        function: Callable[[T], Any],
        items: Iterable[T],
        allowed: "Callable[[T], Allowance | None]",
        tick: Callable[[], None] | None = None,
    ) -> "Iterator[tuple[T, Any]]":
        from distributed import as_completed

        with self._scheduler_needed():
            client.wait_for_workers(1)
            limit = _IN_FLIGHT * max(1, sum(client.nthreads().values()))
        items = iter(items)
        running: dict[Any, T] = {}
        finished = as_completed()

        def submitted(item: T) -> Any:
            call = cloudpickle.dumps((function, item))
            with self._scheduler_needed():
                return client.submit(_in_child, call, allowed(item), self._kind, pure=False)

        def outcome(future: Any) -> Any:
            with self._scheduler_needed():
                return _outcome(future)

        def submit(count: int) -> None:
            for item in islice(items, count):
                future = submitted(item)
                running[future] = item
                finished.add(future)

        # A worker that dies also loses finished results that were not fetched yet. Run alone, only an item that kills its process
        # is lost, and one that lacked memory beside others succeeds.
        again: list[T] = []
        submit(limit)
        while running:
            _wait(finished.has_ready, tick)
            future = next(finished, None)
            if future is None:
                break
            item = running.pop(future)
            result = outcome(future)
            submit(1)
            if isinstance(result, Lost) and result.reason == "worker_died":
                logger.warning("a process ended (%s); what it worked on is done again at the end", result.detail)
                again.append(item)
            else:
                yield item, result
        for item in again:
            future = submitted(item)
            _wait(future.done, tick)
            yield item, outcome(future)

    @contextmanager
    def _scheduler_needed(self) -> Iterator[None]:
        """For calls of Dask alone: turn the loss of a scheduler into our error."""
        from distributed.client import ClosedClientError, FutureCancelledError

        try:
            yield
        except (ClosedClientError, FutureCancelledError, OSError) as error:
            if self._local:
                raise
            raise SchedulerError(
                f"{self._runner.place} (runner {self._runner.name}) was lost: it ended, was started again, or the network failed. "
                "What is committed stays. See that it runs, then run again."
            ) from error


# Of a Dask worker: its processes by the pool that they work for and the worker's thread, and the pools that have ended.
_children: dict[tuple[str, int], Child] = {}
_ended: set[str] = set()
_changing = threading.Lock()


@dataclass(frozen=True)
class _Kind:
    """What the processes beside the workers of a pool are.

    Attributes:
        token: of the pool.
        one_thread, sharing: as of `Child`.
    """

    token: str
    one_thread: bool
    sharing: int


def _in_child(call: bytes, allowance: Allowance | None, kind: _Kind) -> Any:
    """In a Dask worker: do the work in the process beside it."""
    key = kind.token, threading.get_ident()
    with _changing:
        if kind.token in _ended:  # the item had waited for the one that was ended with its pool
            return Lost("worker_died", "its pool has ended")
        if key not in _children:
            _children[key] = Child(one_thread=kind.one_thread, sharing=kind.sharing)
        child = _children[key]
    return child.run(call, allowance)


def _end_children(token: str) -> None:
    """In a Dask worker: end the processes that work, or have worked, for a pool, with what they have in memory."""
    with _changing:
        _ended.add(token)
        mine = [_children.pop(key) for key in list(_children) if key[0] == token]
    for child in mine:
        child.kill()


def _wait(ready: Callable[[], bool], tick: Callable[[], None] | None) -> None:
    """Wait in this thread until something is ready, with a tick now and then; without a tick, whoever asks next waits."""
    if tick is None:
        return
    last = time.monotonic()
    while not ready():
        time.sleep(0.05)
        if time.monotonic() - last >= _TICK_S:
            tick()
            last = time.monotonic()


def _outcome(future: Any) -> Any:
    """Wait for one future: its value, or `Lost`."""
    error = future.exception()
    result = future.result() if error is None else None
    future.release()
    if error is None:
        return result
    reason = "worker_died" if type(error).__name__ == "KilledWorker" else "failed"
    return Lost(reason, type(error).__name__, traceback="".join(format_exception(error)))


def _kill_workers(client: Any) -> None:
    """End local workers at once, when the run has failed or was interrupted: nobody waits for what they do."""
    for nanny in getattr(client.cluster, "workers", {}).values():
        process = getattr(nanny, "process", None)
        if process is not None and process.pid is not None:
            nanny.auto_restart = False
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process.pid).kill()
