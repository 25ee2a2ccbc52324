"""SIGKILL to what runs a training of a deployment: the flow's process, its worker, both, or the server; states converge.

`python -m tests.drills.zombies [ROUNDS]` prints seconds as JSON, with the heartbeats of an installation.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.drills.deployed import OVER, PATIENCE_S, Deployed, deployed, until

KINDS = ("flow", "worker", "both", "pending", "server")
LIMIT_S = 180.0  # within which a run whose process died is Crashed
_SERVER_WATCH_S = 200.0  # longer than a silence


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Every kind of kill, `rounds` times, at random moments of a training, with another run that waits for its turn.

    Raises: AssertionError: a run is lost, hangs, is doubled, or is Crashed though its process lives.
    """
    chance = random.Random(rounds)
    with deployed(root) as site:
        seconds: dict[str, Any] = {
            kind: [_kill(site, kind, chance.uniform(0, 20)) for _ in range(rounds)] for kind in KINDS
        }
    return {"rounds": rounds, "limit_s": LIMIT_S} | seconds


def smallest(site: Deployed) -> dict[str, Any]:
    """One kill of a flow's process, for tests, on an installation that is up."""
    return {"flow": [_kill(site, "flow", 0.0)]}


def _kill(site: Deployed, kind: str, wait_s: float) -> dict[str, Any]:
    """One kill; seconds until the run's state said so, and until the next run was complete."""
    run_id, waiting = site.train(seed=time.time_ns() % 2**31), site.start("split")
    if kind == "pending":
        return _kill_pending(site, run_id, waiting)
    family = site.training(run_id)
    time.sleep(wait_s)
    worker, began = site.pid("worker"), time.monotonic()
    victims = {
        "flow": [family[0].pid],
        "worker": [worker],
        "both": [worker, family[0].pid],
        "server": [site.pid("prefect")],
    }
    for pid in victims[kind]:
        psutil.Process(pid).kill()
    if kind == "server":
        return _server_gone(site, run_id, waiting, began)
    if kind == "worker":
        until(lambda: site.read(run_id)["run_count"] == 2 and site.state(run_id) == "RUNNING")
        found = {"goes_on_s": time.monotonic() - began}
        assert site.state(waiting) in ("SCHEDULED", "COMPLETED"), "two runs at once"  # which of them is first is open
        assert site.cancel(run_id) in ("CANCELLED", "CRASHED")
    else:
        until(lambda: site.state(run_id) == "CRASHED", LIMIT_S)
        found = {"crashed_s": time.monotonic() - began}
    return _next(site, family, waiting, began, found)


def _next(
    site: Deployed, family: list[psutil.Process], waiting: str, began: float, found: dict[str, float]
) -> dict[str, Any]:
    assert site.ended(waiting)["state"]["type"] == "COMPLETED"
    assert site.read(waiting)["run_count"] == 1
    until(lambda: not any(process.is_running() for process in family))
    until(site.free)
    return {name: round(value, 1) for name, value in (found | {"next_complete_s": time.monotonic() - began}).items()}


def _kill_pending(site: Deployed, run_id: str, waiting: str) -> dict[str, Any]:
    """The worker and what it starts die before the run begins: it is scheduled again, and begins."""
    until(lambda: site.state(run_id) == "PENDING")
    began = time.monotonic()
    psutil.Process(site.pid("worker")).kill()
    for process in site.processes(run_id):
        process.kill()
    until(lambda: site.state(run_id) == "RUNNING", LIMIT_S + PATIENCE_S)
    found = {"begins_s": time.monotonic() - began}
    family = site.training(run_id)
    assert site.read(run_id)["run_count"] == 1
    assert site.cancel(run_id) in ("CANCELLED", "CRASHED")
    return _next(site, family, waiting, began, found)


def _server_gone(site: Deployed, run_id: str, waiting: str, began: float) -> dict[str, Any]:
    """The training lives, so it stays Running: a server that starts anew must not take it for dead."""
    site.pid("prefect")
    while time.monotonic() < began + _SERVER_WATCH_S:
        assert site.state(run_id) not in OVER, site.read(run_id)["state"]
        assert site.state(waiting) == "SCHEDULED", "two runs at once"
        time.sleep(2.0)
    family = site.processes(run_id)
    assert site.cancel(run_id) in ("CANCELLED", "CRASHED")
    return _next(site, family, waiting, began, {})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 5)) + "\n")
