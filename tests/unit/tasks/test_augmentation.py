"""Changes of training volumes: what is drawn, and what each does to a volume."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.geometry import AIR_HU, Volume
from storage.volume_store import VolumeStore
from tasks.train.augmentation import Augmentation, AugmentationConfig, Change, rotation
from tests.unit.tasks.loader_data import dataset, write_store

EVERYTHING = AugmentationConfig(flip=0.5, offset_hu=30, gain=0.1, rotation_deg=10, scale=0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("augmentation") / "store")


def of(matrix: np.ndarray) -> Change:
    a, b, c = ((float(x), float(y), float(z)) for x, y, z in matrix)
    return Change(matrix=(a, b, c))


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_published_training_changes_nothing() -> None:
    assert {Augmentation().draw(seed) for seed in range(20)} == {Change()}
    assert not Change().changes_hu
    assert AugmentationConfig().model_dump() == dict.fromkeys(AugmentationConfig.model_fields, 0.0)


def test_draws_are_within_their_limits_and_fill_them() -> None:
    changes = [Augmentation(EVERYTHING, max_shift=8).draw(seed) for seed in range(2000)]
    shifts = np.array([change.shift for change in changes])
    values, counts = np.unique(shifts, return_counts=True)
    assert values.tolist() == [-8, -4, 0, 4, 8]
    assert counts.min() > 0.18 * shifts.size
    assert sum(change.flip for change in changes) == pytest.approx(1000, abs=100)
    for found, middle, reach in (
        ([change.offset_hu for change in changes], 0, 30),
        ([change.gain for change in changes], 1, 0.1),
        ([np.cbrt(np.linalg.det(change.matrix)) for change in changes], 1, 0.2),
    ):
        assert middle - reach <= min(found) < middle - 0.98 * reach
        assert middle + reach >= max(found) > middle + 0.98 * reach
        assert np.mean(found) == pytest.approx(middle, abs=0.05 * reach)
    turned = [math.degrees(math.acos((np.trace(c.matrix) / np.cbrt(np.linalg.det(c.matrix)) - 1) / 2)) for c in changes]
    assert 10 < max(turned) <= 10 * math.sqrt(3) + 0.2


def test_a_setting_does_not_move_what_others_draw() -> None:
    whole = [Augmentation(EVERYTHING, max_shift=12).draw(seed) for seed in range(20)]
    for name in ("flip", "offset_hu", "gain"):
        single = Augmentation(AugmentationConfig(**{name: getattr(EVERYTHING, name)}))
        assert [getattr(single.draw(n), name) for n in range(20)] == [getattr(change, name) for change in whole]
    assert [Augmentation(max_shift=12).draw(seed).shift for seed in range(20)] == [change.shift for change in whole]
    assert [Augmentation(EVERYTHING).draw(seed).matrix for seed in range(20)] == [change.matrix for change in whole]


# -- what it does -----------------------------------------------------------------------------------------------------


def test_a_shifted_box_is_the_same_scan_moved(store: Path) -> None:
    """Shifted by (z, y, x) = (0, 4, -8) voxels it has what the unshifted one has at that offset."""
    data = dataset(store, size=32)
    still, moved = data.get(0), data.get(0, Change((0, 4, -8)))
    assert torch.equal(moved[:, :, :-4, 8:], still[:, :, 4:, :-8])
    assert not torch.equal(moved, still)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_a_flip_reverses_the_models_last_axis(store: Path, axes: str) -> None:
    data = dataset(store, axes=axes)
    straight, flipped = data.get(0), data.get(0, Change(flip=True))
    assert torch.equal(flipped, straight.flip(-1))
    assert not torch.equal(flipped, straight)
    assert torch.equal(Change(flip=True).flipped(flipped), straight)
    assert flipped.is_contiguous()


@pytest.mark.parametrize("mapping", ["window", "published-rad"])
def test_intensities_change_in_hu_before_the_mapping(store: Path, mapping: str) -> None:
    change = Change(offset_hu=20.0, gain=1.25)
    hu = torch.from_numpy(VolumeStore.open(store).read_view("v0", 32, 32))
    data = dataset(store, size=32, mapping=mapping)
    by_hand = (hu + 1000) * 1.25 - 1000 + 20
    expected = data._window.of_scan(by_hand, 32) if mapping != "window" else (by_hand / 1000).clamp(-1, 1)
    torch.testing.assert_close(data.get(0, change)[0], expected, atol=1e-5, rtol=0)


def test_no_turn_and_no_scale_are_the_identity() -> None:
    hu = torch.randn(12, 12, 12) * 300
    assert Change().apply(hu, 12) is hu
    hardly = of(rotation([1e-9, 0, 0]))
    assert hardly.margin(8) == 2
    torch.testing.assert_close(hardly.apply(hu, 8), hu[2:-2, 2:-2, 2:-2], atol=1e-2, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_known(axis: int) -> None:
    """About z, +y (1) becomes +x (2); the other axes follow in turn."""
    degrees = [0.0, 0.0, 0.0]
    degrees[axis] = 90.0
    one, other = (axis + 1) % 3, (axis + 2) % 3
    unit = np.eye(3)
    np.testing.assert_allclose(rotation(degrees) @ unit[one], unit[other], atol=1e-12)
    change, hu = of(rotation(degrees)), torch.randn(9, 9, 9) * 300
    margin = change.margin(9)
    wide = torch.nn.functional.pad(hu, (margin,) * 6, value=0.0)
    torch.testing.assert_close(change.apply(wide, 9), torch.rot90(hu, 1, (one, other)), atol=1e-2, rtol=0)


def test_the_three_turns_follow_each_other() -> None:
    x, y, z = rotation([0, 0, 20]), rotation([0, 20, 0]), rotation([20, 0, 0])
    np.testing.assert_allclose(rotation([20, 20, 20]), z @ y @ x, atol=1e-12)


def test_a_magnified_ramp_is_less_steep() -> None:
    change = of(np.eye(3) * 1.25)
    assert change.margin(16) == 1
    ramp = torch.arange(18.0).expand(18, 18, 18) * 40
    expected = (8.5 + (torch.arange(16.0) - 7.5) / 1.25) * 40
    torch.testing.assert_close(change.apply(ramp, 16)[3, 3], expected, atol=1e-2, rtol=0)


def test_what_turns_into_the_box_is_the_scan_not_air(tmp_path: Path) -> None:
    """The corners of a turned box come from beside it; outside of the scan there is air."""
    store = VolumeStore.create(tmp_path / "store", spacing_mm=1.0)
    for number, edge in enumerate([64, 32, 64, 64, 64]):
        hu = np.full((edge,) * 3, 100, np.int16)
        store.write(Volume(hu, (1.0,) * 3, (0.0,) * 3), volume_id=f"v{number}", attributes={})
    data, change = dataset(tmp_path / "store"), of(rotation([20, 10, 30]) * 0.9)
    torch.testing.assert_close(data.get(0, change), torch.full((1, 16, 16, 16), 0.1), atol=1e-5, rtol=0)
    beside = data.get(1, change)[0]
    assert float(beside[8, 8, 8]) == pytest.approx(0.1, abs=1e-5)
    assert float(beside.min()) == -1.0
    air = change.apply(torch.full((16 + 2 * change.margin(16),) * 3, float(AIR_HU)), 16)
    torch.testing.assert_close(air, torch.full_like(air, AIR_HU), atol=1e-3, rtol=0)


def test_a_turned_view_of_every_size_shows_the_same_scan(store: Path) -> None:
    """Pooled from another level, a smooth scan turned is nearly the same."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 64)] * 3, indexing="ij")
    smooth = (600 * np.sin(2 * z + y) * np.cos(x - 2 * y)).astype(np.int16)
    path = store.parent / "smooth"
    made = VolumeStore.create(path, spacing_mm=1.0)
    for number in range(5):
        made.write(Volume(smooth, (1.0,) * 3, (0.0,) * 3), volume_id=f"v{number}", attributes={})
    change = of(rotation([10, -20, 15]) * 1.1)
    fine, coarse = (dataset(path, size).get(0, change)[0] for size in (32, 8))
    pooled = torch.nn.functional.avg_pool3d(fine[None, None], 4)[0, 0]
    torch.testing.assert_close(coarse, pooled, atol=0.02, rtol=0)
    assert float((coarse - dataset(path, 8).get(0)[0]).abs().max()) > 0.05
