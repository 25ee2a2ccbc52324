"""Resampling: exact on what splines reproduce, equal to SimpleITK, no ringing from the field-of-view fill."""

import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from storage.resample import _resample_oblique, axis_weights, is_aligned, resample_series, target_grid
from storage.sources.source import SourceVolume

NOISE = np.clip(np.random.default_rng(0).normal(0, 300, (30, 44, 40)), -1024, 3000).astype(np.int16)


def series(
    hu: np.ndarray, direction: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.9, 2.5)
) -> SourceVolume:
    return SourceVolume(hu, spacing, (3.0, -7.0, 11.0), direction, {}, "")


ALIGNED = {
    "supine": np.eye(3),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
}


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_matrices_equal_simpleitk(name: str, interpolation: str) -> None:
    scan = series(NOISE, ALIGNED[name])
    shape, origin = target_grid(scan, 1.0)
    mine = resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu.astype(int)
    itk = _resample_oblique(scan, shape, origin, 1.0, interpolation)
    assert np.abs(mine - itk).max() <= 1  # a value near .5 may round either way
    assert (mine != itk).mean() < 0.002


def test_cubic_weights_are_the_interpolating_spline() -> None:
    values = np.random.default_rng(1).normal(size=60)
    weights = axis_weights(60, 2.0, 5.0, 70, 0.7, 40.0, "cubic")
    spline = make_interp_spline(5.0 + 2.0 * np.arange(60), values, k=3)  # other ends: compared far from them
    np.testing.assert_allclose(weights @ values, spline(40.0 + 0.7 * np.arange(70)), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_same_grid_is_the_identity(interpolation: str) -> None:
    scan = series(NOISE, np.eye(3), (1.0, 1.0, 1.0))
    volume = resample_series(scan, spacing_mm=1.0, interpolation=interpolation)
    np.testing.assert_array_equal(volume.hu, NOISE)
    assert volume.origin_mm == pytest.approx((3.0, -7.0, 11.0))


def test_grid_covers_every_voxel_face() -> None:
    angle = np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scan = series(NOISE, turn)
    assert not is_aligned(turn)
    shape, origin = target_grid(scan, 1.0)
    corners = np.array([[(-0.5, n - 0.5)[(k >> a) & 1] for a, n in enumerate(NOISE.shape[::-1])] for k in range(8)])
    world = corners * scan.spacing_mm @ turn.T + scan.origin_mm
    assert (world.min(axis=0) >= np.asarray(origin) - 0.5 - 1e-2).all()
    assert (world.max(axis=0) <= np.asarray(origin) + np.asarray(shape[::-1]) - 0.5 + 1e-2).all()
    assert (np.asarray(shape[::-1]) < np.ptp(world, axis=0) + 1).all()


def test_air_beside_water_does_not_ring_below_air() -> None:
    hu = np.full((20, 30, 30), -1024, np.int16)
    hu[:, 8:22, 8:22] = 40
    out = resample_series(series(hu, np.eye(3)), spacing_mm=1.0, interpolation="cubic").hu
    assert out.min() == -1024
    assert out[out.shape[0] // 2, out.shape[1] // 2, out.shape[2] // 2] == pytest.approx(40, abs=2)
