"""Bulk sampling: two one-thread workers against one, and memory in steps and in volumes: `python -m tests.bench.bench_sampling`.

Rates are of drawing alone, from the first to the last commit of a worker that has its model: starting processes is not sampling.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prdit_models.networks.config import model_config
from storage.artifacts import Ref
from tasks.run.runners import Local
from tasks.sample.config import SampleConfig
from tasks.sample.run import STORE_NAME, sample
from tests.factories import make_store
from tests.unit.tasks.checkpoints import commit_checkpoint, network

PRESET, SIZE, STEPS = "XS/12/4", 64, 25
VOLUMES = 6  # per worker
REPEATS = 2
MEMORY = ((2, 4), (2, 64), (12, 4))  # volumes and evaluations of a process


def run() -> dict[str, Any]:
    """Volumes per minute of one and two workers in turn, and peaks of memory."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = network(model_config(PRESET, SIZE))
        checkpoint = commit_checkpoint(root / "c", "global", {"snapshot": make_store(root / "s")}, model=model)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(REPEATS):
            for workers in (1, 2):  # in turn, because machines are noisy
                rates[workers].append(_rate(checkpoint, root / f"{workers}-{repeat}", workers))
        one, two = (max(rates[workers]) for workers in (1, 2))
        row = {
            "model": f"{PRESET} at {SIZE}³, {STEPS} evaluations",
            "1 worker, volumes/min": round(60 * one, 2),
            "2 workers, volumes/min": round(60 * two, 2),
            "speed-up": round(two / one, 2),
        }
        for volumes, steps in MEMORY:
            row[f"peak MiB, {volumes} volumes of {steps} evaluations"] = _peak_mib(checkpoint, root, volumes, steps)
        return {
            "title": "Bulk sampling: two workers of one thread against one",
            "rows": [row],
            "notes": [
                f"Best of {REPEATS}; from the first commit on. Every worker is a process that draws with one thread."
            ],
        }


def _config(volumes: int, steps: int = STEPS) -> SampleConfig:
    return SampleConfig(num_volumes=volumes, num_steps=steps, num_threads=1, device="cpu", nifti=True)


def _rate(checkpoint: Ref, directory: Path, workers: int) -> float:
    """Volumes per second between the first commit and the last; with one worker, in a process beside this as well."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_sampling",
        checkpoint.model_dump_json(),
        str(directory),
        str(workers),
    ]
    subprocess.run(command, check=True)
    times = sorted(path.stat().st_mtime for path in (directory / STORE_NAME / "commits").glob("*.json"))
    return (len(times) - workers) / (times[-1] - times[workers - 1])  # each worker's first volume has its start in it


def _peak_mib(checkpoint: Ref, root: Path, volumes: int, steps: int) -> float:
    command = [sys.executable, "-m", "tests.bench.bench_sampling", checkpoint.model_dump_json()]
    command += [str(root / f"memory-{volumes}-{steps}"), "0", str(volumes), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return round(float(done.stdout), 1)


def _worker(arguments: list[str]) -> None:
    checkpoint, directory, workers = Ref.model_validate_json(arguments[0]), Path(arguments[1]), int(arguments[2])
    if workers:
        runner = Local(workers) if workers > 1 else None
        sample(checkpoint, _config(VOLUMES * workers), directory, lambda done, total: None, runner=runner)
        return
    sample(checkpoint, _config(int(arguments[3]), int(arguments[4])), directory, lambda done, total: None)
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _worker(sys.argv[1:])
    else:
        began = time.monotonic()
        sys.stdout.write(json.dumps(run() | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
