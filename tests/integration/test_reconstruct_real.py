"""Real scans as measurements: their values are found where an operator measures, whichever format they come in."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import operator_from_dict
from storage.sources.one_scan import find_scan
from tasks.reconstruct.placing import place

pytestmark = pytest.mark.slow


def shares(first: float, step: float, count: int, low: float, high: float) -> np.ndarray:
    """Share of an interval that each voxel of one axis covers."""
    faces = first + (np.arange(count + 1) - 0.5) * step
    inside = np.clip(np.minimum(faces[1:], high) - np.maximum(faces[:-1], low), 0, None)
    return inside / (high - low)


def test_a_real_scan_is_averaged_over_an_operators_voxels(real_ct: Path) -> None:
    path = real_ct / "nifti_2mm" / "LIDC-IDRI-0002.nii.gz"
    operator = operator_from_dict({"name": "blur", "fwhm_mm": 8.0}, Grid3((32, 32, 32), (8.0, 8.0, 8.0)))
    found = place(find_scan(path).read(), operator)
    image = nibabel.as_closest_canonical(nibabel.load(path))  # an independent reader: axes towards R, A, S
    hu = np.maximum(np.asarray(image.dataobj), -1024.0)
    step = np.abs(np.diag(image.affine)[:3])
    first = image.affine[:3, 3]
    rng = np.random.default_rng(0)
    for z, y, x in rng.integers(4, 28, (40, 3)):
        centre = np.array(found.origin_mm) + 8.0 * np.array([x, y, z])
        ras = centre * (-1, -1, 1)
        weights = [shares(first[a], step[a], hu.shape[a], ras[a] - 4, ras[a] + 4) for a in range(3)]
        mean = np.einsum("ijk,i,j,k->", hu + 1024, *weights) - 1024  # beyond the scan is air
        assert found.values[z, y, x] == pytest.approx(mean, abs=0.1)


def test_slices_of_a_real_series_are_taken_as_they_are(real_ct: Path) -> None:
    scan = find_scan(real_ct / "dicom" / "LIDC-IDRI-0001").read()
    distance = scan.spacing_mm[2]
    grid = Grid3((64, 32, 32), (8.0, 8.0, 4.0))
    operator = operator_from_dict({"name": "thick-slices", "thickness_mm": float(distance)}, grid)
    found = place(scan, operator)
    assert found.values.shape[1:] == (32, 32)
    body = found.values[:, 8:24, 8:24]
    assert -900 < body.mean() < 100  # a chest, not air
    first = found.origin_mm[2] + operator.centres_mm[0]  # type: ignore[attr-defined]
    planes = scan.origin_mm[2] + scan.direction[2, 2] * distance * np.arange(len(scan.hu))
    assert np.abs(planes - first).min() < 1e-3  # a slice of the scan
