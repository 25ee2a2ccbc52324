"""Resampling: exact on what splines reproduce, equal to SimpleITK, uneven planes where they are, no ringing from fill."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.interpolate import make_interp_spline

from storage import resample
from storage.geometry import AIR_HU, FILL_HU
from storage.resample import is_aligned, resample_series, target_grid
from storage.sources.source import SourceVolume
from storage.spline import axis_weights, bands, coefficient_weights, nearest

NOISE = np.clip(np.random.default_rng(0).normal(0, 300, (50, 54, 60)), -1024, 3000).astype(np.int16)
_c, _s = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
DIRECTIONS = {
    "supine": np.eye(3),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": np.array([[_c, -_s, 0.0], [_s, _c, 0.0], [0.0, 0.0, 1.0]]),
    "tilted": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, _s], [0.0, 0.0, _c]]),
}
ALIGNED = ("supine", "prone", "feet first", "sagittal")
SPACING = (0.7, 0.8, 2.5)


def series(
    hu: np.ndarray,
    direction: np.ndarray,
    spacing: tuple[float, float, float] = SPACING,
    slice_mm: tuple[float, ...] | None = None,
) -> SourceVolume:
    return SourceVolume(hu, spacing, (3.0, -7.0, 11.0), direction, {}, "", slice_mm=slice_mm)


def at_voxels(scan: SourceVolume) -> np.ndarray:
    """World positions (k, j, i, 3) of a scan's voxels, its uneven planes where they are."""
    k, j, i = (np.arange(n, dtype=float) for n in scan.hu.shape)
    along_k = k * scan.spacing_mm[2] if scan.slice_mm is None else np.asarray(scan.slice_mm)
    steps = np.stack(
        np.broadcast_arrays(i * scan.spacing_mm[0], j[:, None] * scan.spacing_mm[1], along_k[:, None, None]), -1
    )
    return steps @ scan.direction.T + scan.origin_mm


def linear(world: np.ndarray) -> np.ndarray:
    return 3.0 * world[..., 0] - 2.0 * world[..., 1] + 1.0 * world[..., 2] + 40.0


def linear_series(
    direction: np.ndarray, dtype: type = np.float32, slice_mm: tuple[float, ...] | None = None
) -> SourceVolume:
    empty = series(np.zeros((30, 44, 40), dtype), direction, slice_mm=slice_mm)
    values = linear(at_voxels(empty))
    return series(
        np.rint(values).astype(dtype) if dtype is np.int16 else values.astype(dtype), direction, slice_mm=slice_mm
    )


