"""Runners: where the work of ingest, sample and evaluate is done (key `runner` of a configuration)."""

import shutil
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BeforeValidator, PlainSerializer

from prdit_models.registry import Registry
from tasks.run import clusters
from tasks.run.clusters import RunnerError
from tasks.run.settings import named_settings, named_values

_SUBMIT_S = 60.0  # a busy Slurm answers late
_PROTOCOLS = ("tcp", "tls", "ws", "wss")


class Runner(Protocol):
    """Where work is done: a frozen dataclass whose fields are its settings.

    Attributes:
        name: by which it is registered.
        place: the scheduler in words, for messages.
    """

    name: ClassVar[str]

    @property
    def place(self) -> str:
        """The scheduler in words, for messages."""

    def check(self) -> None:
        """Refuse, before anything is written, what cannot work. Raises: RunnerError."""

    def on_this_machine(self, one_thread: bool) -> "Local | None":
        """How a kind of work is done by processes of this machine; None: by the workers of `cluster`.

        Args:
            one_thread: whether an item works with one thread and no GPU, else with all that its process may use.
        """

    def cluster(self, num_workers: int, one_thread: bool) -> AbstractContextManager[Any]:
        """A client of the cluster, which ends with the block where this started it.

        Args:
            num_workers: processes to start on this machine; other clusters have their own number.
            one_thread: as above.
        """


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        num_workers: processes; what uses all threads is shared among them. Default: by cores and memory for work of one thread, and
            this process alone for work that uses all threads or a GPU. 1: this process, to debug; limits of time are not kept then,
            and an item that crashes it ends the run.
    """

    name: ClassVar[str] = "local"
    place: ClassVar[str] = "this machine"

    num_workers: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("num_workers", self.num_workers)

    def check(self) -> None:
        """Nothing is needed."""

    def on_this_machine(self, one_thread: bool) -> "Local | None":
        """All work is done here."""
        return self if one_thread else Local(self.num_workers or 1)

    def cluster(self, num_workers: int, one_thread: bool) -> AbstractContextManager[Any]:
        """Local workers."""
        return clusters.local_cluster(num_workers)


@dataclass(frozen=True)
class Cuda:
    """The GPUs of this machine, one worker on each (dask-cuda); what needs none is done as by `local`.

    Attributes:
        num_workers: GPUs; default: all that this job may use.
    """

    name: ClassVar[str] = "cuda"
    place: ClassVar[str] = "this machine"

    num_workers: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("num_workers", self.num_workers)

    def check(self) -> None:
        """Raises: RunnerError: no GPU, fewer than were asked for, or no dask-cuda."""
        import torch

        found = torch.cuda.device_count()
        if found < (self.num_workers or 1):
            raise RunnerError(
                f"runner cuda needs {self.num_workers or 'at least 1'} GPU(s), and torch sees {found} here (`prdit doctor` shows "
                "why). Lower runner.num_workers, or use runner local."
            )
        clusters.import_dask_cuda()

    def on_this_machine(self, one_thread: bool) -> Local | None:
        """Work of one thread needs no GPU."""
        return Local() if one_thread else None

    def cluster(self, num_workers: int, one_thread: bool) -> AbstractContextManager[Any]:
        """One worker per GPU."""
        return clusters.cuda_cluster(self.num_workers)


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster, each with one worker (dask-jobqueue); all machines see the same files under the same paths.

    Attributes:
        num_workers: jobs.
        cores: of a job, which does so many items of one thread at once, or one that uses all.
        memory_gb: of a job.
        time_limit: of a job, as Slurm writes times; a job that has ended is submitted again.
        partition, account: Slurm's default where not given.
        interface: network interface by which workers reach this machine, such as ib0; default: that of its name.
        options: further options of sbatch, such as `--gres=gpu:1`.
        log_directory: for what the jobs print.
    """

    name: ClassVar[str] = "slurm"
    place: ClassVar[str] = "Slurm's jobs"

    num_workers: int = 1
    cores: int = 1
    memory_gb: int = 8
    time_limit: str = "01:00:00"
    partition: str | None = None
    account: str | None = None
    interface: str | None = None
    options: tuple[str, ...] = ()
    log_directory: str = ".prdit/slurm"

    def __post_init__(self) -> None:
        for name in ("num_workers", "cores", "memory_gb"):
            _at_least_one(name, getattr(self, name))

    def check(self) -> None:
        """Raises: RunnerError: no dask-jobqueue, no sbatch, or Slurm would not take the jobs."""
        clusters.import_dask_jobqueue()
        for program in ("sbatch", "scancel"):
            if shutil.which(program) is None:
                raise RunnerError(
                    f"runner slurm needs the program {program}, which is not on the PATH. Start prdit on a login node of the "
                    "cluster, or use another runner."
                )
        command = ["sbatch", "--test-only", "--ntasks=1", f"--cpus-per-task={self.cores}", f"--mem={self.memory_gb}G"]
        command += [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(self, name))]
        command += [f"--time={self.time_limit}", *self.options, "--wrap=true"]
        try:
            tried = subprocess.run(command, capture_output=True, text=True, timeout=_SUBMIT_S, check=False)
        except subprocess.TimeoutExpired:
            said = f"no answer within {_SUBMIT_S:.0f} s"
        else:
            said = " ".join(tried.stderr.split()) if tried.returncode else ""
        if said:
            raise RunnerError(
                f"Slurm would not take the jobs of runner slurm: {said}. Correct runner.partition, account, cores, memory_gb, "
                "time_limit or options; `sinfo` shows what there is."
            )

    def on_this_machine(self, one_thread: bool) -> Local | None:
        """A login node does no work."""
        return None

    def cluster(self, num_workers: int, one_thread: bool) -> AbstractContextManager[Any]:
        """The jobs' workers."""
        return clusters.slurm_cluster(
            self.num_workers,
            self.place,
            f"see `squeue --me`, and what they printed in {self.log_directory}",
            queue=self.partition,
            account=self.account,
            job_cpu=self.cores,
            cores=self.cores if one_thread else 1,  # threads of the worker: items at once
            memory=f"{self.memory_gb}GiB",
            walltime=self.time_limit,
            interface=self.interface,
            job_name="prdit",
            job_extra_directives=list(self.options),
            log_directory=self.log_directory,
        )


