"""How often intervals of figures on features contain the expectation: `python -m tests.bench.coverage [--trials N] [--draws N]`.

Known Gaussians are drawn again and again, both sides anew. The expectation of a figure at this n and m is its mean over many
draws; an interval should contain it in 95 % of the trials, and is called proven from 90 % on. Printed per case and figure: the
share that contains it, and the mean width against that of ±1.96 true standard deviations (1: as narrow as can be).
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.metric import METRICS, Setting
from prdit_models.metrics.paired import paired_interval
from prdit_models.metrics.pairs import Matrix

ROWS = ("fid", "kid", "mmd", "prdc")
PROVEN = 0.9


@dataclass(frozen=True)
class Case:
    """Two Gaussians with independent features, feature k of standard deviation k^-decay.

    Attributes:
        n, m, d: real volumes, generated volumes, features.
        shift: of the generated mean, in standard deviations of each feature.
        scale: of the generated standard deviation.
        decay: of the standard deviations.
        trials: intervals.
    """

    n: int
    m: int
    d: int
    shift: float = 0.0
    scale: float = 1.0
    decay: float = 0.0
    trials: int = 200

    def draws(self, rng: np.random.Generator) -> Iterator[tuple[Matrix, Matrix]]:
        """Sets of features of both sides, without end."""
        spread = np.arange(1, self.d + 1) ** -self.decay
        while True:
            real, generated = rng.normal(size=(self.n, self.d)), rng.normal(size=(self.m, self.d))
            yield real * spread, (generated * self.scale + self.shift) * spread


CASES = (
    Case(5, 5, 16, 0.5, 1.2),
    Case(8, 8, 2048),
    Case(12, 12, 2048),
    Case(20, 20, 64, 0.5, 1.0, 2.0),
    Case(16, 16, 8, 0.5, 1.2),
    Case(16, 16, 2048, 0.1, 1.1, 0.5),
    Case(50, 50, 8),
    Case(50, 50, 8, 0.5, 1.2),
    Case(50, 50, 512),
    Case(50, 50, 512, 0.05, 1.02),
    Case(50, 50, 512, 0.0, 1.0, 1.0),
    Case(50, 50, 512, 0.2, 1.2, 1.0),
    Case(100, 30, 64, 0.2, 1.2, 0.5),
    Case(12, 60, 256, 0.2, 1.2, 0.5),
    Case(200, 200, 64, 0.1, 1.1, 0.3, 100),
    Case(200, 200, 2048, 0.05, 1.05, 0.5, 100),
)
"""Equal and unequal distributions, few and many volumes, d below, near and far above n, flat and steep spectra."""


def coverage(case: Case, num_draws: int, num_truth: int, rows: tuple[str, ...] = ROWS) -> dict[str, dict[str, float]]:
    """By figure: `covered` (share of intervals), `width` (against ±1.96 standard deviations), `without` (share of no interval).

    Args:
        case: what is drawn.
        num_draws: subsamples behind an interval.
        num_truth: further draws of both sides behind the expectation.
        rows: of METRICS.
    """
    setting = Setting(HounsfieldWindow(-1000, 1000), 1.0, 1, random_features=False, num_subsamples=num_draws)
    metrics = [METRICS[row] for row in rows]
    drawn = case.draws(np.random.default_rng(0))
    values: dict[str, list[float]] = {}
    intervals: dict[str, list[dict[str, Any] | None]] = {}
    for trial, (real, generated) in zip(range(case.trials + num_truth), drawn, strict=False):
        inside = replace(setting, seed=trial, num_subsamples=num_draws if trial < case.trials else 0)
        for metric in metrics:
            assert isinstance(metric, FeatureDistance)
            for name, figure in metric.measured(real, generated, inside).items():
                if figure.value is not None:
                    values.setdefault(name, []).append(figure.value)
                    if trial < case.trials:
                        intervals.setdefault(name, []).append(figure.interval)
    return {name: _row(np.array(values[name]), found) for name, found in intervals.items()}


def paired_coverage(
    case: Case, num_draws: int, num_truth: int, figures: tuple[str, ...], shared: float = 0.7
) -> dict[str, dict[str, float]]:
    """The same of differences of two generated sets: A as the case, B scaled by a twentieth more.

    Args:
        case: of real and A.
        num_draws, num_truth: as for `coverage`.
        figures: their names.
        shared: correlation of volume i of A and of B, which have the same seed.
    """
    rng = np.random.default_rng(1)
    drawn = case.draws(rng)
    values: dict[str, list[float]] = {}
    intervals: dict[str, list[dict[str, Any] | None]] = {}
    for trial, (real, first) in zip(range(case.trials + num_truth), drawn, strict=False):
        _, other = next(drawn)
        centre = case.shift * np.arange(1, case.d + 1) ** -case.decay
        second = centre + 1.05 * (shared * (first - centre) + np.sqrt(1 - shared**2) * (other - centre))
        for name in figures:
            if trial < case.trials:
                found = paired_interval(name, real, first, second, trial, num_draws=num_draws)
                intervals.setdefault(name, []).append(dict(found))
                values.setdefault(name, []).append(found["value"])
            else:
                metric = METRICS[next(row for row in ROWS if name in METRICS[row].figures)]
                assert isinstance(metric, FeatureDistance)
                a, b = (metric.values(real, each, metric.settings())[name] for each in (first, second))
                values[name].append(b - a)
    return {name: _row(np.array(values[name]), found) for name, found in intervals.items()}


def _row(values: Matrix, intervals: list[dict[str, Any] | None]) -> dict[str, float]:
    truth, ideal = values.mean(), 2 * 1.96 * values.std(ddof=1)
    known = [found for found in intervals if found is not None]
    if not known:
        return {"without": 1.0}  # too few volumes
    inside = sum(bool(found["low"] - 1e-9 <= truth <= found["high"] + 1e-9) for found in known)
    width = float(np.mean([found["high"] - found["low"] for found in known]))
    row = {"covered": round(inside / len(known), 3), "width": round(width / ideal, 2) if ideal > 1e-12 else 0.0}
    return row | ({"without": round(1 - len(known) / len(intervals), 3)} if len(known) < len(intervals) else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=50, help="subsamples behind an interval")
    parser.add_argument("--truth", type=int, default=600, help="draws of both sides behind an expectation")
    parser.add_argument("--trials", type=int, help="intervals of a case")
    given = parser.parse_args()
    table = []
    for case in (replace(case, trials=given.trials or case.trials) for case in CASES):
        table.append({**asdict(case), "figures": coverage(case, given.draws, given.truth)})
        sys.stderr.write(json.dumps(table[-1]) + "\n")
    names = ("fid", "kid", "mmd", "precision", "coverage")
    paired = []
    for case in (replace(case, trials=min(given.trials or 150, 150)) for case in CASES if case.n == 50):
        paired.append({**asdict(case), "figures": paired_coverage(case, given.draws, given.truth, names)})
        sys.stderr.write(json.dumps(paired[-1]) + "\n")
    found = [row["figures"] for row in (*table, *paired)]
    lowest = {
        name: min(figures[name]["covered"] for figures in found if "covered" in figures.get(name, {}))
        for name in dict.fromkeys(name for figures in found for name in figures)
    }
    result = {"draws": given.draws, "level": 0.95, "lowest": lowest, "cases": table, "differences": paired}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
