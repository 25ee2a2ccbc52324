"""The launcher `dask`: one task on each of several hosts of a running Dask scheduler starts that host's node process.

Any scheduler will do: of dask-cuda, of dask-jobqueue, or started by hand. The task starts the node process as a subprocess and
waits for it; nothing is computed in the worker, whose memory and heartbeat Dask watches.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.run.clusters import check_address, client_of, quieten_dask
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import (
    LOOK_S,
    STOP_S,
    Job,
    LauncherError,
    Watch,
    check_devices,
    request_stop,
    write_order,
)
from tasks.run.launchers.process import start_node, stop_node

_PROTOCOLS = ("tcp", "tls", "ws", "wss", "ucx")
_CONNECT_S = 10.0
_PROBE_S = 120.0  # a worker may be busy, and imports torch to count its GPUs
_PATIENCE_S = 30.0  # with a scheduler that does not answer; the ranks go on meanwhile
_WORKERS_S = 2.0  # how often the scheduler is asked for its workers
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
logger = logging.getLogger("prdit.launch")


@dataclass(frozen=True)
class DaskSettings:
    """Settings of the launcher `dask`.

    Attributes:
        scheduler: address of the running scheduler, such as tcp://10.0.0.1:8786.
        wait_s: how long hosts are waited for where there are too few, as workers come one by one and lost ones come back.
    """

    scheduler: str
    wait_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        check_address(self.scheduler, _PROTOCOLS)


class DaskLauncher:
    """One pinned task per host."""

    settings = DaskSettings

    def ranks(self, config: LauncherConfig) -> int:
        """One: what GPUs the hosts have is known when a job starts, and says so where there are more."""
        return 1

    def check(self, config: LauncherConfig) -> None:
        """Refuse a scheduler that does not answer, too few hosts, hosts without this prdit or with fewer GPUs than ranks."""
        with _client(config.settings.scheduler) as client:
            chosen = _choose(client, config, lambda: None)
            probes = {host: _submit(client, worker, _num_gpus) for host, worker in chosen.items()}
            for host, probe in probes.items():
                gpus = _result(probe, host, _PROBE_S)
                check_devices(config.ranks, gpus, f"host {host}")
                if gpus > config.ranks:
                    logger.warning("host %s has %d GPUs, but launcher.ranks_per_node is %d", host, gpus, config.ranks)

    def run(self, job: Job, config: LauncherConfig, watch: Watch) -> None:
        """As every launcher."""
        with _client(config.settings.scheduler) as client:
            chosen = _choose(client, config, watch)
            order = write_order(job, config, len(chosen))
            first = next(iter(chosen))
            logger.info("%s on %d hosts: %s", job.name, len(chosen), ", ".join(chosen))
            nodes = [
                _Node(host, worker, _submit(client, worker, run_node, str(order), number, first))
                for number, (host, worker) in enumerate(chosen.items())
            ]
            try:
                _follow(client, job, nodes, config.fewest_nodes, watch)
            except BaseException:
                logger.warning("stopping %s on %d hosts; it saves its state first", job.name, len(nodes))
                request_stop(job)
                _await_end(client, nodes)
                raise
            for node in nodes:
                logger.info("%s: node process on %s: %s", job.name, node.host, node.ending or "lost")


def run_node(order: str, node: int, host: str) -> int:
    """In a Dask worker: start the node process and wait for its end; its exit code.

    Raises: LauncherError: the job's folder is not seen here.
    """
    path = Path(order)
    if not path.is_file():
        raise LauncherError(
            f"{socket.gethostname()} does not see {path.parent}.",
            "Put workdir on a file system that all hosts share, at the same path (docs/clusters.md).",
        )
    process = start_node(path, node=node, host=host)
    try:
        while process.poll() is None:
            time.sleep(LOOK_S)
    except BaseException:
        stop_node(process, STOP_S)
        raise
    return process.returncode


@dataclass
class _Node:
    host: str
    worker: str
    future: Any
    ending: str | None = None  # how it ended
    failed: bool = False

    def look(self, workers: set[str]) -> None:
        """Find out whether it has ended, or its worker has."""
        if self.ending is None and self.future.done():
            if self.future.status == "finished":
                code = self.future.result()
                self.ending, self.failed = f"exit code {code}", code != 0
            elif self.future.status == "error" and isinstance(error := self.future.exception(), LauncherError):
                self.ending, self.failed = str(error), True
                raise error
            else:
                self.ending, self.failed = f"lost ({self.future.status})", True
        elif self.ending is None and self.worker not in workers:
            self.ending, self.failed = "lost with its Dask worker", True


def _follow(client: Any, job: Job, nodes: list[_Node], fewest: int, watch: Watch) -> None:
    """Wait until all node processes have ended; those that are too few to go on are stopped."""
    asked, stopping_since = 0.0, 0.0
    heard, workers = time.monotonic(), {node.worker for node in nodes}
    while any(node.ending is None for node in nodes):
        watch()
        if time.monotonic() - asked > _WORKERS_S:
            asked = time.monotonic()
            try:
                workers, heard = _addresses(client), time.monotonic()
            except Exception as error:
                if time.monotonic() - heard > _PATIENCE_S:
                    raise LauncherError(
                        f"the Dask scheduler at {client.scheduler.address} was lost ({type(error).__name__}).",
                        "The ranks save their state and end. See that the scheduler runs, then run again.",
                    ) from error
        for node in nodes:
            node.look(workers)
        # Node 0 has the store without which no group forms. Where the others are enough without a lost one, they go on.
        lost = [node for node in nodes if node.failed]
        if lost and not stopping_since and (nodes[0].failed or len(nodes) - len(lost) < fewest):
            logger.warning("%s: %s on %s; the other nodes are stopped", job.name, lost[0].ending, lost[0].host)
            request_stop(job)
            stopping_since = time.monotonic()
        if stopping_since and time.monotonic() - stopping_since > STOP_S:
            return
        time.sleep(LOOK_S)


def _await_end(client: Any, nodes: list[_Node]) -> None:
    """Wait until all have ended, as far as the scheduler can say; the first reason to stop counts, not what is found now."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline and any(node.ending is None for node in nodes):
        try:
            workers = _addresses(client)
        except Exception:
            logger.warning("the Dask scheduler does not answer: the ranks end, but nobody sees it", exc_info=True)
            return
        for node in nodes:
            with suppress(LauncherError):
                node.look(workers)
        time.sleep(LOOK_S)


