"""Intervals of figures on features.

A figure of n real and m generated volumes varies with both draws of volumes. Its interval is one for its expectation at the same n
and m: what other volumes of the same patients' population and other seeds of the same model would give on average. Bias at this n
is part of that expectation, not of the interval.

The bootstrap does not do here: a volume drawn twice has a neighbour at distance 0 and raises FID and MMD of every resample. So
volumes are left out instead (subsampling without replacement, the delete-d jackknife): with a share q of both sides kept, the
standard deviation of the figure over the draws, times √(q / (1 - q)), is its standard error. Where a figure is not linear in the
volumes it is too large rather than too small: by √((1 + q) / q) for MMD² of two equal distributions. It is taken above and below
the mean of the draws apart: figures of few directions are skewed, and where one is low by chance so is its spread, so an even
interval would miss the expectation above itself. FID, KID and MMD keep halves; balls of nearest neighbours grow when volumes are
left out, so those figures keep three quarters. `tests/bench/coverage.py` measures how often the intervals contain the expectation.

Source: Shao and Wu 1989 (delete-d jackknife); Efron and Stein 1981 (why a jackknife's variance is not too small on average).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # whose modules are imported when they are used
from numpy.typing import ArrayLike

from prdit_models.metrics.metric import LEVEL
from prdit_models.metrics.pairs import Matrix, Pairs

Range = Literal["any", "positive", "share of real", "share of generated"]

_MOST_KEPT = 750  # of more volumes a smaller part is kept: a draw of FID costs the third power
_MOST_PAIRS = 2000  # volumes of a side whose pairs are all kept at once, 32 MB a matrix


@dataclass(frozen=True)
class Subsampling:
    """How volumes are left out.

    Attributes:
        left_out: share of each side, between 0 and 1.
        num_draws: how often.
        seed: of the draws.
    """

    left_out: float
    num_draws: int
    seed: int

    def kept(self, num_volumes: int) -> int:
        """Volumes of a side that a draw keeps."""
        return min(num_volumes - max(1, round(self.left_out * num_volumes)), _MOST_KEPT)

    def draws(
        self, pairs: Callable[[Matrix, Matrix], Pairs], real: Matrix, generated: Sequence[Matrix]
    ) -> Iterator[tuple[Pairs, ...]]:
        """Pairs of the volumes that each draw keeps, one for each generated set.

        Args:
            pairs: of two sets of features.
            real: features (n, d); the same volumes are kept for all generated sets.
            generated: features of each generated set; of sets of one size the same places are kept.
        """
        rng = np.random.default_rng(self.seed)
        whole = None
        if max(len(each) for each in (real, *generated)) <= _MOST_PAIRS:
            whole = [pairs(real, each) for each in generated]
        for _ in range(self.num_draws):
            rows = rng.choice(len(real), self.kept(len(real)), replace=False)
            columns = {
                size: rng.choice(size, self.kept(size), replace=False)
                for size in dict.fromkeys(len(each) for each in generated)
            }
            if whole is not None:
                yield tuple(of_set.part(rows, columns[len(of_set.generated)]) for of_set in whole)
            else:
                yield tuple(pairs(real[rows], each[columns[len(each)]]) for each in generated)

    def standard_errors(self, drawn: ArrayLike, sizes: Sequence[int]) -> tuple[Matrix, Matrix]:
        """Standard errors of figures of all volumes from those of the draws, below and above.

        Args:
            drawn: shape (num_draws, ...).
            sizes: volumes of each side; where rounding leaves out unequal shares, the largest scale is taken.
        Returns: root mean squares of the deviations below and above the draws' mean, scaled, each of shape (...).
        """
        scale = max(self.kept(size) / (size - self.kept(size)) for size in sizes)
        values = np.asarray(drawn, dtype=np.float64)
        off = values - values.mean(axis=0)
        below, above = (
            np.sqrt(scale * np.square(off).sum(axis=0, where=side) / np.maximum(side.sum(axis=0), 1))
            for side in (off < 0, off > 0)
        )
        return below, above

    @property
    def method(self) -> str:
        """In words."""
        return (
            f"subsampling without replacement: {self.left_out:.0%} of both sides left out, spread scaled to all volumes "
            "(delete-d jackknife), below and above apart, Student's t"
        )


def interval(
    value: float, errors: tuple[float, float], limits: Range, sizes: tuple[int, int], subsampling: Subsampling
) -> dict[str, Any] | None:
    """The interval of one figure.

    Args:
        value: of all volumes.
        errors: its standard errors, below and above.
        limits: values that it can have.
        sizes: real and generated volumes.
        subsampling: behind the standard error.
    Returns: `{low, high, level, num_draws, method}`, or None where all draws are equal and nothing else bounds the figure.
    """
    quantile, method = student_quantile(sizes), subsampling.method
    error = float(np.hypot(*errors)) / np.sqrt(2)
    if limits in ("share of real", "share of generated"):
        normal = float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
        low, high = _share_bounds(value, error * quantile / normal, sizes[limits == "share of generated"])
        method += "; a share: Clopper and Pearson with the number of independent volumes that the spread stands for"
    elif error == 0.0:
        return None
    else:
        low, high = value - quantile * errors[0], value + quantile * errors[1]
        low = max(low, 0.0) if limits == "positive" else low
    return {
        "low": float(low),
        "high": float(high),
        "level": LEVEL,
        "num_draws": subsampling.num_draws,
        "method": method,
    }


def student_quantile(sizes: Sequence[int]) -> float:
    """Quantile of Student's t for `LEVEL`, with the degrees of freedom of the smaller side."""
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, min(sizes) - 1))


def _share_bounds(share: float, error: float, count: int) -> tuple[float, float]:
    """Bounds of a share of `count` volumes that depend on each other through the balls that they share.

    Source: Korn and Graubard 1998: Clopper's and Pearson's bounds of as many independent volumes as give this standard error.
    """
    independent = min(float(count), share_variance(share, count) / error**2) if error > 0 else float(count)
    inside, outside, tail = share * independent, (1 - share) * independent, (1 - LEVEL) / 2
    low = scipy.stats.beta.ppf(tail, inside, outside + 1) if inside > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - tail, inside + 1, outside) if outside > 0 else 1.0
    return float(low), float(high)


def share_variance(share: float, count: int) -> float:
    """Variance of one of the volumes behind a share, above 0 for shares of 0 and 1 too (Laplace's rule)."""
    likely = (count * share + 1) / (count + 2)
    return likely * (1 - likely)
