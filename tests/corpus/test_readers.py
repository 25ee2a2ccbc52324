"""Plain pydicom, SimpleITK and an OME-Zarr reader find the ingested values at the same places."""

import logging
import warnings
from pathlib import Path
from typing import Any

import ngff_zarr
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.corpus.member import Expect, Place
from tests.corpus.members import MEMBERS
from tests.corpus.readers import PlainSeries, by_simple_itk, of_image, of_volume
from tests.corpus.run import SETTINGS, config_of
from tests.corpus.world import GRADIENT, WORLDS

NUM_POINTS = 200
ONE_SERIES = [
    "orientation_supine", "orientation_prone", "orientation_coronal", "orientation_sagittal", "orientation_oblique",
    "orientation_decubitus", "orientation_tilted", "plain", "whole_hu", "files_in_reversed_order", "rescale_differs_per_slice",
    "unsigned", "twelve_bit", "syntax_implicit", "syntax_big_endian", "syntax_deflated", "syntax_rle", "syntax_jpeg_ls",
    "syntax_jpeg_2000", "slices_over_several_folders", "localizer_beside", "acquisition_number_per_slice", "jitter_of_9_percent",
    "positions_with_one_decimal_oblique", "slice_exported_twice",
]  # fmt: skip
EVERY_SEED = ["plain", "whole_hu", "jitter_of_9_percent"]
# What SimpleITK's series reader places wrongly or does not read, as it is known for: a sheared stack is made orthogonal, uneven
# slices are spread evenly, a repeated slice is one more, folders are read one by one.
NOT_BY_ITK = {
    "orientation_tilted": "the tilt is ignored",
    "jitter_of_9_percent": "positions are averaged",
    "slice_exported_twice": "the repeat is one more slice",
    "positions_with_one_decimal_oblique": "positions are averaged",
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    warnings.simplefilter("ignore")


def ingested(name: str, seed: int, root: Path) -> tuple[Place, Expect, Volume, str]:
    """(where a member was written, what is right, its only volume, the volume's id)."""
    place = Place(root / "source" / name, WORLDS[seed], name)
    expect = MEMBERS[name].write(place)
    report = ingest(root / "source", root / "store", config_of(expect), runner=Local(1))
    (entry,) = report.committed
    return place, expect, VolumeStore.open(root / "store").read_level(str(entry.volume_id)), str(entry.volume_id)


def points_inside(expect: Expect, seed: int) -> np.ndarray:
    """Random places at least three voxels inside the scan, where a spline knows nothing of its faces."""
    (truth,) = expect.volumes
    rng = np.random.default_rng(seed)
    last = np.asarray(truth.geometry.shape[::-1]) - 1
    if truth.positions is not None:
        last[2] = len(truth.positions) - 1
    index = rng.uniform(3, last - 3, (NUM_POINTS, 3))
    if truth.positions is None:
        matrix = truth.geometry.matrix
        return index @ matrix[:3, :3].T + matrix[:3, 3]
    along = np.stack([np.interp(index[:, 2], np.arange(len(truth.positions)), p) for p in truth.positions.T], axis=1)
    return along + index[:, :2] @ truth.geometry.matrix[:3, :2].T


@pytest.mark.parametrize(
    ("name", "seed"), [*((name, 0) for name in ONE_SERIES), *((n, s) for n in EVERY_SEED for s in (1, 2))]
)
def test_plain_pydicom_agrees(name: str, seed: int, tmp_path: Path) -> None:
    place, expect, volume, _ = ingested(name, seed, tmp_path)
    world = points_inside(expect, seed)
    plain = PlainSeries(place.folder, place.uid("series", 1)).at(world)
    error = np.abs(of_volume(volume, world) - plain)
    assert error.max() <= 1.0
    assert np.median(error) <= 0.5
    assert np.ptp(plain) > 200  # a shift by a voxel would show: 6 to 12 HU


@pytest.mark.parametrize("name", [name for name in ONE_SERIES if name not in NOT_BY_ITK])
def test_simple_itk_agrees(name: str, tmp_path: Path) -> None:
    place, expect, volume, _ = ingested(name, 0, tmp_path)
    world = points_inside(expect, 1)
    image = by_simple_itk(place.folder, place.uid("series", 1))
    error = np.abs(of_volume(volume, world) - of_image(image, world))
    assert error.max() <= 1.0
    assert np.median(error) <= 0.5


def test_simple_itk_is_wrong_where_it_is_said_to_be(tmp_path: Path) -> None:
    """The list of exceptions is not longer than it must be."""
    for name in ("orientation_tilted", "jitter_of_9_percent"):
        place, expect, volume, _ = ingested(name, 0, tmp_path / name)
        world = points_inside(expect, 1)
        try:
            image: sitk.Image = by_simple_itk(place.folder, place.uid("series", 1))
            error = np.abs(of_volume(volume, world) - of_image(image, world)).max()
        except RuntimeError:
            continue
        assert error > 1.0, name


@pytest.mark.parametrize("name", ["orientation_supine", "orientation_oblique", "orientation_coronal"])
def test_ome_zarr_by_another_reader(name: str, tmp_path: Path) -> None:
    """ngff-zarr finds axes z, y, x, the grid's scale, and HU at their places; axes grow towards left, posterior, superior."""
    _, expect, volume, volume_id = ingested(name, 0, tmp_path)
    (truth,) = expect.volumes
    image: Any = ngff_zarr.from_ngff_zarr(str(VolumeStore.open(tmp_path / "store").folder(volume_id))).images[0]
    assert tuple(image.dims) == ("z", "y", "x")
    assert image.scale == dict.fromkeys("zyx", SETTINGS["spacing_mm"])
    read = np.asarray(image.data)
    np.testing.assert_array_equal(read, volume.hu)
    origin = tuple(float(image.translation[axis]) for axis in "xyz")
    world = points_inside(expect, 2)
    found = of_volume(Volume(read, volume.spacing_mm, (origin[0], origin[1], origin[2])), world)
    assert np.abs(found - truth.hu(world)).max() <= 1.0
    middle = np.asarray(read.shape) // 2
    part = read[tuple(slice(m - 9, m + 9) for m in middle)].astype(float)
    for axis, slope in zip((2, 1, 0), GRADIENT, strict=True):  # HU per mm towards left, posterior, superior
        assert np.diff(part, axis=axis).mean() / SETTINGS["spacing_mm"] == pytest.approx(slope, abs=0.05)
