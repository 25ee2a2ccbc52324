"""A Slurm of two nodes: time limit and requeue, a node set DOWN, a launcher that is killed; toy ranks count steps meanwhile.

`python -m tests.drills.slurm_losses [PART ...]`; one JSON object on stdout.
"""

import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import run_job
from tasks.run.launchers.process import node_environment
from tests.processes import wait_for
from tests.slurm import Slurm, slurm_cluster
from tests.unit.tasks.launchers.jobs import TOY, Toys

_LAUNCH = """
    import sys
    from pathlib import Path
    from tasks.run.launchers.config import LauncherConfig
    from tasks.run.launchers.launcher import Job, run_job
    root = Path(sys.argv[1])
    config = LauncherConfig(name="slurm", nodes=2, timeout_s=20)
    run_job(Job("toy", sys.argv[2], (str(root), "1000000"), root / "work", 1), config, lambda: None)
"""


def run(root: Path, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Figures of each part.

    Args:
        root: an empty folder.
        parts: names of those to run; default: all.
    Raises: AssertionError: steps were lost or done twice, or something ran on.
    """
    figures: dict[str, Any] = {}
    (root / "slurm").mkdir()
    with slurm_cluster(root / "slurm") as slurm:
        for name, part in _PARTS.items():
            if not parts or name in parts:
                toys = Toys(root / name)
                toys.root.mkdir()
                slurm.await_idle()
                began = time.monotonic()
                figures[name] = part(slurm, toys) | {"seconds": round(time.monotonic() - began, 1)}
                wait_for(lambda toys=toys: not toys.pids())
                assert slurm.jobs() == []
    return figures


def _time_limit(slurm: Slurm, toys: Toys) -> dict[str, Any]:
    """Ranks are told 50 s before the limit of a minute, save, and the job requeues itself until all is done."""
    config = LauncherConfig(name="slurm", nodes=2, timeout_s=20, settings={"time_limit": "1", "signal_s": 50})
    run_job(toys.job(400), config, lambda: None)
    assert toys.marks("done") == {"done-0": [400, 2], "done-1": [400, 2]}
    starts = _starts(toys)
    assert starts >= 2
    assert 0 < toys.marks("saved")["saved-0"] < 400
    return {"starts": starts, "saved_at": toys.marks("saved")["saved-0"]}


def _node_down(slurm: Slurm, toys: Toys) -> dict[str, Any]:
    """A job that needs both nodes is requeued by Slurm, and goes on when the node is back (ReturnToService=2)."""
    config = LauncherConfig(name="slurm", nodes=2, timeout_s=20)
    downed = _Down(slurm, toys)
    run_job(toys.job(300), config, downed)
    assert toys.marks("done") == {"done-0": [300, 2], "done-1": [300, 2]}
    assert _starts(toys) == 2
    return {"starts": _starts(toys), "lost_at": downed.step}


def _node_down_elastic(slurm: Slurm, toys: Toys) -> dict[str, Any]:
    """A job that may go on with one node does."""
    config = LauncherConfig(name="slurm", nodes=2, min_nodes=1, timeout_s=20)
    downed = _Down(slurm, toys)
    run_job(toys.job(400), config, downed)
    assert toys.marks("done")["done-0"] == [400, 1]
    assert "2" in {shown["WORLD_SIZE"] for shown in toys.started().values()}
    return {"lost_at": downed.step, "worlds": sorted({shown["WORLD_SIZE"] for shown in toys.started().values()})}


def _launcher_killed(slurm: Slurm, toys: Toys) -> dict[str, Any]:
    """The job ends by itself once nobody touches the heartbeat, and its ranks save."""
    assert toys.work.is_dir()
    code = textwrap.dedent(_LAUNCH)
    launcher = subprocess.Popen([sys.executable, "-c", code, str(toys.root), TOY], env=node_environment())
    try:
        wait_for(lambda: toys.step() > 20)
    finally:
        launcher.kill()
        launcher.wait()
    began = time.monotonic()
    wait_for(lambda: not slurm.jobs())
    assert sorted(toys.marks("saved")) == ["saved-0", "saved-1"]
    return {"ended_after_s": round(time.monotonic() - began, 1)}


class _Down:
    """Sets the second node DOWN once ranks count."""

    def __init__(self, slurm: Slurm, toys: Toys) -> None:
        self.slurm, self.toys = slurm, toys
        self.step: int | None = None

    def __call__(self) -> None:
        if self.step is None and self.toys.step() > 20:
            self.slurm.set_down("n2")
            self.step = self.toys.step()


_PARTS = {
    "time_limit": _time_limit,
    "node_down": _node_down,
    "node_down_elastic": _node_down_elastic,
    "launcher_killed": _launcher_killed,
}


def _starts(toys: Toys) -> int:
    return [shown["RANK"] for shown in toys.started().values()].count("0")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(run(Path(scratch), sys.argv[1:])) + "\n")
