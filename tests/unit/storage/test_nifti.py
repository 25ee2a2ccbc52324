"""NIfTI as it is written: the affine in an independent reader's world, bytes repeatable."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from storage.geometry import Volume
from storage.exports.nifti import write_nifti

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
