"""Anatomy of volumes whose figures are known by construction, and what the limits pass and refuse."""

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import LIMITS, anatomy, failures, neighbour_distance, pooled
from tests.perturbations import PERTURBATIONS
from tests.phantoms import phantom_box

Hu = NDArray[np.float32]


def blocks(lung_tops: tuple[int, int] = (24, 24)) -> Hu:
    """32³ voxels of 8 mm: a body of 20 × 16 columns, right lung of 5 × 8 columns, left of 4 × 8, from slice 8 up; bone behind."""
    hu = np.full((32, 32, 32), -1000, dtype=np.float32)
    hu[:, 8:24, 6:26] = 40
    hu[8 : lung_tops[0], 10:18, 7:12] = -850
    hu[8 : lung_tops[1], 10:18, 20:24] = -800
    hu[:, 21:23, 15:17] = 400
    return hu


def test_figures_of_a_body_of_blocks_are_those_of_its_construction() -> None:
    figures = anatomy(blocks(), 8.0)
    litre = 0.08**3  # of one voxel of 8 mm: 0.08 dm cubed
    assert figures["body_share"] == pytest.approx(16 * 20 / 32**2)
    assert figures["body_connected"] == figures["body_filled"] == figures["lung_connected"] == 1.0
    assert figures["lung_right_l"] == pytest.approx(16 * 8 * 5 * litre)
    assert figures["lung_left_l"] == pytest.approx(16 * 8 * 4 * litre)
    assert figures["lung_hu"] == pytest.approx(
        (14 * 6 * 3 * -850 + 14 * 6 * 2 * -800) / (14 * 6 * 5)
    )  # eroded by a voxel
    assert figures["tissue_hu"] == 40
    assert figures["bone_share"] == pytest.approx(4 / 320)
    assert figures["outside_hu"] == -1000
    assert figures["grain_hu"] == 0  # most voxels of tissue are among equals


def test_figures_do_not_depend_on_resolution_but_for_grain() -> None:
    coarse, fine = blocks(), blocks().repeat(4, 0).repeat(4, 1).repeat(4, 2)
    ours, theirs = anatomy(coarse, 8.0), anatomy(fine, 2.0)
    for name in LIMITS.keys() - {"grain_hu"}:
        assert ours[name] == pytest.approx(theirs[name]), name
    assert np.array_equal(pooled(fine, 2.0), coarse)


def test_taper_is_the_correlation_written_out_and_turns_its_sign_when_mirrored() -> None:
    hu = blocks((20, 12))
    z, y, x = np.nonzero((hu < -500) & (np.arange(32)[:, None] >= 8) & (np.arange(32)[:, None] < 24))
    inner = (y >= 10) & (y < 18) & (x >= 7) & (x < 24)
    z, y, x = z[inner], y[inner], x[inner]
    distance = np.hypot(y - 15.5, x - 15.5)
    expected = -np.cov(z, distance, bias=True)[0, 1] / (z.std() * distance.std())
    assert anatomy(hu, 8.0)["lung_taper"] == pytest.approx(expected)
    assert anatomy(hu[::-1].copy(), 8.0)["lung_taper"] == pytest.approx(-expected)


def test_lungs_that_the_box_cuts_are_still_lungs() -> None:
    """A wide chest: nothing between the right lung and the side of the box."""
    hu = blocks()
    hu[:, 8:24, :6] = 40
    hu[8:24, 10:18, :7] = -850
    litre = 0.08**3
    assert anatomy(hu, 8.0)["lung_right_l"] == pytest.approx(16 * 8 * 12 * litre)


def test_grain_is_the_median_distance_to_the_six_neighbours() -> None:
    hu = np.random.default_rng(0).normal(0, 30, (6, 6, 6)).astype(np.float32)
    at = (2, 3, 4)
    neighbours = [hu[1, 3, 4], hu[3, 3, 4], hu[2, 2, 4], hu[2, 4, 4], hu[2, 3, 3], hu[2, 3, 5]]
    assert neighbour_distance(hu)[at] == pytest.approx(abs(hu[at] - np.mean(neighbours)), rel=1e-5)
    noisy = np.random.default_rng(1).normal(40, 30, (64, 64, 64)).astype(np.float32)
    expected = 0.6745 * 30 * np.sqrt(1 + 1 / 6)  # median of |N(0, s²)| of a voxel minus the mean of six others
    assert anatomy(noisy, 8.0)["grain_hu"] == pytest.approx(expected, rel=0.02)
    assert [LIMITS["grain_hu"].bounds(voxel_mm) for voxel_mm in (1.0, 8.0, 16.0)] == [(1.5, 80), (12, 80), (24, 160)]


@pytest.mark.parametrize("value", [-1000.0, 40.0])
def test_volumes_without_lungs_have_figures_or_none_and_fail(value: float) -> None:
    figures = anatomy(np.full((16, 16, 16), value, dtype=np.float32), 16.0)
    assert figures["lung_hu"] is None
    assert figures["lung_taper"] is None
    assert figures["lung_right_l"] == 0.0
    assert {"lung_right_l", "lung_left_l", "lung_hu", "lung_taper"} <= set(failures(figures, 16.0))


def test_what_cannot_be_measured_is_refused() -> None:
    bad = blocks()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of 32768 voxels are not finite"):
        anatomy(bad, 8.0)
    with pytest.raises(ValueError, match=r"expected one volume"):
        anatomy(bad[0], 8.0)
    with pytest.raises(ValueError, match=r"expected a positive edge"):
        anatomy(blocks(), 0.0)


@lru_cache
def phantom(patient: int) -> Hu:
    """A phantom patient in a box of 256 mm, 128³ voxels, saturated to the window."""
    return phantom_box(patient, 128)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("patient", [0, 1, 2])
def test_phantoms_pass_and_their_perturbations_do_not(patient: int, size: int) -> None:
    voxel_mm = 256 / size
    hu = phantom(patient).reshape(*[n for _ in range(3) for n in (size, 128 // size)]).mean(axis=(1, 3, 5))
    assert failures(anatomy(hu, voxel_mm), voxel_mm) == []
    for name, perturb in PERTURBATIONS.items():
        changed = perturb(hu, voxel_mm, np.random.default_rng(patient))
        assert failures(anatomy(changed, voxel_mm), voxel_mm), name