@dataclass(frozen=True)
class Address:
    """The workers of a Dask scheduler that runs already; all machines see the same files under the same paths.

    Attributes:
        scheduler: its address with its port.
    """

    name: ClassVar[str] = "address"

    scheduler: str

    def __post_init__(self) -> None:
        clusters.check_address(self.scheduler, _PROTOCOLS, assumed="tcp")

    @property
    def place(self) -> str:
        """The scheduler."""
        return f"the Dask scheduler at {self.scheduler}"

    def check(self) -> None:
        """Raises: SchedulerError: none answers."""
        clusters.connected_to(self.scheduler).close()

    def on_this_machine(self, one_thread: bool) -> Local | None:
        """It was named because this machine should not do the work."""
        return None

    def cluster(self, num_workers: int, one_thread: bool) -> AbstractContextManager[Any]:
        """The scheduler's workers."""
        return clusters.running_cluster(
            self.scheduler, self.place, f"start some: dask worker {self.scheduler} --nthreads 1"
        )


RUNNERS: Registry[type[Any]] = Registry(
    "runner",
    "prdit.runners",
    {name: f"tasks.run.runners:{name.capitalize()}" for name in ("local", "cuda", "slurm", "address")},
    needs=("name", "place", "check", "on_this_machine", "cluster"),
)


RunnerSetting = Annotated[
    Any, BeforeValidator(partial(named_settings, RUNNERS, Local.name)), PlainSerializer(named_values)
]


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1")
