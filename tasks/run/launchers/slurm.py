"""The launcher `slurm`: one batch job whose nodes each run a node process.

A job that nears its time limit gets a signal, lets its ranks save, and requeues itself; one whose node fails is requeued by Slurm.
This process follows it through all of that, by job id.
"""

import logging
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from storage.files import write_json_atomic
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
from tasks.run.launchers.order import STOP, STORE, numbered
from tasks.run.launchers.process import node_environment, python_module

_PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
_ASK_S = 2.0  # how often the controller is asked for the job's state
_ANSWER_S = 60.0
_SAY_S = 300.0  # how often an unchanged reason to wait, or a controller that does not answer, is said again
_TAIL_S = 120  # after one node process has ended, for those of a group that cannot go on without it
_KILL_S = 60.0  # for a cancelled job to end: Slurm's KillWait, and its epilogue
_JOB_FILE = "slurm-job"
_ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
        *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
    }
)
# Reasons of a waiting job that no time will change (squeue(1), JOB REASON CODES). PartitionNodeLimit is none: it is also said
# of nodes that are down for now.
_NEVER = (
    "held",
    "badconstraints",
    "invalid",
    "accountnotallowed",
    "qosnotallowed",
    "partitiontimelimit",
    "partitionconfig",
    "dependencyneversatisfied",
    "perjob",
)
logger = logging.getLogger("prdit.launch")


@dataclass(frozen=True)
class _Submitted:
    """What is kept of a job while it runs: its number, and the launch that it is of."""

    job: str
    token: int


@dataclass(frozen=True)
class SlurmSettings:
    """Settings of the launcher `slurm`; what is not set is the cluster's default.

    Attributes:
        partition, account, qos: of the job.
        time_limit: as sbatch takes it, such as 1-00:00:00; a job that reaches it requeues itself.
        gpus_per_node: GPUs asked for on each node; one rank for each where `ranks_per_node` is not set.
        cpus_per_node: cores asked for on each node; sbatch gives a task 1 by default.
        memory: per node, such as 64G.
        signal_s: seconds before the time limit at which ranks are told to save. Slurm may be a minute early.
        options: further options of sbatch, one per item, such as --constraint=a100.
        setup: lines of shell that run before the node processes, such as `module load cuda`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    memory: str | None = None
    signal_s: int = 120
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what sbatch would misread."""
        if self.gpus_per_node < 0 or self.signal_s < 1:
            raise ValueError(
                f"gpus_per_node is {self.gpus_per_node} and signal_s {self.signal_s}; expected at least 0 and 1"
            )
        if wrong := [option for option in self.options if not option.startswith("-")]:
            raise ValueError(f"options has {wrong[0]!r}; expected options of sbatch such as --constraint=a100")


class SlurmLauncher:
    """One batch job."""

    settings = SlurmSettings

    def ranks(self, config: LauncherConfig) -> int:
        """One per GPU that is asked for; 1 without."""
        return config.settings.gpus_per_node or 1

    def check(self, config: LauncherConfig) -> None:
        """Refuse missing programs, more ranks than GPUs, and what sbatch refuses (partition, limits, account)."""
        if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
            raise LauncherError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH.",
                "Run this where Slurm's commands are (a login node), load Slurm's module, or use another launcher.",
            )
        check_devices(config.ranks, config.settings.gpus_per_node, "a node of launcher.settings")
        _sbatch("#!/bin/bash\nexit 0\n", ["--test-only", *_options("prdit-check", config)])

    def run(self, job: Job, config: LauncherConfig, watch: Watch) -> None:
        """As every launcher; also raises LauncherError for a job that was cancelled by hand, is held, or cannot start."""
        _end_older(job.folder)
        order = write_order(job, config, config.nodes)
        log = job.folder / "slurm-%j.log"
        words = [*_options(job.name, config), f"--output={log}", "--parsable"]
        number = _sbatch(_script(job, order, config), words).split(";")[0]
        follower = _Follower(number)
        try:
            write_json_atomic(job.folder / _JOB_FILE, asdict(_Submitted(number, job.token)))
            logger.info("%s is Slurm job %s; its log is %s", job.name, number, str(log).replace("%j", number))
            while not follower.ended:
                watch()
                follower.look()
                time.sleep(LOOK_S)
        except BaseException:
            _stop(job, follower)
            raise
        finally:
            if follower.ended:
                (job.folder / _JOB_FILE).unlink(missing_ok=True)
        _explain_end(job, follower)