def _choose(client: Any, config: LauncherConfig, watch: Watch) -> dict[str, str]:
    """Address of one worker by host, of as many hosts as are wanted and there.

    Raises: LauncherError: there are too few hosts, and no others come.
    """
    fewest, began = config.fewest_nodes, time.monotonic()
    while len(hosts := _by_host(client)) < fewest and time.monotonic() - began < config.settings.wait_s:
        watch()
        time.sleep(LOOK_S)
    if len(hosts) < fewest:
        found = f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}" + (f" ({', '.join(hosts)})" if hosts else "")
        raise LauncherError(
            f"launcher asks for {fewest} nodes, but the workers of the Dask scheduler at {config.settings.scheduler} are on "
            f"{found}.",
            "Start a worker on each host (`dask worker`, `dask cuda worker`), or ask for fewer nodes.",
        )
    return dict(list(hosts.items())[: config.nodes])


def _by_host(client: Any) -> dict[str, str]:
    hosts: dict[str, str] = {}
    for worker in sorted(_addresses(client)):
        hosts.setdefault(str(urlsplit(worker).hostname), worker)
    return hosts


def _addresses(client: Any) -> set[str]:
    """Addresses of the scheduler's workers."""

    async def ask() -> Any:
        return await asyncio.wait_for(client.scheduler.identity(n_workers=-1), _CONNECT_S)

    return set(client.sync(ask)["workers"])


def _submit(client: Any, worker: str, function: Any, *arguments: Any) -> Any:
    return client.submit(function, *arguments, workers=[worker], allow_other_workers=False, pure=False, retries=0)


def _result(future: Any, host: str, timeout_s: float) -> Any:
    try:
        return future.result(timeout=timeout_s)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise LauncherError(
            f"the Dask worker on {host} cannot be used ({what}).",
            "It must be idle and have the same prdit and Python as this process (docs/clusters.md).",
        ) from error


def _num_gpus() -> int:
    """In a Dask worker: GPUs of its host that its processes may use, counted in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=True, timeout=_PROBE_S
    )
    return int(done.stdout)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A client of a running scheduler.

    Raises: LauncherError: none answers.
    """
    quieten_dask()
    try:
        client = client_of(address, set_as_default=False)
    except ConnectionError as error:
        raise LauncherError(
            f"no Dask scheduler answers at {address} (launcher.settings.scheduler; {error}).",
            "Start one there (`dask scheduler`), correct the address, or use another launcher.",
        ) from error
    with client:
        yield client


LAUNCHER = DaskLauncher()
