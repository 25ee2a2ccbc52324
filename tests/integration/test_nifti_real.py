"""NIfTI and DICOM of real scans: the same values at the same places."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from storage.geometry import Volume
from storage.resample import resample_series
from storage.sources.dicom_series import load_series
from storage.sources.nifti import load_nifti
from storage.sources.source import ScanRequest, SourceVolume
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.unit.storage.sources.nifti_files import RAS, write_image


def load_dicom(folder: Path) -> SourceVolume:
    names = sorted(path.name for path in folder.iterdir())
    return next(load_series(ScanRequest(folder, tuple(names), folder.name)))


def affine_of(scan: SourceVolume) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = scan.direction * np.asarray(scan.spacing_mm)
    matrix[:3, 3] = scan.origin_mm
    return RAS @ matrix


@pytest.mark.parametrize("name", ["Lung_Dx-A0001_B", "Lung_Dx-A0002_B40f"])
def test_a_real_scan_written_as_nifti_is_the_same_scan(real_ct: Path, tmp_path: Path, name: str) -> None:
    scan = load_dicom(real_ct / "dicom" / name)
    stored = np.asfortranarray(scan.hu.transpose(2, 1, 0))
    write_image(tmp_path / "a.nii", stored, affine_of(scan))
    back = next(load_nifti(ScanRequest(tmp_path, ("a.nii",), "nifti-0")))
    assert back.pixel_digest == scan.pixel_digest
    assert back.notes == ()
    np.testing.assert_array_equal(back.hu, scan.hu)
    np.testing.assert_allclose(back.spacing_mm, scan.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(back.origin_mm, scan.origin_mm, atol=1e-4)
    np.testing.assert_allclose(back.direction, scan.direction, atol=1e-6)
    image = nibabel.load(tmp_path / "a.nii")  # an independent reader sees the same value at a world point
    k, j, i = (n // 3 for n in scan.hu.shape)
    ras = RAS @ np.append(scan.direction * np.asarray(scan.spacing_mm) @ (i, j, k) + scan.origin_mm, 1)
    assert tuple(np.rint(np.linalg.solve(image.affine, ras)[:3]).astype(int)) == (i, j, k)
    assert int(np.asarray(image.dataobj)[i, j, k]) == int(scan.hu[k, j, i])


def sampled(volume: Volume, world: np.ndarray) -> np.ndarray:
    values: np.ndarray = ndimage.map_coordinates(volume.hu.astype(float), volume.index_of(world).T, order=1)
    return values


def test_two_kernels_of_one_patient_lie_at_one_place(real_ct: Path) -> None:
    """The NIfTI is kernel L at 2 mm, the DICOM kernel B: noise differs, the body does not. A shift of 4 mm is seen."""
    scans = [
        next(load_nifti(ScanRequest(real_ct / "nifti_2mm", ("Lung_Dx-A0001_L.nii.gz",), "nifti-0"))),
        load_dicom(real_ct / "dicom" / "Lung_Dx-A0001_B"),
    ]
    one, other = (resample_series(scan, spacing_mm=4.0, interpolation="linear") for scan in scans)
    low = np.maximum(one.origin_mm, other.origin_mm) + 10
    ends = [np.asarray(v.origin_mm) + 4 * np.asarray(v.hu.shape[::-1]) for v in (one, other)]
    world = np.random.default_rng(0).uniform(low, np.minimum(*ends) - 10, (5000, 3))
    found = sampled(one, world)

    def agreement(shift: tuple[float, float, float]) -> float:
        return float(np.corrcoef(found, sampled(other, world + shift))[0, 1])

    assert agreement((0, 0, 0)) > 0.995
    assert max(agreement(shift) for shift in ((4.0, 0, 0), (0, 4.0, 0), (0, 0, 4.0))) < 0.992
    assert np.median(np.abs(found - sampled(other, world))) < 8


def test_real_nifti_becomes_volumes(real_ct: Path, tmp_path: Path) -> None:
    config = IngestConfig(spacing_mm=4.0, num_levels=1)
    report = ingest(real_ct / "nifti_2mm", tmp_path / "store", config, runner=Local(1))
    assert len(report.committed) == 3
    assert report.num_excluded == {}
    assert all(str(entry.series_uid).startswith("nifti-") for entry in report.committed)
    assert "3 scans without PatientID" in report.notes[0]
    assert b"LIDC" not in b"".join(path.read_bytes() for path in (tmp_path / "store" / "commits").iterdir())
