"""Anatomy of two sides: shares, intervals and distances by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from prdit_models.metrics.anatomy import LIMITS
from prdit_models.metrics.chest import (
    Anatomy,
    anatomy_figures,
    why_left_out,
)
from tasks.evaluate.tables import anatomy_table

MIDDLES = {name: (limit.low + limit.high) / 2 for name, limit in LIMITS.items()}


def seen(**changes: float | None) -> Anatomy:
    """A volume whose figures lie in the middle of their limits, but for some."""
    figures = MIDDLES | changes
    failed = [name for name in changes if not LIMITS[name].allows(figures[name], 8.0)]
    return Anatomy(figures, failed)


def test_share_interval_and_distances_are_those_of_the_values() -> None:
    real = [seen(lung_hu=-850.0), seen(lung_hu=-830.0)]
    generated = [seen(lung_hu=-800.0), seen(lung_hu=-840.0), seen(lung_hu=-300.0), seen(outside_hu=None)]
    figures = anatomy_figures(real, generated)
    share = figures["anatomy_pass_share"]
    assert (share.value, share.n_real, share.n_generated) == (0.75, 2, 4)
    assert share.note == "3 of 4 volumes are inside all 12 limits."
    # Wilson score interval, written out for 3 of 4 at 95 %
    z, n, p = 1.959964, 4, 0.75
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert share.interval is not None
    assert (share.interval["low"], share.interval["high"]) == pytest.approx((middle - half, middle + half), rel=1e-5)
    assert figures["anatomy_pass_share_real"].value == 1.0
    expected = wasserstein_distance([-850, -830], [-800, -840, -300, MIDDLES["lung_hu"]])
    assert figures["anatomy_lung_hu_distance"].value == pytest.approx(expected)
    assert figures["anatomy_lung_hu_distance"].unit == "HU"
    assert figures["anatomy_outside_hu_distance"].n_generated == 3
    assert figures["anatomy_grain_hu_distance"].value == 0
    assert figures["anatomy_lung_hu_distance"].interval is None
    many = anatomy_figures([seen(lung_hu=-850.0 + k) for k in range(6)], generated * 2, intervals=True)
    found = many["anatomy_lung_hu_distance"]
    assert found.interval is not None
    assert 0 <= found.interval["low"] < found.value < found.interval["high"]


def test_a_figure_that_no_volume_of_a_side_has_gives_no_distance() -> None:
    figures = anatomy_figures([seen()], [seen(outside_hu=None)])
    assert figures["anatomy_outside_hu_distance"].value is None
    assert "Not defined" in figures["anatomy_outside_hu_distance"].note
    assert figures["anatomy_pass_share"].value == 1.0  # no air around the body to measure


def test_it_is_left_out_where_most_real_volumes_show_no_chest() -> None:
    good, bad = seen(), seen(lung_right_l=0.01)
    assert why_left_out([good, bad]) == ""
    sentence = why_left_out([good, bad, bad])
    assert "1 of 3 real volumes" in sentence
    assert f"{LIMITS['lung_right_l'].title}, in 2" in sentence


def test_the_reports_table_has_limits_ranges_and_counts() -> None:
    sides = {"real": [seen()], "generated": [seen(grain_hu=100.0), seen(grain_hu=20.0), seen(grain_hu=60.0)]}
    section = {
        side: {str(k): {"figures": v.figures, "failed": v.failed} for k, v in enumerate(volumes)}
        for side, volumes in sides.items()
    }
    limits = {name: vars(limit) for name, limit in LIMITS.items()}
    figures = {name: SimpleNamespace(value=figure.value) for name, figure in anatomy_figures(*sides.values()).items()}
    rows = anatomy_table(
        SimpleNamespace(details={"anatomy": section | {"limits": limits}}, voxel_mm=8.0, figures=figures, references={})
    )
    row = rows[-1]
    assert row["limits"] == (12.0, 80.0)  # 1.5 HU per mm
    assert row["generated"] == [20.0, 60.0, 100.0]
    assert row["outside"] == 1
    assert len(rows) == len(LIMITS)
