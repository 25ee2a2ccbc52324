"""Dask clusters that are started or found for a runner (`tasks.run.runners`); with `tasks.run.fanout` the door of Dask.

Each is a context that yields a client; a cluster that was started ends with its block.
"""

import asyncio
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from storage.errors import UserError
from tasks.run.interrupts import sigint_blocked

_CONNECT_S = 10.0
_STOP_S = 2.0
_LOOK_S = 5.0  # how often a scheduler is asked for its workers
_SAY_EVERY = 6  # looks: what it waits for is said each 30 s
_SETTINGS = {
    # One task at a time per worker: a worker that dies loses no waiting task, and its own is not tried again.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.admin.tick.limit": "1h",
}
_HERE: dict[str, Any] = {
    "threads_per_worker": 1,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",  # a free port; None would still take 8787
    "silence_logs": logging.CRITICAL,
    "memory_limit": 0,  # the system's own limit decides; Dask's would kill workers by an estimate
}
logger = logging.getLogger("prdit.fanout")


class RunnerError(UserError):
    """What a runner needs is missing here: a package, a program, a device, or a queue that takes its jobs."""


class SchedulerError(RunnerError, ConnectionError):
    """The Dask scheduler that was named does not answer, or was lost; the message names its address."""


@contextmanager
def local_cluster(num_workers: int) -> Iterator[Any]:
    """Workers of one thread on this machine."""
    from distributed import LocalCluster

    with _started(lambda: LocalCluster(n_workers=num_workers, processes=True, **_HERE)) as client:
        yield client


@contextmanager
def cuda_cluster(num_workers: int | None) -> Iterator[Any]:
    """A worker per GPU of this machine, which sees only its own. Raises: RunnerError: no dask-cuda."""
    start = import_dask_cuda().LocalCUDACluster
    # device_memory_limit: it would move CuPy's memory to the host; torch has its own.
    with _started(lambda: start(n_workers=num_workers, device_memory_limit=0, **_HERE)) as client:
        yield client


@contextmanager
def slurm_cluster(num_jobs: int, place: str, advice: str, **settings: Any) -> Iterator[Any]:
    """Slurm jobs of one worker, which connect when Slurm starts them; one that has ended is submitted again.

    Args:
        num_jobs: how many.
        place, advice: for the message while none runs.
        settings: of dask-jobqueue's SLURMCluster.
    Raises: RunnerError: no dask-jobqueue.
    """
    start = import_dask_jobqueue().SLURMCluster
    settings |= {
        "processes": 1,
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "worker_extra_args": ["--no-dashboard"],
        # The same code as here, where the site gives jobs another environment too.
        "job_script_prologue": [f"export PYTHONPATH={shlex.quote(os.pathsep.join(filter(None, sys.path)))}"],
        "silence_logs": logging.CRITICAL,
    }
    with _started(lambda: start(**settings)) as client:

        def submit() -> None:
            client.cluster.scale(num_jobs)

        submit()
        with _watched(client, place, advice, submit):
            yield client


@contextmanager
def running_cluster(scheduler: str, place: str, advice: str) -> Iterator[Any]:
    """The cluster of a scheduler that runs already. Raises: SchedulerError: none answers."""
    with _dask_set_up(), connected_to(scheduler) as client, _watched(client, place, advice):
        yield client


def connected_to(scheduler: str) -> Any:
    """A client of a running scheduler. Raises: SchedulerError: none answers."""
    try:
        return client_of(scheduler)
    except ConnectionError as error:
        raise SchedulerError(
            f"no Dask scheduler answers at {scheduler} (runner.scheduler; {error}). Start one there (`dask scheduler`), correct "
            "the address, or use runner local for processes of this machine."
        ) from error


