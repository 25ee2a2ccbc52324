"""How a training scales from one rank of one thread to two: `python -m tests.bench.bench_ranks`; JSON on stdout.

Two ranks share the volumes of a step, so they take half the time less what it costs to add up their gradients. The bytes that
each rank sends for that are 2·(W - 1)/W times those of the trained weights (a ring, as gloo and NCCL use), in float32.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flows.config import load_config
from prdit_models.plan import count_parameters
from storage.artifacts import Ref
from tasks.model.memory import planned_of
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import Job, run_job
from tasks.run.stage import StageRun
from tasks.train.check import check_training
from tasks.train.config import TrainingConfig
from tasks.train.launch import launch
from tasks.train.point_log import read_points
from tests.factories import make_split, make_store, train_spec, trained

STEPS = 60
REPEATS = 20


def run() -> dict[str, Any]:
    """Steps per second of the trainings of `small`, and what the exchange of their gradients takes alone."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        snapshot = make_store(root / "store", num_volumes=5, edge=64, spacing_mm=4.0)
        data = snapshot, make_split(root / "split", snapshot, ["v0", "v1", "v2", "v3"], ["v4"])
        rows: list[dict[str, Any]] = []
        below: Ref | None = None
        for name in ("local", "global"):
            config = _config(name)
            rates = {}
            for ranks in (1, 2, 1, 2):  # in turn, because machines are noisy
                spec = train_spec(config, *data, root / f"{name}-{ranks}-{len(rates)}-{time.monotonic_ns()}", below)
                launch(
                    spec,
                    StageRun(spec.directory, None, "", {}),
                    lambda done, total: None,
                    LauncherConfig(ranks_per_node=ranks),
                )
                points = read_points(spec.directory / "work" / "metrics.jsonl")
                each = [point["speed/steps_per_s"] for point in points if "speed/steps_per_s" in point]
                rates.setdefault(ranks, []).extend(each[1:])  # the first has the imports of kernels
            info = check_training(*data, below, config).info
            weights = count_parameters(planned_of(info))["trainable"]
            one, two = (statistics.median(rates[ranks]) for ranks in (1, 2))
            rows.append(
                {
                    "training of `small`": name,
                    "trained weights": weights,
                    "MB sent per rank and step": round(4 * weights / 1e6, 2),  # 2·(W - 1)/W = 1 for two
                    "exchange alone, ms": round(1000 * _exchange_s(root, weights), 2),
                    "1 rank, steps/s": round(one, 3),
                    "2 ranks, steps/s": round(two, 3),
                    "speed-up": round(two / one, 3),
                }
            )
            below = trained(train_spec(config, *data, root / f"{name}-below", below))
        return {
            "title": "Two ranks of one thread against one",
            "rows": rows,
            "notes": [f"Medians of {STEPS} steps, twice."],
        }


def _config(name: str) -> TrainingConfig:
    changes = {
        "steps": STEPS,
        "log_every": 5,
        "val_every": 10 * STEPS,
        "checkpoint_every": 10 * STEPS,
        "sample_every": 0,
    }
    changes |= {"num_threads": 1, "device": "cpu"} | ({"view": {"size": 32, "edge": 64}} if name == "local" else {})
    values = load_config("small").recipe[name].model_dump(mode="json", exclude_none=True)
    return TrainingConfig.model_validate(values | changes)


def _exchange_s(root: Path, count: int) -> float:
    """Median seconds in which two ranks add up so many float32 numbers."""
    folder = root / f"exchange-{count}"
    folder.mkdir()
    result = folder / "seconds"
    job = Job("exchange", "tests.bench.bench_ranks", (str(count), str(result)), folder, 1)
    run_job(job, LauncherConfig(ranks_per_node=2), lambda: None)
    return float(result.read_text())


def _exchange(count: int, result: Path) -> None:
    """One of the two ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    numbers, seconds = torch.ones(count), []
    for _ in range(REPEATS):
        began = time.monotonic()
        dist.all_reduce(numbers)
        seconds.append(time.monotonic() - began)
        numbers.fill_(1.0)
    if dist.get_rank() == 0:
        result.write_text(str(statistics.median(seconds)))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _exchange(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        sys.stdout.write(json.dumps(run()) + "\n")
