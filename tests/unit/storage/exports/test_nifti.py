"""NIfTI as it is written: the affine in an independent reader's world, bytes repeatable."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from storage.exports.nifti import export_nifti, write_nifti
from storage.exports.origin import origin_of
from storage.geometry import Volume
from tests.exported import SCAN, scan_store

VOLUME = Volume(
    np.random.default_rng(0).integers(-1024, 2000, (5, 6, 7)).astype(np.int16), (1.5, 2.0, 2.5), (-10.0, 20.0, -30.0)
)


def test_world_positions_in_ras(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii.gz", VOLUME)
    image = nibabel.load(tmp_path / "v.nii.gz")
    data = np.asarray(image.dataobj)
    for z, y, x in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
        left, posterior, superior = VOLUME.world_mm(np.array([z, y, x], dtype=float))
        ras = np.array([-left, -posterior, superior, 1.0])
        i, j, k = np.rint(np.linalg.solve(image.affine, ras)[:3]).astype(int)
        assert data[i, j, k] == VOLUME.hu[z, y, x]
    assert image.get_data_dtype() == np.int16


def test_same_bytes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME)
    write_nifti(tmp_path / "b.nii.gz", VOLUME)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.nii"):
        write_nifti(tmp_path / "v.png", VOLUME)


def test_nifti_of_a_level_in_itk(tmp_path: Path) -> None:
    """ITK turns NIfTI's RAS into LPS by itself."""
    store = scan_store(tmp_path / "store")
    for level in (0, 1):
        path = tmp_path / f"{level}.nii.gz"
        export_nifti(path, store, origin_of(store, SCAN, level, None), lambda: None)
        image, mine = SimpleITK.ReadImage(str(path)), store.read_level(SCAN, level)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), mine.hu)
        np.testing.assert_allclose(image.GetSpacing(), mine.spacing_mm, atol=1e-4)
        np.testing.assert_allclose(image.GetOrigin(), mine.origin_mm, atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-6)
