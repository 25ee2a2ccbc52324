"""`prdit/full-pipeline` on a Slurm of two nodes (launcher and runner `slurm`) against the same run on this machine.

`python -m tests.drills.slurm_pipeline [SOURCE [STEPS]]`; one JSON object on stdout. SOURCE: folder with scans, else phantoms.
Real servers, a real worker, `prefect deployment run`. On as many ranks the run must come out the same: snapshot, split,
checkpoints, samples bit by bit, and so every figure. Against one rank, which adds its gradients in another order, figures may
differ by `TOLERANCE`.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import services as local
from storage.documents.comparison import Comparison
from storage.documents.run_record import RunDocument
from storage.phantom.series import write_demo_data
from tasks.compare.differences import compare
from tasks.compare.features import features_of
from tasks.compare.runs import find, load
from tests.slurm import Slurm, slurm_cluster

TOLERANCE = 0.01  # relative, of figures of trainings with another number of ranks (their sums differ in the last bits)
NODES = 2
_LIMIT_S = 3600


def run(root: Path, source: Path | None = None, steps: int = 20, *, one_rank: bool = True) -> dict[str, Any]:
    """Figures of the run on Slurm and of those on this machine.

    Args:
        root: an empty folder.
        source: folder with scans; default: phantoms.
        steps: of each training.
        one_rank: whether there is also a run with one rank.
    Raises: AssertionError: a run failed, or came out differently than it may.
    """
    if source is None:
        source = root / "phantoms"
        write_demo_data(source, num_patients=4, small=True)
    (root / "slurm").mkdir()
    with slurm_cluster(root / "slurm", NODES) as cluster, _site(root) as services:
        runs = _Runs(root, source, steps, services)
        found = {"slurm": runs.run("slurm", cluster=cluster, **_on_slurm(root))}
        found["ranks"] = runs.run("ranks", launcher={"name": "local", "ranks_per_node": NODES})
        if one_rank:
            found["one"] = runs.run("one", launcher={"name": "local"})
        left = cluster.jobs()
    assert left == [], f"jobs {left} are left"
    _check_same(found["slurm"], found["ranks"])
    figures: dict[str, Any] = {
        "steps": steps,
        "jobs": runs.jobs,
        "seconds": {name: round(record.seconds) for name, record in found.items()},
        "stages_s": {
            name: {stage: round(s.seconds) for stage, s in record.stages.items()} for name, record in found.items()
        },
        "same_ranks": _differences(_compared(root, "ranks", "slurm")),
    }
    if one_rank:
        figures["one_rank"] = _differences(_compared(root, "one", "slurm"))
        figures["tolerance"] = TOLERANCE
        assert figures["one_rank"]["largest_relative"] <= TOLERANCE, figures["one_rank"]
    assert figures["same_ranks"]["largest_relative"] == 0.0, figures["same_ranks"]
    return figures


def _on_slurm(root: Path) -> dict[str, Any]:
    """Launcher and runner; a worker has a node of its own."""
    return {
        "launcher": {
            "name": "slurm",
            "nodes": NODES,
            "timeout_s": 60,
            "settings": {"partition": "p", "time_limit": "30"},
        },
        "runner": {
            **{"name": "slurm", "num_workers": NODES, "cores": 1, "memory_gb": 4, "partition": "p", "time_limit": "30"},
            **{"interface": "lo", "log_directory": str(root / "logs")},
            "options": ["--mem=0", "--exclusive", f"--chdir={root}"],
        },
    }


@contextmanager
def _site(root: Path) -> Iterator[local.Services]:
    """Prefect, MLflow and a worker, which find the cluster by SLURM_CONF."""
    services = local.start(root / "services")
    try:
        local.deploy(services, root)
        yield services
    finally:
        local.stop(root / "services")


class _Runs:
    """Runs of one configuration, each with a store and a working folder of its own, and one patient key."""

    def __init__(self, root: Path, source: Path, steps: int, services: local.Services) -> None:
        self.root, self.source, self.steps, self.services = root, source, steps, services
        self.jobs: dict[str, int] = {}

    def run(self, name: str, *, cluster: Slurm | None = None, **places: Any) -> RunDocument:
        """`prefect deployment run prdit/full-pipeline --watch`."""
        store = self.root / f"store-{name}"
        (self.root / f"store-{name}.patient-key").write_text("00" * 32)
        training = {"steps": self.steps, "val_every": self.steps, "num_threads": 1}
        overrides = {
            "workdir": str(_work(self.root, name)),
            "recipe": {
                "local": training | {"view": {"size": 32, "edge": 64}},
                "global": training,
            },
            "sample": {"num_volumes": 8, "num_steps": 10, "num_threads": 1},
            "evaluate": {"extractor": "random", "num_threads": 1},
            **places,
        }
        command = [
            sys.executable,
            "-m",
            "prefect",
            "--no-prompt",
            "deployment",
            "run",
            "prdit/full-pipeline",
            "--watch",
        ]
        parameters = ["configuration=tiny", f"source={self.source}", f"store={store}"]
        for parameter in (*parameters, f"overrides={json.dumps(overrides)}"):
            command += ["--param", parameter]
        with _watched(cluster) as seen:
            done = subprocess.run(
                command, env=local.child_environment(self.services), capture_output=True, text=True, timeout=_LIMIT_S
            )
        latest = _work(self.root, name) / "runs" / RunDocument.LATEST
        assert latest.exists(), done.stdout[-3000:] + done.stderr[-3000:]
        record = RunDocument.read(latest)
        assert (record.error, done.returncode) == (None, 0), done.stderr[-3000:]
        assert not any(stage.cached for stage in record.stages.values())
        if cluster:
            self.jobs = {job: len(nodes) for job, nodes in seen.items()}
            assert set(self.jobs.values()) == {NODES}, f"nodes by job: {seen}"
        return record


def _work(root: Path, name: str) -> Path:
    return root / f"work-{name}"


@contextmanager
def _watched(cluster: Slurm | None) -> Iterator[dict[str, set[str]]]:
    """Nodes by name of the jobs that ran meanwhile."""
    seen: dict[str, set[str]] = {}
    end = threading.Event()

    def look() -> None:
        while cluster and not end.wait(0.5):
            for line in cluster.command("squeue", "-h", "-t", "R", "-o", "%j %N").splitlines():
                job, _, nodes = line.partition(" ")
                seen.setdefault(job, set()).update(cluster.command("scontrol", "show", "hostnames", nodes).split())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def _check_same(one: RunDocument, other: RunDocument) -> None:
    """Every artifact but the report, which has times in it, has the same digest."""
    for name, stage in one.stages.items():
        if name != "evaluate":
            assert stage.ref.digest == other.stages[name].ref.digest, f"{name} came out differently"


def _compared(root: Path, first: str, second: str) -> Comparison:
    """What `prdit compare` finds; the runs differ in nothing but where they ran."""
    folders = [_work(root, name) / "runs" for name in (first, second)]
    runs = load([find(str(next(folder.glob("*Z"))), folder.parent) for folder in folders], "")
    found = compare(runs, features_of, lambda *_: None)
    assert found.settings == []
    return found


def _differences(comparison: Comparison) -> dict[str, Any]:
    """Values of both runs by figure where they differ, and the largest difference relative to the larger value."""
    found: dict[str, Any] = {"figures": len(comparison.figures), "differ": {}, "largest_relative": 0.0}
    for figure in comparison.figures:
        one, other = (figure.values[label].value for label in ("A", "B"))
        assert (one is None) == (other is None), figure.name
        if one is not None and other is not None and one != other:
            found["differ"][figure.name] = [one, other]
            relative = abs(one - other) / max(abs(one), abs(other))
            found["largest_relative"] = max(found["largest_relative"], relative)
    return found


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        result = run(Path(scratch), given, number)
    sys.stdout.write(json.dumps(result | {"total_s": round(time.monotonic() - began)}) + "\n")
