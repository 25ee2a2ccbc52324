"""Intervals cover the expectation of a figure at the same number of volumes."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from prdit_models.metrics.spread import Spread, jackknife, jackknife_interval, median_interval, share_interval

RNG_SEED = 1


def _means_apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.mean(0) - second.mean(0)).mean())


CASES: dict[str, tuple[Callable[..., float], int, float]] = {  # figure, values of a volume, shift of one side
    "Wasserstein, equal": (stats.wasserstein_distance, 1, 0.0),
    "Wasserstein, shifted": (stats.wasserstein_distance, 1, 2.0),
    "means of curves, equal": (_means_apart, 8, 0.0),
    "means of curves, shifted": (_means_apart, 8, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_coverage_is_at_least_nine_in_ten(name: str) -> None:
    measure, width, shift = CASES[name]
    rng = np.random.default_rng(RNG_SEED)

    def draw(count: int, middle: float) -> np.ndarray:
        return rng.normal(middle, 1, (count, width) if width > 1 else count)

    truth = np.mean([measure(draw(8, 0.0), draw(12, shift)) for _ in range(2000)])
    found = [jackknife_interval(measure, draw(8, 0.0), draw(12, shift), low=0.0) for _ in range(120)]
    assert sum(each is not None and each["low"] <= truth <= each["high"] for each in found) >= 0.9 * len(found)


def test_of_a_mean_it_is_the_interval_of_student() -> None:
    values = np.random.default_rng(0).normal(3, 2, 30)
    found = jackknife_interval(lambda rows: float(rows.mean()), values)
    assert found is not None
    expected = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    other = np.random.default_rng(1).normal(0, 1, 12)
    both = jackknife_interval(lambda a, b: float(a.mean() - b.mean()), values, other)
    assert both is not None
    welch = stats.ttest_ind(values, other, equal_var=False).confidence_interval()
    assert (both["low"], both["high"]) == pytest.approx((welch.low, welch.high))


def test_many_volumes_are_left_out_in_fifty_parts() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    calls = []

    def mean(rows: np.ndarray) -> float:
        calls.append(len(rows))
        return float(rows.mean())

    found = jackknife(mean, values)
    assert found is not None
    assert calls == [980] * 50
    assert found.variance == pytest.approx(1 / 1000, rel=0.5)
    assert found.freedom == 49


def test_too_few_volumes_or_a_figure_that_is_not_always_defined_have_none() -> None:
    assert jackknife_interval(lambda rows: float(rows.mean()), np.arange(4.0)) is None
    assert jackknife_interval(lambda rows: float("nan") if len(rows) < 6 else 1.0, np.arange(6.0)) is None
    same = jackknife_interval(lambda a, b: float(a.mean() - b.mean()), np.ones(6), np.ones(6))
    assert same is not None
    assert (same["low"], same["high"]) == (0.0, 0.0)


def test_bounds_and_shares() -> None:
    interval = Spread(1.0, 10).interval(0.5, low=0.0, high=1.0)
    assert (interval["low"], interval["high"]) == (0.0, 1.0)
    share = share_interval(0, 10)
    assert (share["low"], share["high"]) == pytest.approx(
        (0.0, 0.27753), abs=1e-5
    )  # Wilson, written out: z² / (n + z²)


def test_the_interval_of_a_median_has_the_binomial_order_statistics() -> None:
    found = median_interval(np.arange(20.0)[::-1])
    assert found is not None
    assert (found["low"], found["high"]) == (5.0, 14.0)  # 6th and 15th of 20: 95.9 %
    assert median_interval(np.arange(5.0)) is None
    assert median_interval(np.arange(6.0)) is not None
