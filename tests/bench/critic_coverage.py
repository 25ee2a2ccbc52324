"""How often the critic's interval contains the expectation of the estimate: `python -m tests.bench.critic_coverage [TRIALS]`.

Gaussian volumes of 8³ voxels, the second side shifted; expectation at the same n: the mean over all trials, and its own standard
error. Independent volumes in every trial, one thread.
"""

import json
import sys
import time

import numpy as np
import torch

from prdit_models.metrics.critic import Effort, Volumes, estimate_distance
from prdit_models.metrics.wasserstein import critic_interval

EFFORT = Effort(steps=40, batch_size=8, width=8, lr=3e-3, penalty=1.0)
EDGE, NUM_SEEDS, STD = 8, 4, 0.3


def _side(count: int, shift: float, rng: np.random.Generator) -> Volumes:
    level = rng.normal(0.0, 0.1, (count, 1, 1, 1))  # volumes differ as wholes, too
    values = torch.from_numpy((shift + level + rng.normal(0.0, STD, (count, EDGE, EDGE, EDGE))).astype(np.float32))
    return Volumes(count, EDGE, lambda places: values[places])


def coverage(count: int, shift: float, trials: int) -> dict[str, float]:
    """Share of intervals that contain the mean of all estimates, and the means of estimate and interval width."""
    intervals, means = [], []
    for trial in range(trials):
        rng = np.random.default_rng([trial, count])
        sides = _side(count, 0.0, rng), _side(count, shift, rng)
        found = [estimate_distance(*sides, EFFORT, seed) for seed in range(NUM_SEEDS)]
        intervals.append(critic_interval(found, count, count) or {})
        means.append(float(np.mean([one.distance for one in found])))
    expectation = float(np.mean(means))
    inside = [each["low"] <= expectation <= each["high"] for each in intervals]
    return {
        "n": count,
        "shift": shift,
        "trials": trials,
        "coverage": float(np.mean(inside)),
        "expectation": expectation,
        "standard_error": float(np.std(means, ddof=1) / trials**0.5),
        "mean_width": float(np.mean([each["high"] - each["low"] for each in intervals])),
        "std_of_estimates": float(np.std(means, ddof=1)),
    }


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    torch.set_num_threads(1)
    started = time.process_time()
    rows = [coverage(count, shift, trials) for count in (8, 32) for shift in (0.0, 0.2)]
    sys.stdout.write(json.dumps({"rows": rows, "cpu_seconds": round(time.process_time() - started)}) + "\n")


if __name__ == "__main__":
    main()