class _Follower:
    """A job's state, as the controller says it from time to time."""

    def __init__(self, number: str) -> None:
        self.number = number
        self.state, self.reason = "PENDING", ""
        self._asked = self._said = time.monotonic() - _SAY_S

    @property
    def ended(self) -> bool:
        """Whether nothing of the job runs or will run."""
        return self.state in _ENDED

    def look(self, *, now: bool = False) -> None:
        """Ask for the state where it was not asked lately.

        Raises: LauncherError: the job waits for what will not happen.
        """
        if not now and time.monotonic() - self._asked < _ASK_S:
            return
        self._asked = time.monotonic()
        before = (self.state, self.reason)
        self._ask()
        if (self.state, self.reason) != before or (self.state == "PENDING" and self._is_time_to_say()):
            self._said = time.monotonic()
            why = f" ({self.reason})" if self.reason not in ("", "None") else ""
            logger.info("Slurm job %s: %s%s", self.number, self.state, why)
        plain = self.reason.lower().replace(" ", "")
        if self.state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT") and any(word in plain for word in _NEVER):
            raise LauncherError(
                f"Slurm job {self.number} will not start: {self.reason}.",
                f"`scontrol show job {self.number}` says more; correct launcher.settings, or ask who runs the cluster. The job "
                "is cancelled.",
            )

    def _ask(self) -> None:
        done = _command(["squeue", "-h", "-j", self.number, "--states=all", "-o", "%T|%r"])
        if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
            self.state, _, self.reason = lines[0].partition("|")
        elif done.returncode == 0 or "Invalid job id" in done.stderr:
            # The controller forgets jobs some minutes after their end; accounting remembers them where there is one.
            remembered = _command(["sacct", "-n", "-X", "-P", "-j", self.number, "-o", "State"])
            self.state = (remembered.stdout.split() or ["COMPLETED"])[0] if remembered.returncode == 0 else "COMPLETED"
            self.reason = ""
        elif self._is_time_to_say():
            self._said = time.monotonic()
            logger.warning("Slurm's controller does not answer: %s", done.stderr.strip())

    def _is_time_to_say(self) -> bool:
        return time.monotonic() - self._said >= _SAY_S


def _options(name: str, config: LauncherConfig) -> list[str]:
    """Options of sbatch that the job needs, then those of the settings."""
    settings: SlurmSettings = config.settings
    nodes = f"{config.fewest_nodes}-{config.nodes}" if config.elastic else str(config.nodes)
    given = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "time": settings.time_limit,
        "gpus-per-node": settings.gpus_per_node or None,
        "cpus-per-task": settings.cpus_per_node,
        "mem": settings.memory,
    }
    return [
        # With a number of tasks, of nodes=2-4 Slurm would give 2.
        *(f"--job-name={name}", f"--nodes={nodes}", "--requeue", "--open-mode=append"),
        *(f"--signal=B:USR1@{settings.signal_s}", "--export=ALL"),
        *(["--no-kill"] if config.elastic else []),
        *(f"--{key}={value}" for key, value in given.items() if value is not None),
        *settings.options,
    ]


