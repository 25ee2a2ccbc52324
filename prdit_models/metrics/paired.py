"""Intervals of differences: of a figure on features between two sets of generated volumes, and of two shares."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from prdit_models.metrics.distances import RANDOM_SUFFIX, VAL_SUFFIX, FeatureDistance
from prdit_models.metrics.intervals import Subsampling, share_variance, student_quantile
from prdit_models.metrics.metric import LEVEL, METRICS
from prdit_models.metrics.pairs import feature_sets
from prdit_models.metrics.spread import share_interval


class PairedInterval(TypedDict):
    """A difference and where its expectation lies.

    Attributes:
        value: figure of B minus figure of A.
        low, high: of the interval.
        level: nominal coverage of the expectation of the difference at the same numbers of volumes.
        num_draws: subsamples behind it.
        method: one sentence.
    """

    value: float
    low: float
    high: float
    level: float
    num_draws: int
    method: str


class ShareDifference(TypedDict):
    """The difference of two shares, and where its expectation lies."""

    value: float
    low: float
    high: float
    level: float
    method: str


def paired_interval(
    metric_name: str,
    real: ArrayLike,
    generated_a: ArrayLike,
    generated_b: ArrayLike,
    seed: int,
    *,
    num_draws: int = 200,
    settings: Any = None,
) -> PairedInterval:
    """The difference of a figure between two sets of generated volumes, with an interval.

    Every draw leaves the same real volumes out for both sets. Where both have as many volumes, volume i of A and volume i of B
    are left out together, so that what samples of the same seed have in common does not widen the interval.

    Args:
        metric_name: a figure on features (`fid`, `kid`, `mmd`, `precision`, …), by any name that it has in a report.
        real: features of the real volumes, shape (n, d); of the held-out ones for a figure `_val`.
        generated_a, generated_b: features of the generated volumes, shapes (m, d) and (k, d), in the order of their seeds.
        seed: of the draws.
        num_draws: subsamples, at least 2.
        settings: of the metric, as both reports had them; default: its defaults.
    Raises: ValueError: a name that is none of those, features that cannot be compared, or too few volumes for the figure or for an
        interval (the sentence says how many are needed).
    """
    metric, name = _metric_of(metric_name)
    first, second = feature_sets(real, generated_a)
    _, third = feature_sets(real, generated_b)
    sizes = len(first), len(second), len(third)
    own = metric.settings() if settings is None else settings
    least = metric.min_for_interval(own)
    if min(sizes) < least or num_draws < 2:
        raise ValueError(
            f"paired_interval got {sizes[0]} real volumes, {sizes[1]} and {sizes[2]} generated ones and {num_draws} draws; an "
            f"interval of {name} needs at least {least} of each and 2 draws. Sample more, or compare the values alone."
        )
    a, b = (metric.values(first, each, own)[name] for each in (second, third))
    subsampling = Subsampling(metric.left_out, num_draws, seed)
    drawn = [
        metric.of_pairs(of_b, own)[name] - metric.of_pairs(of_a, own)[name]
        for of_a, of_b in subsampling.draws(metric.pairs, first, (second, third))
    ]
    below, above = (float(error) for error in subsampling.standard_errors(drawn, sizes))
    if below + above == 0.0 and metric.ranges[name].startswith("share"):
        # all draws 0 or 1: as wide as so few volumes allow
        counts = sizes[:1] * 2 if metric.ranges[name] == "share of real" else sizes[1:]
        variances = [share_variance(share, count) / count for share, count in zip((a, b), counts, strict=True)]
        below = above = float(np.sqrt(sum(variances)))
    quantile = student_quantile(sizes)
    return {
        "value": b - a,
        "low": b - a - quantile * below,
        "high": b - a + quantile * above,
        "level": LEVEL,
        "num_draws": num_draws,
        "method": subsampling.method + "; the same volumes left out for both",
    }


def share_difference(first: Sequence[bool], second: Sequence[bool], *, paired: bool) -> ShareDifference:
    """Share of the second minus share of the first, with Newcombe's interval from the Wilson intervals of both.

    Args:
        first, second: whether each item counts, one item or more; of equal length and order where they are paired.
        paired: whether item i of both is the same, such as a volume of the same seed.
    Raises: ValueError: one is empty, or paired ones differ in length.
    Source: Newcombe 1998, Statistics in Medicine 17: 873-890 (method 10) and 2635-2650 (method 10, paired, with the continuity
        correction of the correlation).
    """
    if not (len(first) and len(second)):
        raise ValueError(f"{len(first)} and {len(second)} items; a share needs one or more.")
    if paired and len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items are not paired; expected as many of both.")
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    below_one, above_one = _wilson(one)
    below_two, above_two = _wilson(two)
    correlation = _correlation(one, two) if paired else 0.0
    value = float(two.mean() - one.mean())
    below = below_two**2 - 2 * correlation * below_two * above_one + above_one**2
    above = below_one**2 - 2 * correlation * below_one * above_two + above_two**2
    return {
        "value": value,
        "low": value - float(np.sqrt(max(below, 0.0))),
        "high": value + float(np.sqrt(max(above, 0.0))),
        "level": LEVEL,
        "method": f"Newcombe, from Wilson score intervals{', paired' if paired else ''}",
    }


def _metric_of(figure: str) -> tuple[FeatureDistance, str]:
    """The metric of a figure, and the figure's name without suffixes."""
    known: list[str] = []
    for row in METRICS.names():
        metric = METRICS[row]
        if isinstance(metric, FeatureDistance):
            known += metric.ranges
            if figure in metric.figures:
                return metric, figure.removesuffix(RANDOM_SUFFIX).removesuffix(VAL_SUFFIX)
    raise ValueError(f"There is no paired interval of {figure!r}; there is one of {', '.join(known)}.")


def _wilson(counts: np.ndarray) -> tuple[float, float]:
    """How far the Wilson interval of a share reaches below and above it."""
    share = float(counts.mean())
    interval = share_interval(int(counts.sum()), len(counts))
    return share - interval["low"], interval["high"] - share


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Phi coefficient of both, the cross product moved towards 0 by half the number of items where it is positive."""
    both, neither = int((one & two).sum()), int((~one & ~two).sum())
    only_one, only_two = int((one & ~two).sum()), int((~one & two).sum())
    spread = (both + only_one) * (only_two + neither) * (both + only_two) * (only_one + neither)
    if not spread:
        return 0.0
    cross = both * neither - only_one * only_two
    corrected = cross if cross < 0 else max(cross - len(one) / 2, 0.0)
    return float(corrected / np.sqrt(spread))
