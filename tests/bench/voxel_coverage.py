"""How often the intervals of the metrics on voxels cover the expectation: `python -m tests.bench.voxel_coverage [--trials 400]`.

Volumes are drawn from known distributions; the expectation of a figure at the same numbers of volumes is its mean over many draws.
Prints one JSON object with a row per figure, difference of the sides, and numbers of volumes. Nominal: 95 %.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.histogram import bin_edges, histogram_distance, std_hu
from prdit_models.metrics.neighbours import median_distance, pairwise
from prdit_models.metrics.random_pairs import pair_spread, random_pairs
from prdit_models.metrics.spectrum import spectrum_distance
from prdit_models.metrics.spread import jackknife

Rows = NDArray[Any]
Draw = Callable[[np.random.Generator, int, float], Rows]  # volumes, and how far they are from the real ones
NUMBERS = ((5, 5), (8, 8), (20, 20), (100, 100), (20, 200))
NUM_EXPECTATION = 2000
EDGES = bin_edges(HounsfieldWindow())


def values(rng: np.random.Generator, count: int, shift: float) -> Rows:
    """A figure of anatomy: normal."""
    return rng.normal(shift, 1.0, count)


def histograms(rng: np.random.Generator, count: int, shift: float) -> Rows:
    """Normal HU whose mean and spread vary between volumes."""
    middle, spread = rng.normal(shift, 60, count), rng.normal(300, 20, count)
    cumulative = stats.norm.cdf(EDGES[None], middle[:, None], spread[:, None])
    cumulative[:, [0, -1]] = 0, 1
    return np.concatenate([np.stack([middle, middle**2 + spread**2], axis=1), np.diff(cumulative, axis=1)], axis=1)


def spectra(rng: np.random.Generator, count: int, shift: float) -> Rows:
    """Falling spectra in dB whose level and slope vary between volumes."""
    k = np.arange(1, 33)
    level, slope = rng.normal(60, 1.5, (count, 1)), rng.normal(-25, 1.5, (count, 1))
    return level + slope * np.log10(k) + shift * k / 32 + rng.normal(0, 0.3, (count, 32))


def _of_two_sides(
    measure: Callable[..., float], draw: Draw, rng: np.random.Generator, n: int, m: int, shift: float
) -> Any:
    sides = draw(rng, n, 0.0), draw(rng, m, shift)
    return measure(*sides), lambda: jackknife(measure, *sides)


def _of_pairs(rng: np.random.Generator, n: int, m: int, shift: float) -> Any:
    """A similarity of pairs, exp(-|u - v|²/d), as MS-SSIM is one."""
    drawn, pairs = rng.normal(size=(m, 16)), random_pairs(m, 200, int(rng.integers(2**31)))
    seen = np.exp(-np.square(drawn[pairs[:, 0]] - drawn[pairs[:, 1]]).mean(axis=1))
    return float(seen.mean()), lambda: pair_spread(list(seen), pairs)


def _of_medians(rng: np.random.Generator, n: int, m: int, shift: float) -> Any:
    distances = pairwise(rng.normal(0, rng.uniform(0.5, 1.5, (m, 1)), (m, 64)).astype(np.float32))
    measure = partial(median_distance, distances)
    return measure(np.arange(m)), lambda: jackknife(measure, np.arange(m))


CASES: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "anatomy_<name>_distance": (partial(_of_two_sides, stats.wasserstein_distance, values), (0.0, 0.5, 2.0)),
    "hu_histogram_distance": (
        partial(_of_two_sides, partial(histogram_distance, width_hu=10.0), histograms),
        (0.0, 30.0, 150.0),
    ),
    "hu_std_ratio": (partial(_of_two_sides, lambda a, b: std_hu(b) / std_hu(a), histograms), (0.0,)),
    "spectrum_distance": (partial(_of_two_sides, partial(spectrum_distance, voxel_mm=4.0), spectra), (0.0, 2.0, 10.0)),
    "ms_ssim": (_of_pairs, (0.0,)),
    "pairwise_distance": (_of_medians, (0.0,)),
}


def coverage(name: str, shift: float, numbers: tuple[int, int], trials: int) -> dict[str, str | float]:
    """One row: share of intervals that contain the expectation, and their mean half width relative to it."""
    measure, rng = CASES[name][0], np.random.default_rng(1)
    expected = float(np.mean([measure(rng, *numbers, shift)[0] for _ in range(NUM_EXPECTATION)]))
    found = []
    for _ in range(trials):
        value, spread = measure(rng, *numbers, shift)
        found.append(spread().interval(value, low=0.0))
    covered = sum(each["low"] <= expected <= each["high"] for each in found)
    width = float(np.mean([each["high"] - each["low"] for each in found])) / 2
    return {
        "figure": name,
        "difference": shift,
        "n real": numbers[0],
        "n generated": numbers[1],
        "expectation": float(f"{expected:.4g}"),
        "covered": round(covered / trials, 3),
        "half width / expectation": round(width / expected, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    arguments = parser.parse_args()
    rows = [
        coverage(name, shift, numbers, arguments.trials)
        for name, (_, shifts) in CASES.items()
        for shift in shifts
        for numbers in NUMBERS
    ]
    document = {"title": "Coverage of the intervals of metrics on voxels", "rows": rows, "notes": ["Nominal: 0.95."]}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
