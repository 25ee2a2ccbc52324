"""Anatomy of two sides: shares, intervals and distances by hand, and nearest training volumes."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from prdit_models.metrics.anatomy import LIMITS
from prdit_models.metrics.chest import (
    Anatomy,
    Nearest,
    anatomy_figures,
    copies_warning,
    nearest_figures,
    nearest_training,
    spread_figures,
    why_left_out,
)
from tasks.evaluate.report import anatomy_table

MIDDLES = {name: (limit.low + limit.high) / 2 for name, limit in LIMITS.items()}


def seen(**changes: float | None) -> Anatomy:
    """A volume whose figures lie in the middle of their limits, but for some."""
    figures = MIDDLES | changes
    failed = [name for name in changes if not LIMITS[name].allows(figures[name], 8.0)]
    return Anatomy(figures, failed, np.zeros((4, 4, 4), dtype=np.float32))


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


def test_nearest_training_volume_is_found_though_its_box_was_moved() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.normal(-500, 300, (3, 16, 16, 16)).astype(np.float32)
    training = {f"v{k}": Anatomy({}, [], coarse[k]) for k in range(3)}
    moved = Anatomy({}, [], np.roll(coarse[1], 2, axis=0))  # 16 mm in a box of 128 mm
    found = nearest_training([moved], training, box_mm=128.0)
    assert found[0].volume_id == "v1"
    assert found[0].distance_hu == pytest.approx(0, abs=1e-3)
    assert (
        nearest_training([moved], training, box_mm=256.0)[0].distance_hu > 100
    )  # 32 mm: further than boxes are shifted
    figures = nearest_figures([Nearest("v1", 10.0), Nearest("v2", 30.0), Nearest("v1", 80.0)], [Nearest("v0", 50.0)], 3)
    assert {name: figure.value for name, figure in figures.items()} == {
        "nearest_training_distance": 30.0,
        "nearest_training_distance_min": 10.0,
        "nearest_training_distance_held_out": 50.0,
    }


def test_spread_is_the_median_distance_of_two_volumes_of_a_side() -> None:
    flat = [Anatomy({}, [], np.full((2, 2, 2), value, dtype=np.float32)) for value in (0.0, 10.0, 40.0)]
    figures = spread_figures(flat, [flat[1]] * 3)
    assert figures["pairwise_distance_real"].value == pytest.approx(30.0)  # of 10, 30, 40
    assert figures["pairwise_distance"].value == pytest.approx(0.0, abs=1e-3)


def test_samples_much_nearer_to_training_volumes_than_held_out_patients_are_called_copies() -> None:
    held_out = [Nearest("v0", 200.0)]
    sentence = copies_warning(nearest_figures([Nearest("v1", 90.0)], held_out, 3))
    assert "Samples may be copies: they are 90 HU" in sentence
    assert "held-out volumes 200 HU" in sentence
    assert copies_warning(nearest_figures([Nearest("v1", 100.0)], held_out, 3)) == ""
    assert copies_warning(nearest_figures([Nearest("v1", 0.0)], [], 3)) == ""  # nothing to compare with


def test_the_reports_table_has_limits_ranges_and_counts() -> None:
    sides = {"real": [seen()], "generated": [seen(grain_hu=100.0), seen(grain_hu=20.0), seen(grain_hu=60.0)]}
    section = {
        side: {str(k): {"figures": v.figures, "failed": v.failed} for k, v in enumerate(volumes)}
        for side, volumes in sides.items()
    }
    limits = {name: vars(limit) for name, limit in LIMITS.items()}
    figures = {name: SimpleNamespace(value=figure.value) for name, figure in anatomy_figures(*sides.values()).items()}
    rows = anatomy_table(
        SimpleNamespace(details={"anatomy": section | {"limits": limits}}, voxel_mm=8.0, figures=figures)
    )
    row = rows[-1]
    assert row["limits"] == (12.0, 80.0)  # 1.5 HU per mm
    assert row["generated"] == [20.0, 60.0, 100.0]
    assert row["outside"] == 1
    assert len(rows) == len(LIMITS)
