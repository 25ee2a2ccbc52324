"""Seconds and memory of FID and MMD at n = 1000, d = 2048: `python -m tests.bench.bench_metrics`."""

import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.mmd import maximum_mean_discrepancy

NUM_VOLUMES = 1000
WIDTH = 2048


def peak_rss_mib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timed(name: str, compute: Callable[[], float]) -> dict[str, float]:
    before, started = peak_rss_mib(), time.perf_counter()
    value = compute()
    seconds = time.perf_counter() - started
    return {
        f"{name}_seconds": round(seconds, 2),
        f"{name}_peak_rss_delta_mib": round(peak_rss_mib() - before, 1),
        f"{name}_value": value,
    }


def main() -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(NUM_VOLUMES, WIDTH)).astype(np.float32)
    generated = 0.1 + 1.05 * generator.normal(size=(NUM_VOLUMES, WIDTH)).astype(np.float32)
    results: dict[str, float] = {"n": NUM_VOLUMES, "d": WIDTH}
    results |= _timed(
        "mmd", lambda: maximum_mean_discrepancy(real, generated).mmd
    )  # the smaller one first: peaks only grow
    results |= _timed("fid", lambda: frechet_distance(real, generated))
    results["process_peak_rss_mib"] = round(peak_rss_mib(), 1)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
