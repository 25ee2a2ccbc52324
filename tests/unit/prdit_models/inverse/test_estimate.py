"""Moments of voxels that come one by one, against NumPy on all of them; intervals by how often they contain another draw."""

import numpy as np
import pytest

from prdit_models.inverse.estimate import VoxelMoments


def _of(volumes: np.ndarray) -> VoxelMoments:
    found = VoxelMoments()
    for volume in volumes:
        found.add(volume)
    return found


def test_moments_are_those_of_all_volumes() -> None:
    volumes = np.random.default_rng(0).normal(1e5, 3.0, (7, 2, 3, 4))  # a mean that would cancel in sums of squares
    found = _of(volumes)
    np.testing.assert_allclose(found.mean, volumes.mean(0), rtol=1e-15)
    np.testing.assert_allclose(found.std, volumes.std(0, ddof=1), rtol=1e-9)
    assert found.count == 7


def test_merged_moments_are_those_of_one_run() -> None:
    volumes = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    together, parts = _of(volumes), [_of(volumes[:0]), _of(volumes[:2]), _of(volumes[2:]), _of(volumes[:0])]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.count == 9
    np.testing.assert_allclose(merged.mean, together.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.std, together.std, rtol=1e-12)
    before = parts[2].mean
    merged.add(np.full(5, 100.0))
    np.testing.assert_array_equal(parts[2].mean, before)  # nothing is shared


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_contains_another_draw_as_often_as_it_says(count: int, level: float) -> None:
    values = np.random.default_rng(2).normal(20.0, 5.0, (count + 1, 40_000))
    low, high = _of(values[1:]).interval(level)
    covered = float(((low <= values[0]) & (values[0] <= high)).mean())
    assert covered == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 40_000))


def test_what_it_refuses() -> None:
    found = VoxelMoments()
    with pytest.raises(ValueError, match="no samples to estimate from"):
        _ = found.mean
    with pytest.raises(ValueError, match="There are no samples; a standard deviation needs at least 2"):
        found.interval()
    found.add(np.zeros(3))
    with pytest.raises(ValueError, match="There is 1 sample"):
        _ = found.std
    with pytest.raises(ValueError, match=r"shape \(2,\); those before have \(3,\)"):
        found.add(np.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(2,\); those before have \(3,\)"):
        found.merge(_of(np.zeros((1, 2))))
    with pytest.raises(ValueError, match="1 of 3 voxels of sample 1 are not finite"):
        found.add(np.array([0.0, np.nan, 1.0]))
    assert found.count == 1
    found.add(np.ones(3))
    with pytest.raises(ValueError, match=r"level is 1.0; expected between 0 and 1"):
        found.interval(1.0)