def check_address(scheduler: str, protocols: Collection[str], assumed: str = "") -> None:
    """Refuse what is no address of a scheduler with a port.

    Args:
        scheduler: the address.
        protocols: that may be named in it.
        assumed: protocol of an address that names none; empty: it must.
    Raises: ValueError.
    """
    with suppress(ValueError):  # a port that is no number
        parts = urlsplit(f"{assumed}://{scheduler}" if assumed and "://" not in scheduler else scheduler)
        if parts.scheme in protocols and parts.hostname and parts.port:
            return
    raise ValueError(
        f"scheduler is {scheduler!r}; expected the address of a running Dask scheduler with its port, such as "
        "tcp://10.0.0.1:8786. `dask scheduler` prints it when it starts."
    )


def quieten_dask() -> None:
    """What Dask says of lost connections and workers is said by whoever uses it, in words."""
    import distributed  # noqa: F401  # it sets the level of each of its loggers when it is imported

    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def client_of(scheduler: str, **options: Any) -> Any:
    """A client of a running scheduler, made with these options. Raises: ConnectionError: none answers; says what happened."""
    from distributed import Client

    try:
        # A client that cannot connect waits without end for what speaks something else, and prints tracebacks when it is deleted.
        # In a thread, as that of a notebook runs an event loop already.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _answer(scheduler)).result()
        return Client(scheduler, timeout=_CONNECT_S, **options)
    except Exception as error:  # what a stranger answers may be anything, MemoryError too
        raise ConnectionError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


def import_dask_cuda() -> Any:
    """The package of runner cuda. Raises: RunnerError: it cannot be imported."""
    # It names older versions of Dask than prdit needs, and works with these.
    return _needed(
        "dask_cuda", "cuda", "pip install --no-deps dask-cuda cuda-core cuda-bindings cuda-pathfinder nvidia-ml-py"
    )


def import_dask_jobqueue() -> Any:
    """The package of runner slurm. Raises: RunnerError: it cannot be imported."""
    # When it is imported it sets a handler of SIGINT, which would end this process without a word, and which threads may not set.
    before, signal.signal = signal.signal, lambda signalnum, handler: handler
    try:
        return _needed("dask_jobqueue", "slurm", "pip install dask-jobqueue")
    finally:
        signal.signal = before


def _needed(module: str, runner: str, command: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise RunnerError(
            f"runner {runner} needs the package {module.replace('_', '-')}, which cannot be imported ({error}). Install it with "
            f"`{command}`, or use another runner."
        ) from error


async def _answer(scheduler: str) -> None:
    from distributed.core import rpc

    async with asyncio.timeout(_CONNECT_S), rpc(scheduler, timeout=_CONNECT_S) as server:
        await server.identity(n_workers=0)


@contextmanager
def _dask_set_up() -> Iterator[None]:
    """Dask as prdit uses it: quiet, without stealing, and without limits of memory by an estimate."""
    import dask

    quieten_dask()  # which imports its defaults: they must be there before they are changed
    with dask.config.set(_SETTINGS):
        yield


@contextmanager
def _started(start: Callable[[], Any]) -> Iterator[Any]:
    """A client of a cluster that is started here."""
    from distributed import Client

    with _dask_set_up(), ExitStack() as stack:
        with sigint_blocked():
            cluster = stack.enter_context(start())
            client = stack.enter_context(Client(cluster))
        yield client


@contextmanager
def _watched(client: Any, place: str, advice: str, again: Callable[[], None] | None = None) -> Iterator[None]:
    """Warn now and then while a cluster has no worker, as nothing happens then.

    Args:
        client: of the cluster.
        place, advice: for the message.
        again: called each time; starts what has ended.
    """
    ended = threading.Event()

    def watch() -> None:
        absent = 0
        with suppress(Exception):  # a scheduler that is lost is an error of whoever waits for a result
            while not ended.wait(_LOOK_S):
                if again:
                    again()
                absent = 0 if client.nthreads() else absent + 1
                if absent % _SAY_EVERY == 1:
                    logger.warning("no worker is connected to %s, waiting; %s", place, advice)

    watcher = threading.Thread(target=watch, name="prdit-workers", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(_STOP_S)  # or it would start again what is about to be ended