def _script(job: Job, order: Path, config: LauncherConfig) -> str:
    """The batch script: start the node processes; at the signal, let ranks save and requeue."""
    settings: SlurmSettings = config.settings
    srun = [
        "srun",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
        *(["--no-kill"] if config.elastic else [f"--wait={_TAIL_S}"]),
    ]
    if settings.cpus_per_node:
        srun.append(f"--cpus-per-task={settings.cpus_per_node}")  # srun does not take it from sbatch
    node = shlex.join([*python_module("tasks.run.launchers.node"), str(order)])
    # Task 0 is on the node that runs this script, whose address srun tells every task.
    task = (
        f'exec {node} --node "$SLURM_PROCID" --host "$SLURM_LAUNCH_NODE_IPADDR" --start "${{SLURM_RESTART_COUNT:-0}}"'
    )
    stop = shlex.quote(str(job.folder / numbered(STOP, job.token)))
    lines = [
        "#!/bin/bash",
        *settings.setup,
        "requeue=",
        """trap 'requeue=1; scancel --quiet --signal=TERM "$SLURM_JOB_ID.0"' USR1""",
        f'{shlex.join(srun)} --ntasks="$SLURM_JOB_NUM_NODES" bash -c {shlex.quote(task)} </dev/null &',
        "srun=$!",
        'while kill -0 "$srun" 2>/dev/null; do wait "$srun"; code=$?; done',
        f'if [ -n "$requeue" ] && [ ! -e {stop} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && sleep 60',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _sbatch(script: str, options: Sequence[str]) -> str:
    """Submit a script; what sbatch says.

    Raises: LauncherError: it refuses.
    """
    # Started within a job, this process has that job's variables, which sbatch would take for options.
    environment = {
        name: value
        for name, value in node_environment().items()
        if name in ("SLURM_CONF", "SLURM_JWT") or not name.startswith(("SLURM_", "SBATCH_"))
    }
    done = _command(["sbatch", *options], script, environment)
    if done.returncode:
        said = " ".join(line.removeprefix("sbatch: error: ").strip() for line in done.stderr.splitlines())
        raise LauncherError(
            f"Slurm does not take the job: {said}",
            "Correct launcher.nodes or launcher.settings (`sinfo` lists partitions, `sacctmgr show assoc` accounts).",
        )
    return done.stdout.strip()


def _command(
    words: Sequence[str], text: str = "", environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one of Slurm's commands; one that does not answer counts as failed."""
    try:
        return subprocess.run(
            words, input=text, env=environment, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(list(words), 1, "", f"{words[0]}: {error}")


def _stop(job: Job, follower: _Follower) -> None:
    """Have the ranks save, then see the job's end; a job that waits is cancelled at once."""
    try:
        with suppress(LauncherError):
            follower.look(now=True)
        if follower.state == "RUNNING":
            logger.warning("stopping Slurm job %s; it saves its state first", follower.number)
            request_stop(job)
            _await_end(follower, STOP_S)
    finally:  # also when the wait is interrupted: whoever asks twice does not want to wait
        if not follower.ended:
            _command(["scancel", "--quiet", follower.number])
            _await_end(follower, _KILL_S)


def _await_end(follower: _Follower, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not follower.ended and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        with suppress(LauncherError):
            follower.look()


def _end_older(folder: Path) -> None:
    """End a job that a launcher which was killed has left.

    Raises: LauncherError: it does not end.
    """
    path = folder / _JOB_FILE
    if not path.is_file():
        return
    try:
        number = TypeAdapter(_Submitted).validate_json(path.read_bytes()).job
    except ValueError as error:
        raise LauncherError(
            f"{path} is damaged, and says no more which Slurm job an earlier launch has left.",
            "Make sure that none of this training runs (`squeue --me`), remove the file, then run again.",
        ) from error
    follower = _Follower(number)
    with suppress(LauncherError):
        follower.look(now=True)
    if not follower.ended:
        logger.warning("Slurm job %s of an earlier launch is ended first; it saves its state", number)
        if follower.state in ("RUNNING", "COMPLETING"):
            _await_end(follower, STOP_S)  # it was asked to stop, by file
        if not follower.ended:
            _command(["scancel", "--quiet", number])
            _await_end(follower, _KILL_S)
        if not follower.ended:
            raise LauncherError(
                f"Slurm job {number} of an earlier launch is {follower.state} and did not end within {_KILL_S:.0f} s.",
                f"Cancel it (`scancel {number}`), wait until `squeue -j {number}` no longer lists it, then run again.",
            )
    path.unlink(missing_ok=True)


def _explain_end(job: Job, follower: _Follower) -> None:
    """Raises: LauncherError: the job's end has a reason that another start would not change."""
    logger.info("%s: Slurm job %s ended: %s", job.name, follower.number, follower.state)
    if follower.state in ("CANCELLED", "REVOKED", "DEADLINE"):
        raise LauncherError(
            f"Slurm job {follower.number} was ended by somebody else ({follower.state}).",
            "Its ranks had the time to save their state: run again to go on from there.",
        )
    if follower.state not in ("COMPLETED", "NODE_FAIL", "PREEMPTED") and not _node_started(job):
        log = job.folder / f"slurm-{follower.number}.log"
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-10:] if log.is_file() else []
        raise LauncherError(
            f"Slurm job {follower.number} ended ({follower.state}) before a node process started. {log} ends with:\n"
            + "\n".join(last)
            + "\n",
            "This Python and the job's folder must be at the same path on every node (docs/clusters.md).",
        )


def _node_started(job: Job) -> bool:
    return any(job.folder.glob(f"{numbered(STORE, job.token)}*"))


LAUNCHER = SlurmLauncher()
