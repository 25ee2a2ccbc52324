"""The nearest volume of a set, against volumes whose distances and shifts are known."""

import itertools

import numpy as np
import pytest

from prdit_models.metrics.neighbours import Known, ShiftSearch, coarser, nearest, pairwise
from prdit_models.metrics.reading import Recent

RNG = np.random.default_rng(3)
REFERENCES = RNG.normal(-500, 300, (6, 8, 8, 8)).astype(np.float32)


def rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first.astype(np.float64) - second) ** 2).mean()))


def known(volumes: np.ndarray, features: np.ndarray | None = None, prefix: str = "v") -> Known:
    """Volumes that are read from memory; features that say nothing unless given."""
    names = tuple(f"{prefix}{k}" for k in range(len(volumes)))
    seen = np.ones((len(volumes), 2), np.float32) if features is None else features
    coarse = np.stack([coarser(each) for each in volumes])
    return Known(names, seen, coarse, lambda name: volumes[int(name.removeprefix(prefix))])


def by_hand(volume: np.ndarray, other: np.ndarray, max_shift: int) -> tuple[float, tuple[int, ...]]:
    """Smallest distance over all shifts of the other, by cutting out what overlaps."""
    found = []
    for shift in itertools.product(range(-max_shift, max_shift + 1), repeat=3):
        moved = np.full(volume.shape, np.nan)
        here = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, volume.shape, strict=True))
        there = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, volume.shape, strict=True))
        moved[here] = other[there]
        inside = np.isfinite(moved)
        found.append((rms(volume[inside], moved[inside]), shift))
    return min(found)


@pytest.mark.parametrize("max_shift", [0, 1, 3])
def test_the_search_finds_the_shift_and_distance_of_trying_them_all(max_shift: int) -> None:
    volume, other = RNG.normal(-700, 250, (2, 5, 6, 9)).astype(np.float32)
    distance, shift = ShiftSearch(volume, max_shift)(other)
    expected, at = by_hand(volume, other, max_shift)
    assert (distance, shift) == (pytest.approx(expected, rel=1e-6), at)


def test_a_moved_copy_is_found_with_its_shift_only_within_the_shifts_tried() -> None:
    moved = np.roll(REFERENCES[1], (2, -1, 0), axis=(0, 1, 2))
    found = nearest(known(moved[None]), known(REFERENCES), max_shift=2, num_candidates=2)
    assert (found[0].volume_id, found[0].shift) == ("v1", (2, -1, 0))
    assert found[0].distance_hu == 0.0
    assert nearest(known(moved[None]), known(REFERENCES), max_shift=1, num_candidates=2)[0].distance_hu > 50


def test_distance_is_the_root_mean_square_to_the_nearest() -> None:
    found = nearest(known(np.stack([REFERENCES[2] + 5, REFERENCES[0]])), known(REFERENCES[1:]), 0, 3)
    distances = [rms(REFERENCES[0], reference) for reference in REFERENCES[1:]]
    assert [each.distance_hu for each in found] == pytest.approx([5, min(distances)], rel=1e-5)
    assert [each.volume_id for each in found] == ["v1", f"v{int(np.argmin(distances))}"]


def finer(volumes: np.ndarray) -> np.ndarray:
    """Every voxel twice on every axis."""
    return volumes.repeat(2, 1).repeat(2, 2).repeat(2, 3)


def test_each_kind_of_candidate_finds_what_the_other_misses() -> None:
    coarse = finer(finer(RNG.normal(-500, 300, (5, 8, 8, 8)).astype(np.float32)))
    texture = RNG.normal(0, 400, (5, 32, 32, 32)).astype(np.float32)
    texture -= finer(
        texture.reshape(5, 16, 2, 16, 2, 16, 2).mean((2, 4, 6))
    )  # nothing of it is left on the coarse grid
    features = np.eye(5, dtype=np.float32)
    volumes = coarse + texture
    by_grid = nearest(known(volumes[3:4], features[:1]), known(volumes, features), 0, 1)
    assert (by_grid[0].volume_id, by_grid[0].distance_hu) == ("v3", 0.0)
    alike = coarse[:1] + texture
    found = nearest(known(alike[2:3] + 1, features[2:3]), known(alike, features), 0, 1)
    assert (found[0].volume_id, found[0].distance_hu) == ("v2", pytest.approx(1.0, rel=1e-4))


def test_pairs_are_those_of_the_root_mean_square() -> None:
    expected = [[rms(a, b) for b in REFERENCES] for a in REFERENCES]
    assert pairwise(REFERENCES) == pytest.approx(np.array(expected), rel=1e-5, abs=0.3)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two sets on one grid"):
        nearest(known(REFERENCES[:1]), known(REFERENCES[:, :4, :4, :4]), 0, 1)
    with pytest.raises(ValueError, match=r"m >= 1"):
        nearest(known(REFERENCES[:1]), known(REFERENCES).part([]), 0, 1)
    with pytest.raises(ValueError, match=r"max_shift is 8"):
        ShiftSearch(REFERENCES[0], 8)
    with pytest.raises(ValueError, match=r"have no distance"):
        ShiftSearch(REFERENCES[0], 1)(np.zeros((7, 8, 8), np.float32))


def test_the_volumes_used_last_stay_in_memory() -> None:
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        return np.full((4, 4, 4), float(name), np.float32)

    recent = Recent(read, most_bytes=2 * 256)
    for name in ("1", "2", "1", "3", "1", "2"):
        assert recent(name)[0, 0, 0] == float(name)
    assert asked == ["1", "2", "3", "2"]  # 2 gave way to 3, since 1 was used after it
    small = Recent(read, most_bytes=1)
    assert small("5") is small("5")
