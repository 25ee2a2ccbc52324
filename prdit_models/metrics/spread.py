"""Intervals of figures: by the jackknife over volumes, of shares, of medians."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose modules are imported when they are used
from numpy.typing import NDArray

from prdit_models.metrics.metric import LEVEL

MIN_VOLUMES = 5  # of a side: below that, the spread over volumes is not known
_MOST_PARTS = 50  # of a side: leaving out parts of 2 % costs a hundred evaluations whatever the number of volumes

Rows = NDArray[Any]


@dataclass(frozen=True)
class Spread:
    """How uncertain a figure is.

    Attributes:
        variance: of the figure over draws of as many volumes.
        freedom: degrees of freedom of that variance.
    """

    variance: float
    freedom: float

    def __add__(self, other: "Spread") -> "Spread":
        """Of a sum or difference of independent figures, degrees of freedom after Welch (1947) and Satterthwaite."""
        total = self.variance + other.variance
        if total == 0:
            return Spread(0.0, min(self.freedom, other.freedom))
        return Spread(total, total**2 / (self.variance**2 / self.freedom + other.variance**2 / other.freedom))

    def interval(self, value: float, low: float = -np.inf, high: float = np.inf) -> dict[str, Any]:
        """Student's interval around a figure that cannot be below `low` or above `high`."""
        half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * float(np.sqrt(self.variance))
        return {
            "low": max(low, value - half),
            "high": min(high, value + half),
            "level": LEVEL,
            "method": "jackknife over volumes, quantile of Student's t",
        }


def jackknife(statistic: Callable[..., float], *sides: Rows) -> Spread | None:
    """How uncertain a figure of independent sides is.

    Each side is split into parts (one volume each up to 50 volumes), every part is left out in turn, and the variances of the
    sides add up. Coverage of the intervals by simulation: `tests/bench/voxel_coverage.py`.

    Args:
        statistic: the figure of the rows of all sides.
        sides: one row per volume, in an order that says nothing about the volumes.
    Returns: None with fewer than `MIN_VOLUMES` volumes on a side, or where the figure is not a number without some of them.
    Source: Efron & Stein, The jackknife estimate of variance (1981).
    """
    if min(map(len, sides)) < MIN_VOLUMES:
        return None
    found = [_of_side(statistic, sides, place) for place in range(len(sides))]
    total = found[0]
    for spread in found[1:]:
        total = total + spread
    return total if np.isfinite(total.variance) else None


def jackknife_interval(
    statistic: Callable[..., float], *sides: Rows, low: float = -np.inf, high: float = np.inf
) -> dict[str, Any] | None:
    """Where the expectation of a figure at the same numbers of volumes lies, as `Figure.interval`; arguments as for `jackknife`."""
    spread = jackknife(statistic, *sides)
    return spread.interval(statistic(*sides), low, high) if spread else None


def _of_side(statistic: Callable[..., float], sides: tuple[Rows, ...], place: int) -> Spread:
    parts = np.array_split(np.arange(len(sides[place])), min(len(sides[place]), _MOST_PARTS))
    rows, left_out = list(sides), []
    for part in parts:
        rows[place] = np.delete(sides[place], part, axis=0)
        left_out.append(statistic(*rows))
    return Spread((len(parts) - 1) ** 2 / len(parts) * float(np.var(left_out, ddof=1)), len(parts) - 1)


def share_interval(count: int, total: int) -> dict[str, Any]:
    """Wilson's interval of a share `count / total`, as `Figure.interval`."""
    found = scipy.stats.binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return {"low": float(found.low), "high": float(found.high), "level": LEVEL, "method": "Wilson score"}


def median_interval(values: Rows) -> dict[str, Any] | None:
    """Interval of a median by order statistics, as `Figure.interval`; None below the six values that it needs."""
    found: Any = scipy.stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(LEVEL)
    if not np.isfinite([found.low, found.high]).all():
        return None
    return {"low": float(found.low), "high": float(found.high), "level": LEVEL, "method": "order statistics"}
