"""Intervals contain the expectation of their figure on known Gaussians; differences of two generated sets."""

import numpy as np
import pytest

from prdit_models.metrics import intervals
from prdit_models.metrics.fid import METRIC, frechet_distance
from prdit_models.metrics.intervals import Subsampling, interval
from prdit_models.metrics.paired import paired_interval
from tests.bench.coverage import PROVEN, Case, coverage, paired_coverage

WIDEST = 2.5  # of an interval against ±1.96 standard deviations: a method that covers by being useless fails


@pytest.mark.parametrize("case", [Case(16, 16, 8, 0.5, 1.2, trials=50), Case(20, 14, 512, 0.1, 1.1, 0.5, trials=50)])
def test_intervals_contain_the_expectation(case: Case) -> None:
    """A small part of the table of tests/bench/coverage.py: d below and far above n."""
    found = coverage(case, num_draws=20, num_truth=200)
    assert len(found) == 8
    for name, row in found.items():
        assert row["covered"] >= PROVEN, (name, row)
        assert "without" not in row
        if name not in ("recall", "coverage"):  # near 1 here, where a share's bounds are wide
            assert 0.7 <= row["width"] <= WIDEST, (name, row)


def test_intervals_of_differences_contain_the_expectation() -> None:
    found = paired_coverage(Case(20, 20, 64, 0.1, 1.1, trials=50), 20, 150, ("fid", "mmd"))
    for name, row in found.items():
        assert row["covered"] >= PROVEN, (name, row)
        assert row["width"] <= WIDEST, (name, row)


def test_what_samples_of_one_seed_share_does_not_widen_the_difference() -> None:
    rng = np.random.default_rng(0)
    real, first = rng.normal(size=(40, 16)), rng.normal(size=(40, 16))
    second = 1.1 * first + 0.05 * rng.normal(size=first.shape)
    paired = paired_interval("fid_val_random_features", real, first, second, 3)
    apart = paired_interval("fid", real, first, second[::-1], 3)
    assert paired["value"] == apart["value"] == frechet_distance(real, second) - frechet_distance(real, first)
    assert paired["low"] < paired["value"] < paired["high"]
    assert paired["high"] - paired["low"] < 0.7 * (apart["high"] - apart["low"])
    assert paired == paired_interval("fid", real, first, second, 3)
    assert paired != paired_interval("fid", real, first, second, 4)
    unequal = paired_interval("mmd_unbiased_val", real, first, second[:30], 0, num_draws=20)
    assert (unequal["num_draws"], unequal["level"]) == (20, 0.95)


def test_shares_at_their_ends_still_have_an_interval() -> None:
    line = np.linspace(0, 1, 24)[:, None]
    both = paired_interval("precision", line, line, line + 1e-3, 0, num_draws=10)
    assert both["value"] == 0
    assert both["low"] == -both["high"] < -0.05
    subsampling = Subsampling(0.25, 10, 0)
    all_inside = interval(1.0, (0.0, 0.0), "share of generated", (30, 20), subsampling)
    assert all_inside is not None
    assert all_inside["low"] == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson of 20 of 20
    assert all_inside["high"] == 1.0
    assert interval(0.0, (0.0, 0.0), "positive", (30, 20), subsampling) is None


def test_draws_of_sets_too_large_for_all_pairs_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    subsampling = Subsampling(0.5, 4, 7)

    def values() -> list[float]:
        return [METRIC.of_pairs(pairs, None)["fid"] for (pairs,) in subsampling.draws(METRIC.pairs, real, (generated,))]

    whole = values()
    monkeypatch.setattr(intervals, "_MOST_PAIRS", 10)
    assert values() == pytest.approx(whole, rel=1e-9)
    assert len(set(whole)) == 4
    monkeypatch.setattr(intervals, "_MOST_KEPT", 6)
    assert subsampling.kept(30) == 6
    below, above = subsampling.standard_errors([[0.0], [0.0], [0.0], [4.0]], (30, 12))
    assert (below[0], above[0]) == pytest.approx((1.0, 3.0))  # 6 of 12 and, of more, as few kept: the scale is 1


def test_what_has_no_paired_interval_is_refused() -> None:
    rng = np.random.default_rng(2)
    real, generated = rng.normal(size=(11, 4)), rng.normal(size=(12, 4))
    with pytest.raises(ValueError, match=r"no paired interval of 'hu_mean_real'; there is one of fid, kid, mmd"):
        paired_interval("hu_mean_real", real, generated, generated, 0)
    with pytest.raises(
        ValueError, match=r"11 real volumes, 12 and 12 generated ones .* precision needs at least 12 of each"
    ):
        paired_interval("precision", real, generated, generated, 0)
    with pytest.raises(ValueError, match="4 real volumes"):
        paired_interval("fid", real[:4], generated, generated, 0)
    with pytest.raises(ValueError, match="width 4 and 3"):
        paired_interval("fid", real, generated, generated[:, :3], 0)
