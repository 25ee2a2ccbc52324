"""The published intensity mappings: from a store at 1 mm to what a model sees, against the restated published code."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from prdit_models.intensity import HounsfieldWindow
from storage.geometry import AIR_HU, Volume
from storage.volume_store import VolumeStore
from tasks.model.view import IntensityConfig, ViewConfig
from tasks.train.data import ViewDataset
from tests.oracles import published_preprocessing
from tests.oracles.int_volume import int_volume

EDGE = 64
SHAPE = (72, 64, 80)  # beside the box, 8, 0 and 16 voxels: its start is a multiple of four, as a view's is


@pytest.fixture(scope="module", params=["plain", "outlier"])
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A store of one volume at 1 mm, and the volume."""
    hu = np.maximum(int_volume(SHAPE, request.param, 3), AIR_HU)  # a store has nothing below air
    path = tmp_path_factory.mktemp(request.param) / "store"
    store = VolumeStore.create(path, spacing_mm=1.0, num_levels=3, interpolation="cubic")
    store.write(Volume(hu, (1.0,) * 3, (0.0,) * 3), volume_id="v", attributes={})
    return path, hu


def seen(path: Path, mapping: str, size: int, **kinds: object) -> np.ndarray:
    window = HounsfieldWindow.of_mapping(**IntensityConfig.model_validate({"mapping": mapping, **kinds}).model_dump())
    return (
        ViewDataset(VolumeStore.open(path), ["v"], ViewConfig(size=size, edge=EDGE), window, cache_mb=1)
        .get(0)
        .numpy()[0]
    )


@pytest.mark.parametrize("size", [64, 32, 16])
def test_lidc(scan: tuple[Path, np.ndarray], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preprocessed, pooled by the loader, brought to [-1, 1]: SPEC §5.1 and §5.3."""
    monkeypatch.setattr(published_preprocessing, "CUBE", EDGE)
    expected = published_preprocessing.lidc_item(published_preprocessing.preprocess_lidc(scan[1], (1.0,) * 3), size)[0]
    np.testing.assert_allclose(seen(scan[0], "published-lidc", size), expected, atol=1e-6, rtol=0)
    nominal = seen(scan[0], "window", size)
    assert np.abs(nominal - expected).max() > 5e-3, "the mapping is told from the window"


@pytest.mark.parametrize("size", [64, 32, 16])
def test_rad(scan: tuple[Path, np.ndarray], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped, brought to the size by linear zoom, capped at its own quantile, in [0, 1]: SPEC §5.2, §5.3."""
    monkeypatch.setattr(published_preprocessing, "CUBE", EDGE)
    expected = published_preprocessing.preprocess_rad(scan[1], (size,) * 3, 0.995)
    found = seen(scan[0], "published-rad", size)
    # zoom and interpolate round grid positions differently, which moves values at steep edges
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert (found.min(), found.max()) == (0.0, 1.0)


def test_the_published_pipelines_take_their_quantile_in_different_places(scan: tuple[Path, np.ndarray]) -> None:
    """LIDC in full resolution, RAD after the zoom; each by hand on the box."""
    box = torch.from_numpy(scan[1][4:68, :, 8:72].astype(np.float32)).double().numpy()
    floor = np.maximum(box, -1000)
    cap = np.quantile(floor, 0.999)
    unit = (np.minimum(floor, cap) - floor.min()) / (cap - floor.min())
    pooled = unit.reshape(16, 4, 16, 4, 16, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(seen(scan[0], "published-lidc", 16), 2 * pooled - 1, atol=1e-6, rtol=0)
    clipped = np.clip(box, -1000, 1000)
    at = np.arange(16) * 63 / 15
    low = np.minimum(at.astype(int), 62)
    for axis in range(3):
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        clipped = (1 - share) * clipped.take(low, axis) + share * clipped.take(low + 1, axis)
    cap = np.quantile(clipped, 0.995)
    unit = (np.minimum(clipped, cap) - clipped.min()) / (cap - clipped.min())
    np.testing.assert_allclose(seen(scan[0], "published-rad", 16), unit, atol=1e-5, rtol=0)


def test_axes_are_turned_after_the_mapping(scan: tuple[Path, np.ndarray]) -> None:
    window = HounsfieldWindow.of_mapping(-1000.0, 1000.0, "published-lidc")
    view = ViewConfig(size=16, edge=EDGE)
    straight, turned = (
        ViewDataset(VolumeStore.open(scan[0]), ["v"], view, window, 1, axes).get(0)[0] for axes in ("zyx", "xyz")
    )
    np.testing.assert_array_equal(turned.numpy(), straight.numpy().transpose(2, 1, 0))
    assert not torch.equal(turned, straight)


def test_a_window_sees_the_means_of_the_store(scan: tuple[Path, np.ndarray]) -> None:
    box = scan[1][4:68, :, 8:72].astype(np.float64).reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5))
    expected = np.clip(np.rint(box) / 1000, -1, 1)  # stored levels are whole HU
    np.testing.assert_allclose(seen(scan[0], "window", 32), expected, atol=1e-6, rtol=0)


def test_a_mapping_survives_a_checkpoint_and_older_ones_are_windows() -> None:
    for mapping in ("window", "published-lidc", "published-rad"):
        window = HounsfieldWindow.of_mapping(-1000.0, 1200.0, mapping)
        assert HounsfieldWindow(**asdict(window)) == window
    older = {"lower_hu": -1000.0, "upper_hu": 800.0, "model_lower": -1.0, "model_upper": 1.0}
    assert HounsfieldWindow(**older) == HounsfieldWindow(upper_hu=800.0)