def at_grid(scan: SourceVolume, spacing_mm: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(world positions (z, y, x, 3) of the target grid, fractional source index (…, 3) in i, j, k of even planes)."""
    shape, origin = target_grid(scan, spacing_mm)
    z, y, x = np.meshgrid(*[np.arange(n) * spacing_mm for n in shape], indexing="ij")
    world = np.stack([x, y, z], -1) + origin
    index = (world - scan.origin_mm) @ np.linalg.inv(scan.direction * np.asarray(scan.spacing_mm)).T
    return world, index


def beyond(scan: SourceVolume, index: np.ndarray) -> np.ndarray:
    """How far, in voxels, an index lies outside the outermost samples; negative inside."""
    last = np.asarray(scan.hu.shape[::-1]) - 1
    return np.maximum(-index, index - last).max(axis=-1)


def by_itk(scan: SourceVolume, interpolation: str) -> np.ndarray:
    """The same grid by SimpleITK, outside AIR_HU."""
    shape, origin = target_grid(scan, 1.0)
    image = sitk.GetImageFromArray(scan.hu.astype(np.float32))
    image.SetSpacing(scan.spacing_mm)
    image.SetOrigin(scan.origin_mm)
    image.SetDirection(scan.direction.ravel().tolist())
    kind = {"cubic": sitk.sitkBSpline3, "linear": sitk.sitkLinear}[interpolation]
    found = sitk.Resample(
        image, shape[::-1], sitk.Transform(), kind, origin, (1.0,) * 3, np.eye(3).ravel().tolist(), AIR_HU
    )
    return np.clip(np.rint(sitk.GetArrayFromImage(found)), AIR_HU, 32767).astype(int)


def by_voxel(scan: SourceVolume, monkeypatch: pytest.MonkeyPatch, interpolation: str = "cubic") -> np.ndarray:
    """An aligned scan on the way of the oblique ones."""
    with monkeypatch.context() as patch:
        patch.setattr(resample, "is_aligned", lambda direction: False)
        return resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu


# ---- the interpolation itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_equal_to_simpleitk(name: str, interpolation: str) -> None:
    scan = series(NOISE, DIRECTIONS[name])
    mine = resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu.astype(int)
    itk = by_itk(scan, interpolation)
    _, index = at_grid(scan)
    # SimpleITK mirrors the samples at the faces: 10 samples further in that is 1e-5 of a noise of 300 HU.
    inside = beyond(scan, index) < (-10 if interpolation == "cubic" else -1e-6)
    assert inside.sum() > 2000
    assert np.abs(mine - itk)[inside].max() <= 1  # a value near .5 may round either way
    assert (mine != itk)[inside].mean() < 0.002
    assert (mine[beyond(scan, index) > 0.5 + 1e-6] == AIR_HU).all()


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_axis_by_axis_equals_voxel_by_voxel(name: str, interpolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = series(NOISE, DIRECTIONS[name])
    mine = resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu.astype(int)
    other = by_voxel(scan, monkeypatch, interpolation)
    assert np.abs(mine - other).max() <= 1
    assert (mine != other).mean() < 0.002


@pytest.mark.parametrize("uneven", [False, True])
def test_cubic_weights_are_the_interpolating_spline(uneven: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    samples = 5.0 + 2.0 * np.arange(60) + (rng.uniform(-0.4, 0.4, 60) if uneven else 0.0)
    positions = 40.0 + 0.7 * np.arange(70)
    found = axis_weights(samples, positions, "cubic") @ values
    spline = make_interp_spline(samples, values, k=3)  # not-a-knot ends: compared far from them
    np.testing.assert_allclose(found, spline(positions), atol=1e-5)


def test_bands_leave_out_nothing_that_counts() -> None:
    weights = axis_weights(np.arange(200.0), np.arange(-0.4, 199.5, 0.7), "cubic")
    whole = np.zeros_like(weights)
    for band in bands(weights):
        assert band.weights.shape[1] < 50
        whole[band.rows, band.columns] = band.weights
    np.testing.assert_allclose(whole, weights, atol=1e-6)


def test_coefficients_give_the_samples_back() -> None:
    coefficients = coefficient_weights(9)
    np.testing.assert_allclose(
        (coefficients[:-2] + 4 * coefficients[1:-1] + coefficients[2:]) / 6, np.eye(9), atol=1e-12
    )
    np.testing.assert_allclose(coefficient_weights(1), 1)


def test_nearest_sample_of_uneven_ones() -> None:
    found = nearest(np.array([0.0, 1.0, 3.0]), np.array([-9.0, 0.4, 0.6, 1.9, 2.1, 9.0]))
    assert found.tolist() == [0, 0, 1, 1, 2, 2]


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


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 3, 2), (3, 1, 1)])
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_few_samples(shape: tuple[int, int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = series(np.full(shape, 70, np.int16), np.eye(3))
    assert set(resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu.ravel()) == {70}
    assert set(by_voxel(scan, monkeypatch, interpolation).ravel()) == {70}


# ---- faces and uneven planes ------------------------------------------------------------------------------------

JITTER = np.random.default_rng(2).uniform(-0.25, 0.25, 30) * np.r_[0, np.ones(28), 0]
UNEVEN = tuple((2.5 * np.arange(30) + JITTER).tolist())  # a tenth of the step to either side


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
@pytest.mark.parametrize("slice_mm", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_linear_body_is_right_inside_and_at_its_faces(
    name: str, interpolation: str, slice_mm: tuple[float, ...] | None, dtype: type
) -> None:
    scan = linear_series(DIRECTIONS[name], dtype, slice_mm)
    found = resample_series(scan, spacing_mm=1.0, interpolation=interpolation).hu
    world, index = at_grid(scan)
    error = np.abs(found - linear(world))
    outside = beyond(scan, index)
    assert error[outside <= 0].max() <= (0.502 if dtype is np.float32 else 1.5)  # rounding of source and result
    # Beyond the outermost samples their value holds: half a voxel at most, here (3·0.7 + 2·0.8 + 1·2.5) / 2 HU at a corner.
    assert error[(outside > 0) & (outside <= 0.5)].max() <= 3.7
    assert (found[outside > 0.5 + 1e-6] == AIR_HU).all()


def test_uneven_planes_taken_as_even_would_be_wrong() -> None:
    scan = linear_series(np.eye(3), slice_mm=UNEVEN)
    found = resample_series(series(scan.hu, np.eye(3)), spacing_mm=1.0, interpolation="cubic").hu
    world, index = at_grid(scan)
    assert np.abs(found - linear(world))[beyond(scan, index) <= 0].max() > 0.6


@pytest.mark.parametrize("name", ["supine", "feet first", "oblique", "tilted"])
def test_uneven_planes_of_a_curved_body(name: str) -> None:
    """A wave of 40 mm along k: the spline through the recorded planes follows it, one through even planes does not."""

    def wave(mm: np.ndarray) -> np.ndarray:
        return 400 * np.sin(2 * np.pi * mm / 40)

    hu = np.broadcast_to(wave(np.asarray(UNEVEN))[:, None, None], (30, 24, 24)).astype(np.float32)
    scan = series(hu, DIRECTIONS[name], slice_mm=UNEVEN)
    _, index = at_grid(scan)
    inside = beyond(scan, index) <= -3
    expected = wave(index[..., 2] * 2.5)[inside]
    found = resample_series(scan, spacing_mm=1.0, interpolation="cubic").hu[inside]
    assert np.abs(found - expected).max() <= 2.0
    even = resample_series(series(hu, DIRECTIONS[name]), spacing_mm=1.0, interpolation="cubic").hu[inside]
    assert np.abs(even - expected).max() > 10


# ---- fill ---------------------------------------------------------------------------------------------------------


def _cylinder(shape: tuple[int, int, int]) -> np.ndarray:
    _, j, i = np.indices(shape)
    return np.hypot(j - (shape[1] - 1) / 2, i - (shape[2] - 1) / 2) > shape[1] / 2


def _masked_body(shape: tuple[int, int, int]) -> np.ndarray:
    k, j, i = np.indices(shape)
    return np.hypot(j - 20, i - 20) > 12 + 5 * np.sin(k / 3)


FILLS = {
    "cylinder": _cylinder,
    "corner": lambda shape: np.indices(shape)[1] + np.indices(shape)[2] < 30,
    "planes at both ends": lambda shape: np.isin(np.indices(shape)[0], (0, 1, 27, 28, 29)),
    "planes and cylinder": lambda shape: np.isin(np.indices(shape)[0], (0, 1, 28, 29)) | _cylinder(shape),
    "half of some planes": lambda shape: (np.indices(shape)[0] > 20) & (np.indices(shape)[1] > 18),
    "islands": lambda shape: np.linalg.norm(np.indices(shape) - np.reshape([15, 20, 20], (3, 1, 1, 1)), axis=0) < 5,
    "a voxel here and there": lambda shape: np.random.default_rng(3).random(shape) < 0.01,
    "another body in every plane": _masked_body,
}  # fmt: skip


def filled(scan: SourceVolume, fill: np.ndarray) -> tuple[SourceVolume, np.ndarray]:
    """(the scan with fill, whether the nearest source voxel of each point of its grid is tissue)."""
    hu = np.where(fill, FILL_HU, scan.hu).astype(scan.hu.dtype)
    _, index = at_grid(scan)
    near = np.clip(np.floor(index + 0.5).astype(int), 0, np.asarray(scan.hu.shape[::-1]) - 1)
    i, j, k = np.moveaxis(near, -1, 0)
    return dataclasses.replace(scan, hu=hu), ~fill[k, j, i] & (beyond(scan, index) <= 0.5 - 1e-6)


def ties(index: np.ndarray) -> np.ndarray:
    """Where two source voxels are as near as each other."""
    return (np.abs(index - np.floor(index) - 0.5) < 1e-6).any(axis=-1)


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_constant_body_beside_fill_stays_constant(kind: str, name: str, dtype: type) -> None:
    body = series(np.full((30, 41, 41), 50, dtype), DIRECTIONS[name], (0.7, 0.7, 2.5))
    scan, tissue = filled(body, FILLS[kind](body.hu.shape))
    found = resample_series(scan, spacing_mm=1.0, interpolation="cubic").hu
    clear = ~ties(at_grid(scan)[1])
    assert (tissue & clear).sum() > 3000
    assert np.abs(found[tissue & clear] - 50.0).max() <= 0  # 50 ± 2 is asked for, up to the last whole voxel
    assert (found[~tissue & clear] == AIR_HU).all()


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_linear_body_beside_fill(kind: str, name: str) -> None:
    """Tissue is extended by its nearest value, not by its slope: the error is half of what a voxel spans, at its faces."""
    body = linear_series(DIRECTIONS[name])
    fill = FILLS[kind](body.hu.shape)
    scan, tissue = filled(body, fill)
    found = resample_series(scan, spacing_mm=1.0, interpolation="cubic").hu
    world, index = at_grid(scan)
    error = np.abs(found - linear(world))[tissue & ~ties(index)]
    per_voxel = np.abs(np.array([3.0, -2.0, 1.0]) @ scan.direction) * scan.spacing_mm
    assert error.max() <= 0.65 * per_voxel.sum() + 0.5
    assert np.median(error) <= 0.5


def test_without_care_fill_would_ring() -> None:
    body = np.full((30, 41, 41), 50, np.int16)
    naive = np.where(_cylinder(body.shape), -2000, body).astype(np.int16)
    _, tissue = filled(series(body, np.eye(3)), _cylinder(body.shape))
    found = resample_series(series(naive, np.eye(3)), spacing_mm=1.0, interpolation="cubic").hu
    assert np.abs(found[tissue] - 50.0).max() > 150


@pytest.mark.parametrize("name", ["supine", "oblique"])
def test_scan_of_nothing_but_fill_is_air(name: str) -> None:
    scan = series(np.full((6, 8, 9), FILL_HU, np.int16), DIRECTIONS[name])
    assert set(resample_series(scan, spacing_mm=1.0, interpolation="cubic").hu.ravel()) == {AIR_HU}


@pytest.mark.parametrize("kind", FILLS)
def test_fill_of_aligned_and_oblique_scans_is_treated_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = series(NOISE[:30, :41, :41], np.eye(3))
    scan, _ = filled(noise, FILLS[kind](noise.hu.shape))
    mine = resample_series(scan, spacing_mm=1.0, interpolation="cubic").hu.astype(int)
    other = by_voxel(scan, monkeypatch)
    clear = ~ties(at_grid(scan)[1])
    assert np.abs(mine - other)[clear].max() <= 1
    assert (mine != other)[clear].mean() < 0.002


def test_uneven_planes_with_fill() -> None:
    hu = np.full((30, 24, 24), 50, np.int16)
    hu[10:12] = FILL_HU
    found = resample_series(series(hu, np.eye(3), slice_mm=UNEVEN), spacing_mm=1.0, interpolation="cubic").hu
    world, _ = at_grid(series(hu, np.eye(3)))
    k = np.abs(world[:, 0, 0, 2][:, None] - 11.0 - np.asarray(UNEVEN)).argmin(axis=1)
    expected = np.where(np.isin(k, (10, 11)), AIR_HU, 50)
    np.testing.assert_array_equal(found[:, 12, 12], expected)


def test_air_beside_water_does_not_ring_below_air() -> None:
    hu = np.full((20, 30, 30), -1024, np.int16)
    hu[:, 8:22, 8:22] = 40
    out = resample_series(series(hu, np.eye(3)), spacing_mm=1.0, interpolation="cubic").hu
    assert out.min() == -1024
    assert out[out.shape[0] // 2, out.shape[1] // 2, out.shape[2] // 2] == pytest.approx(40, abs=2)
