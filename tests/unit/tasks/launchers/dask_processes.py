"""A real Dask scheduler and workers, each a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity.location import REPOSITORY
from tests.processes import wait_for


@dataclass
class Cluster:
    """A scheduler, and workers by host.

    Attributes:
        address: of the scheduler.
        workers: processes by host.
    """

    address: str
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)


@contextmanager
def dask_cluster(
    folder: Path, hosts: Sequence[str], prefixes: Sequence[Sequence[str]] = (), scheduler_host: str = "127.0.0.1"
) -> Iterator[Cluster]:
    """Start a scheduler and one worker per host; all end with the block.

    Args:
        folder: for logs.
        hosts: addresses at which workers listen.
        prefixes: words before each worker's command, such as those of `ip netns exec`.
        scheduler_host: address of the scheduler.
    """
    with ExitStack() as stack:

        def start(name: str, words: Sequence[str]) -> "subprocess.Popen[bytes]":
            with (folder / f"{name}.log").open("wb") as log:
                environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        dask = [sys.executable, "-m", "dask"]
        start("scheduler", [*dask, "scheduler", "--host", scheduler_host, "--port", "0", "--no-dashboard", "--no-show"])
        found: list[str] = []

        def answers() -> bool:
            found[:] = re.findall(r"Scheduler at:\s+(tcp://\S+)", (folder / "scheduler.log").read_text())
            return bool(found)

        wait_for(answers)
        cluster = Cluster(found[0])
        options = ("--nthreads", "2", "--no-nanny", "--no-dashboard")
        for number, host in enumerate(hosts):
            prefix = prefixes[number] if prefixes else ()
            words = [*prefix, *dask, "worker", cluster.address, "--host", host, "--name", f"w{number}", *options]
            cluster.workers[host] = start(f"worker-{number}", words)
        log = folder / "scheduler.log"
        wait_for(lambda: log.read_text().count("Register worker") >= len(hosts))
        yield cluster
