"""The interface of a launcher, the table of launchers, and how a job is run with one.

A launcher starts one node process on each node (`tasks.run.launchers.node`), which starts and watches the ranks. Launcher, node
processes and ranks share one folder. In it the launching process keeps a heartbeat: node processes that no longer see it change
end themselves, so that nothing outlives a launcher that was killed.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prdit_models.registry import Registry
from storage.errors import UserError
from storage.files import naming_path, write_text_atomic
from tasks.run.launchers.order import BEAT, ORDER, STOP, STORE, Order, numbered

if TYPE_CHECKING:
    from tasks.run.launchers.config import LauncherConfig

LOOK_S = 0.5
STOP_S = 75.0  # for ranks to save and end; node processes kill them a little earlier
_BEAT_S = 2.0
logger = logging.getLogger("prdit.launch")
Watch = Callable[[], None]


class LauncherError(UserError, RuntimeError):
    """A job cannot be started, or ended in a way that another start would not help.

    Attributes:
        detail: what is wrong.
        remedy: what to do about it.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail} {remedy}")
        self.detail = detail
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["LauncherError"], tuple[str, str]]:
        return type(self), (self.detail, self.remedy)


@dataclass(frozen=True)
class Job:
    """What every rank runs: `python -m MODULE ARGUMENTS`.

    Attributes:
        name: for logs and the queue, such as "train-local".
        module: of the ranks.
        arguments: of the module.
        folder: shared by all nodes; it holds logs, heartbeat and stop file.
        token: number of this launch. It names its files, so that those of an older launch are never read.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    folder: Path
    token: int


class Launcher(Protocol):
    """One way to start node processes. One object per launcher; what differs between jobs is passed in.

    Attributes:
        settings: frozen dataclass of its settings.
    """

    settings: type

    def ranks(self, config: "LauncherConfig") -> int:
        """Processes on each node where the configuration does not say."""

    def check(self, config: "LauncherConfig") -> None:
        """Refuse what cannot run, before anything is written.

        Raises: LauncherError: a program or scheduler is missing, or there are more ranks than devices.
        """

    def run(self, job: Job, config: "LauncherConfig", watch: Watch) -> None:
        """Start a job; return when all its node processes have ended, however they ended.

        Args:
            job: what to run.
            config: where.
            watch: called every 0.5 s. Whatever it raises (KeyboardInterrupt, Prefect's TerminationSignal) stops the job first:
                ranks get SIGTERM and up to `STOP_S` to save, then are killed; then the exception goes on.

        Raises: LauncherError: the job could not be started, or another start would not help.
        """


LAUNCHERS: Registry[Launcher] = Registry(
    "launcher",
    "prdit.launchers",
    {
        "local": "tasks.run.launchers.local:LAUNCHER",
        "dask": "tasks.run.launchers.dask:LAUNCHER",
        "slurm": "tasks.run.launchers.slurm:LAUNCHER",
    },
    needs=("settings", "ranks", "check", "run"),
)


def run_job(job: Job, config: "LauncherConfig", watch: Watch) -> None:
    """Run a job with the configured launcher, as its `run`, and keep its heartbeat meanwhile.

    Node processes that an older launch left in the folder are asked to stop.
    """
    _stop_older(job)
    with _heartbeat(job.folder / numbered(BEAT, job.token)):
        LAUNCHERS[config.name].run(job, config, watch)
    _remove(job.folder, lambda token: token <= job.token)


def write_order(job: Job, config: "LauncherConfig", nodes: int) -> Path:
    """Write what the node processes of a job on so many nodes are told; the file's path."""
    order = Order(
        name=job.name,
        module=job.module,
        arguments=job.arguments,
        folder=str(job.folder),
        token=job.token,
        nodes=nodes,
        min_nodes=min(config.fewest_nodes, nodes),
        ranks=config.ranks,
        max_restarts=config.max_restarts,
        timeout_s=config.timeout_s,
    )
    path = job.folder / numbered(ORDER, job.token)
    write_text_atomic(path, order.text())
    return path


def request_stop(job: Job) -> None:
    """Ask all node processes of a job to stop their ranks with SIGTERM, wherever they run."""
    path = job.folder / numbered(STOP, job.token)
    with naming_path(path):
        path.touch()


def check_devices(ranks: int, devices: int, where: str) -> None:
    """Refuse more ranks than a node has GPUs; without any they compute on CPUs, where the number is free.

    Raises: LauncherError: there are more ranks.
    """
    if 0 < devices < ranks:
        raise LauncherError(
            f"launcher.ranks_per_node is {ranks}, but {where} has {devices} GPU{'s' if devices > 1 else ''}.",
            f"Set it to {devices} or less, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to compute on CPUs.",
        )


def _stop_older(job: Job) -> None:
    for _, token in _files(job.folder, BEAT):
        if token < job.token:
            (job.folder / numbered(STOP, token)).touch()
    _remove(job.folder, lambda token: token < job.token, kinds=(BEAT, ORDER, STORE))


def _files(folder: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Files of a kind in the folder with their launch's number."""
    for path in folder.glob(f"{kind}-*"):
        number = path.name.removeprefix(f"{kind}-").split(".")[0].split("-")[0]
        if number.isdigit():
            yield path, int(number)


def _remove(folder: Path, which: Callable[[int], bool], kinds: tuple[str, ...] = (BEAT, ORDER, STORE, STOP)) -> None:
    for kind in kinds:
        for path, token in list(_files(folder, kind)):
            if which(token):
                with suppress(OSError):
                    path.unlink()


@contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Touch a file every 2 s from a thread, so that what waits in this thread does not stop it."""
    with naming_path(path):
        path.touch()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            try:
                os.utime(path)
            except OSError as error:
                logger.warning("the heartbeat %s cannot be touched: %s", path, error)

    thread = threading.Thread(target=beat, name="prdit-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
