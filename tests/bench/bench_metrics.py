"""Seconds and memory of the distances on features at n = 1000, d = 2048: `python -m tests.bench.bench_metrics`."""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from prdit_models.metrics import fid, mmd, prdc
from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.intervals import Subsampling
from prdit_models.metrics.kid import kernel_inception_distance

NUM_VOLUMES = 1000
WIDTH = 2048
NUM_DRAWS = {"fid": 1000, "mmd": 100, "prdc": 100}


def peak_rss_mib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timed(name: str, compute: Callable[[], float]) -> dict[str, float]:
    before, started, cpu = peak_rss_mib(), time.perf_counter(), time.process_time()
    value = compute()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return {
        f"{name}_seconds": round(seconds, 2),
        f"{name}_cpu_seconds": round(cpu_seconds, 2),
        f"{name}_peak_rss_delta_mib": round(peak_rss_mib() - before, 1),
        f"{name}_value": value,
    }


def main() -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(NUM_VOLUMES, WIDTH)).astype(np.float32)
    generated = 0.1 + 1.05 * generator.normal(size=(NUM_VOLUMES, WIDTH)).astype(np.float32)
    results: dict[str, float] = {"n": NUM_VOLUMES, "d": WIDTH}

    def interval_of(metric: FeatureDistance) -> float:
        """The first figure's standard error below its value."""
        own: Any = metric.settings()
        sets = real.astype(np.float64), generated.astype(np.float64)
        subsampling = Subsampling(metric.left_out, NUM_DRAWS[metric.name], 0)
        drawn = [
            list(metric.of_pairs(pairs, own).values())
            for (pairs,) in subsampling.draws(metric.pairs, sets[0], (sets[1],))
        ]
        return float(subsampling.standard_errors(drawn, (NUM_VOLUMES, NUM_VOLUMES))[0][0])

    # the smallest first: peaks only grow
    results |= _timed("mmd", lambda: mmd.maximum_mean_discrepancy(real, generated).mmd)
    results |= _timed("fid", lambda: fid.frechet_distance(real, generated))
    results |= _timed("kid", lambda: kernel_inception_distance(real, generated))
    results |= _timed("prdc", lambda: prdc.precision_recall_density_coverage(real, generated)["precision"])
    for metric in (fid.METRIC, mmd.METRIC, prdc.METRIC):
        results |= _timed(
            f"{metric.name}_resampled_{NUM_DRAWS[metric.name]}", lambda metric=metric: interval_of(metric)
        )  # type: ignore[misc]
    results["process_peak_rss_mib"] = round(peak_rss_mib(), 1)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
