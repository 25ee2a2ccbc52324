"""A real Slurm of several nodes on this machine: controller, one slurmd per node, munge; all end with the block.

Needs root and Debian's packages slurm-wlm and munge. Nodes n1, n2, … share this machine's cores; none confines its jobs.
A requeued job starts again after some seconds (cred_expire) instead of two minutes.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.ports import free_ports

PROGRAMS = ("sbatch", "srun", "slurmctld", "slurmd", "munged")
_PACKAGES = "slurm-wlm munge"
_START_S = 180.0
_CONFIGURATION = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=30
MpiDefault=none
SwitchType=switch/none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=closed Nodes=ALL State=DOWN
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs.

    Attributes:
        configuration: file that SLURM_CONF names.
        nodes: n1, n2, … so many.
    """

    configuration: Path
    nodes: int

    def command(self, *words: str) -> str:
        """Output of one of Slurm's commands."""
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=_START_S, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait or run."""
        return self.command("squeue", "-h", "-o", "%A").split()

    def set_down(self, node: str) -> None:
        """Take a node away from the job that runs there."""
        self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def await_idle(self) -> None:
        """Give back nodes that are down, and wait until all have nothing to do."""
        deadline = time.monotonic() + _START_S
        while (states := self._states()) != {f"n{number}": "idle" for number in range(1, self.nodes + 1)}:
            assert time.monotonic() < deadline, f"nodes are {states}"
            for node, state in states.items():
                if state.startswith("down"):
                    with suppress(AssertionError):  # it has come back by itself meanwhile
                        self.command("scontrol", "update", f"NodeName={node}", "State=RESUME")
            time.sleep(0.3)

    def _states(self) -> dict[str, str]:
        lines = self.command("sinfo", "-h", "-p", "p", "-N", "-o", "%N %t").splitlines()
        return dict(line.split() for line in lines)


def missing() -> str:
    """Why no Slurm can be started here; "" where one can."""
    if programs := [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return f"not on PATH: {', '.join(programs)} (Debian packages {_PACKAGES})"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root"


def skip_without_slurm() -> None:
    """Skip a test where there is no Slurm; PRDIT_REQUIRE_SLURM=1 makes that a failure."""
    if reason := missing():
        if os.environ.get("PRDIT_REQUIRE_SLURM") == "1":
            pytest.fail(f"PRDIT_REQUIRE_SLURM=1 but {reason}")
        pytest.skip(reason)


@contextmanager
def slurm_cluster(folder: Path, nodes: int = 2) -> Iterator[Slurm]:
    """Start a cluster; its state is in a folder, and SLURM_CONF names it within the block.

    Args:
        folder: an empty folder.
        nodes: number of nodes.
    """
    port, first = free_ports(), free_ports(nodes)
    configuration = folder / "slurm.conf"
    for name in ("ctld", "munge", *(f"dn{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir()
    values = {"host": socket.gethostname(), "folder": folder, "port": port, "nodes": nodes}
    configuration.write_text(_CONFIGURATION.format(**values, first=first, last=first + nodes - 1))
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("SLURM_CONF", str(configuration))
        _start_munge(folder / "munge", stack)
        slurm = Slurm(configuration, nodes)
        stack.callback(_end_all, folder)
        _start(["slurmctld", "-D"], folder / "ctld.out", stack)
        for number in range(1, nodes + 1):
            _start(["slurmd", "-D", "-N", f"n{number}"], folder / f"d{number}.out", stack)
        slurm.await_idle()
        yield slurm
        with suppress(AssertionError):
            for job in slurm.jobs():
                slurm.command("scancel", job)
            slurm.await_idle()


def _start_munge(folder: Path, stack: ExitStack) -> None:
    """A munge of our own, by root, so that no system folder is written."""
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)
    options = ["--key-file", "--socket", "--pid-file", "--log-file", "--seed-file"]
    files = ["key", "socket", "pid", "log", "seed"]
    named = [f"{option}={folder / file}" for option, file in zip(options, files, strict=True)]
    _start(["munged", "--foreground", "--force", *named], folder / "out", stack)
    deadline = time.monotonic() + _START_S
    while not (folder / "socket").exists():
        assert time.monotonic() < deadline, (folder / "out").read_text()
        time.sleep(0.1)


def _start(words: list[str], log: Path, stack: ExitStack) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _end_all(folder: Path) -> None:
    """End what the daemons left of jobs: slurmstepd and what it started have the configuration in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            known = process.environ()
            ours = known.get("SLURM_CONF") == str(folder / "slurm.conf")
            if ours and (process.name() == "slurmstepd" or "SLURM_JOB_ID" in known):
                process.kill()
