"""Properties of volumes, block means and views that hold for any shape."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.geometry import AIR_HU, Volume, padded_crop_bounds, pool_mean, pyramid, view_start
from storage.volume_store import VolumeStore

SHAPES = st.tuples(*[st.integers(1, 23)] * 3)
SEEDS = st.integers(0, 2**32 - 1)


def random_hu(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(AIR_HU, 32767, shape, endpoint=True).astype(np.int16)


@given(SHAPES, SEEDS, st.integers(1, 6))
def test_levels_equal_means_in_float64(shape: tuple[int, int, int], seed: int, num_levels: int) -> None:
    hu = random_hu(shape, seed)
    if seed % 2:
        hu = (hu % 3).astype(np.int16) - 1  # many means that end in a half
    levels = pyramid(hu, num_levels)
    assert len(levels) == num_levels
    for level, found in enumerate(levels):
        factor = 2**level
        padded = np.pad(hu, [(0, -n % factor) for n in shape], constant_values=AIR_HU).astype(np.float64)
        d, h, w = (n // factor for n in padded.shape)
        mean = padded.reshape(d, factor, h, factor, w, factor).sum(axis=(1, 3, 5)) / factor**3
        np.testing.assert_array_equal(found, np.rint(mean))
        assert found.dtype == np.int16


def test_sums_of_the_largest_pyramid_stay_within_int32() -> None:
    hu = np.full((32, 32, 32), np.iinfo(np.int16).max)
    assert pyramid(hu, 6)[-1].tolist() == [[[32767]]]
    with pytest.raises(ValueError, match="7 levels"):
        pyramid(hu, 7)


@given(SHAPES, st.floats(0.3, 8), st.floats(-500, 500), SEEDS)
def test_world_and_index_are_inverse(shape: tuple[int, int, int], spacing: float, origin: float, seed: int) -> None:
    volume = Volume(np.zeros(shape, np.int16), (spacing, spacing * 1.5, spacing * 2), (origin, -origin, origin / 2))
    index = np.random.default_rng(seed).uniform(-5, 30, (7, 3))
    np.testing.assert_allclose(volume.index_of(volume.world_mm(index)), index, atol=1e-9)
    assert volume.world_mm(np.zeros(3)) == pytest.approx(volume.origin_mm)
    step = volume.world_mm(np.array([0.0, 0.0, 1.0])) - volume.world_mm(np.zeros(3))
    assert step == pytest.approx([spacing, 0, 0])  # the last index is x, towards left


@given(st.integers(1, 600), st.integers(1, 80))
def test_view_starts_on_the_lattice_near_the_middle(length: int, quarter: int) -> None:
    edge = 4 * quarter
    start = view_start((length,) * 3, edge)[0]
    assert start % 4 == 0
    assert abs(start + edge / 2 - length / 2) <= 2


@given(SHAPES, st.tuples(*[st.integers(-30, 30)] * 3), st.tuples(*[st.integers(1, 20)] * 3))
def test_crop_bounds_meet_voxel_by_voxel(
    shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    source, target = padded_crop_bounds(shape, start, size)
    for n, first, length, s, t in zip(shape, start, size, source, target, strict=True):
        expected = [k for k in range(length) if 0 <= first + k < n]
        assert list(range(s.start, s.stop)) == [first + k for k in expected]
        assert list(range(t.start, t.stop)) == expected or not expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, SEEDS, st.sampled_from([(8, 8), (8, 16), (4, 16), (16, 16), (4, 32)]))
def test_any_volume_comes_back_and_coarse_views_are_pooled_fine_ones(
    tmp_path: Path, shape: tuple[int, int, int], seed: int, view: tuple[int, int]
) -> None:
    store = VolumeStore.create(tmp_path / "store")
    hu = (random_hu(shape, seed) // 16).astype(np.int16).clip(AIR_HU)
    name = f"v{seed}-{shape[0]}-{shape[1]}-{shape[2]}"
    store.write(Volume(hu, (1.0,) * 3, (0.0,) * 3), volume_id=name, attributes={})
    np.testing.assert_array_equal(store.read_level(name).hu, hu)
    size, edge = view
    fine = store.read_view(name, edge, edge)
    np.testing.assert_allclose(store.read_view(name, size, edge), pool_mean(fine, edge // size), atol=0.51)
    assert fine.sum() - AIR_HU * edge**3 <= float((hu.astype(np.int64) - AIR_HU).sum()) + 64
