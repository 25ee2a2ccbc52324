"""Interval of the difference of two shares: Newcombe's published example, and its coverage where items are paired."""

import numpy as np
import pytest

from prdit_models.metrics.paired import share_difference


def test_the_published_example() -> None:
    """56 of 70 against 48 of 80 (Newcombe 1998, 17: 873-890, table II, method 10)."""
    found = share_difference([True] * 48 + [False] * 32, [True] * 56 + [False] * 14, paired=False)
    assert found["value"] == pytest.approx(0.2)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.0524, 0.3339)


def test_paired_intervals_cover_and_are_narrower() -> None:
    rng = np.random.default_rng(0)
    inside, narrower = 0, 0
    for _ in range(400):
        common = rng.random(40)
        first = common < 0.6
        second = np.where(rng.random(40) < 0.15, rng.random(40) < 0.7, common < 0.6)  # 85 % as before: 0.615
        paired = share_difference(list(first), list(second), paired=True)
        apart = share_difference(list(first), list(second), paired=False)
        inside += paired["low"] <= 0.15 * (0.7 - 0.6) <= paired["high"]
        narrower += paired["high"] - paired["low"] < 0.8 * (apart["high"] - apart["low"])
    assert inside >= 0.93 * 400
    assert narrower >= 0.9 * 400


def test_equal_and_unusable_sides() -> None:
    none = share_difference([False] * 8, [False] * 8, paired=True)
    assert none["value"] == 0.0
    assert none["low"] == pytest.approx(-none["high"])
    assert none["high"] > 0.2  # eight failures of each say little
    with pytest.raises(ValueError, match="0 and 3 items"):
        share_difference([], [True] * 3, paired=False)
    with pytest.raises(ValueError, match="2 and 3 items are not paired"):
        share_difference([True] * 2, [True] * 3, paired=True)
