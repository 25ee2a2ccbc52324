"""Mean and interval of a line's figures over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from prdit_models.metrics.metric import LEVEL
from storage.documents.benchmark import Line

INTERVAL = (
    "Mean over the seeds; below it the interval of that mean at level {level:.0%} by Student's t, of trainings and samples that "
    "share nothing but data and protocol. With one seed there is none."
)


@dataclass(frozen=True)
class Mean:
    """A figure over seeds.

    Attributes:
        value: their mean.
        low, high: interval of it; None with one seed.
        count: seeds that have the figure.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def varies(self) -> bool:
        """Whether there is an interval to show: several seeds, and not the same value of all, as parameters are."""
        return self.low != self.high


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and Student interval of independent results, s·t/√n on both sides. Raises: ValueError: there are none."""
    if not values:
        raise ValueError("there are no values to take the mean of.")
    count, middle = len(values), fmean(values)
    if count == 1:
        return Mean(middle, None, None, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / count**0.5
    return Mean(middle, middle - half, middle + half, count)


def means_of(line: Line) -> dict[str, Mean]:
    """The figures of a line by column, those that some seed has."""
    names = dict.fromkeys(name for result in line.results for name in result.figures)
    found = {}
    for name in names:
        values = [value for result in line.results if (value := result.figures.get(name)) is not None]
        if values:
            found[name] = mean_of(values)
    return found
