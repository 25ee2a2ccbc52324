"""Two hosts (network namespaces) train together over Dask: one rank is killed, one host is cut off and comes back.

`python -m tests.drills.lost_hosts [ROUNDS]`; one JSON object on stdout. Ranks are toys that count steps together, two on each host;
what is measured is the time until the count goes on.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import request_stop, run_job
from tests.namespaces import Host, hosts
from tests.processes import wait_for
from tests.unit.tasks.launchers.dask_processes import dask_cluster
from tests.unit.tasks.launchers.jobs import Toys

TIMEOUT_S = 20.0
BACK_S = 60.0


def run(root: Path, rounds: int = 1, *, both: bool = True, back_s: float = BACK_S) -> dict[str, Any]:
    """Seconds until the group is back after each loss, per round.

    Args:
        root: an empty folder.
        rounds: how often it is done.
        both: also with a job that cannot go on with one host.
        back_s: seconds after which a group must be back.
    Raises: AssertionError: a group was not back in time, or something ran on.
    """
    return {"timeout_s": TIMEOUT_S, "rounds": [_round(root / str(number), both, back_s) for number in range(rounds)]}


def _round(root: Path, both: bool, back_s: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    with hosts(2) as (here, pair):
        addresses, prefixes = [host.address for host in pair], [host.prefix for host in pair]
        for fewest, part in ((1, _losses), (2, _fixed))[: 2 if both else 1]:
            toys = Toys(root / part.__name__)
            (toys.root / "dask").mkdir(parents=True)
            with dask_cluster(toys.root / "dask", addresses, prefixes, here) as cluster:
                settings = {"scheduler": cluster.address}
                config = LauncherConfig(
                    name="dask", nodes=2, min_nodes=fewest, ranks_per_node=2, timeout_s=TIMEOUT_S, settings=settings
                )
                figures |= part(toys, config, pair[1], back_s)
    return figures


def _losses(toys: Toys, config: LauncherConfig, host: Host, back_s: float) -> dict[str, float]:
    """A job that goes on with one host: a rank is killed, the second host is cut off, and joins again."""
    job = toys.job(10_000_000)
    figures: dict[str, float] = {}
    failed: list[BaseException] = []

    def script() -> None:
        try:
            wait_for(lambda: toys.step() > 20)
            victim = list(toys.started())[-1]
            os.kill(victim, signal.SIGKILL)
            figures["rank_killed_s"] = _until_on(toys, 4, back_s)
            host.cut()
            figures["host_cut_s"] = _until_on(toys, 2, back_s)
            host.join()
            figures["host_back_s"] = _until_on(toys, 4, 3 * back_s)
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            request_stop(job)

    thread = threading.Thread(target=script)
    thread.start()
    run_job(job, config, lambda: None)
    thread.join()
    assert not failed, failed
    wait_for(lambda: not toys.pids())
    assert toys.marks("saved")
    return figures


def _fixed(toys: Toys, config: LauncherConfig, host: Host, back_s: float) -> dict[str, float]:
    """A job that needs both hosts ends when one is cut off."""
    cut: list[float] = []

    def watch() -> None:
        if toys.step() > 20 and not cut:
            host.cut()
            cut.append(time.monotonic())

    run_job(toys.job(10_000_000), config, watch)
    figures = {"fixed_ended_s": round(time.monotonic() - cut[0], 1)}
    host.join()
    wait_for(lambda: not toys.pids(), 2 * back_s)
    return figures | {"fixed_nothing_runs_s": round(time.monotonic() - cut[0], 1)}


def _until_on(toys: Toys, world: int, seconds: float) -> float:
    """Seconds until a group of another start counts again, with so many ranks."""
    began, known = time.monotonic(), set(toys.started())

    def is_on() -> bool:
        new = [shown for pid, shown in toys.started().items() if pid not in known and shown["WORLD_SIZE"] == str(world)]
        ready = {shown["RANK"] for shown in new} == {str(rank) for rank in range(world)}
        return ready and _counts(toys)

    wait_for(is_on, seconds)
    return round(time.monotonic() - began, 1)


def _counts(toys: Toys) -> bool:
    before = toys.step()
    time.sleep(0.3)
    return toys.step() > before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(run(Path(scratch), int(sys.argv[1]) if len(sys.argv) > 1 else 1)) + "\n")
