"""A scan at the places where an operator measures: taken as it is, averaged where it is finer, refused where it is coarser."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import MeasurementOperator, operator_from_dict
from storage.errors import InputError, SourceError
from storage.exports.nifti import write_nifti
from storage.geometry import Volume
from storage.sources.one_scan import find_scan
from tasks.reconstruct.placing import place

GRID = Grid3((8, 8, 8), (4.0, 4.0, 4.0))


def operator(**values: object) -> MeasurementOperator:
    return operator_from_dict(values, GRID)


def scan(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int = 0) -> np.ndarray:
    """Write a scan whose middle is at (10, 20, 30) mm; returns its HU."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-900, 900, shape).astype(np.int16)
    hu[..., 0] = rng.integers(-900, -600, shape[:2])  # a slice without air is no slice of a CT
    origin = [c - (n - 1) / 2 * s for c, n, s in zip((10.0, 20.0, 30.0), reversed(shape), spacing, strict=True)]
    write_nifti(folder / "scan.nii.gz", Volume(hu, spacing, (origin[0], origin[1], origin[2])))
    return hu


def test_samples_of_the_same_distance_are_taken_as_they_are(tmp_path: Path) -> None:
    hu = scan(tmp_path, (4, 4, 4), (8.0, 8.0, 8.0))
    found = place(find_scan(tmp_path).read(), operator(name="downsampling", factor=2))
    np.testing.assert_array_equal(found.values, hu)
    middle = np.array(found.origin_mm) + 3.5 * 4.0
    np.testing.assert_allclose(middle, (10, 20, 30))
    assert found.notes == ()


def test_a_finer_scan_is_averaged_and_a_larger_one_cut_about_its_middle(tmp_path: Path) -> None:
    hu = scan(tmp_path, (16, 20, 16), (2.0, 2.0, 4.0))
    found = place(find_scan(tmp_path).read(), operator(name="downsampling", factor=2))
    by_hand = hu[4:12, 2:18].astype(float).reshape(4, 2, 4, 4, 4, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found.values, by_hand, atol=1e-3)


def test_thick_slices_keep_their_places(tmp_path: Path) -> None:
    thick = operator(name="thick-slices", thickness_mm=8.0)
    hu = scan(tmp_path, (7, 8, 8), (4.0, 4.0, 8.0))
    found = place(find_scan(tmp_path / "scan.nii.gz").read(), thick)
    first = 30 - 3 * 8.0  # z of the scan's first slice
    index = round(
        (found.origin_mm[2] + 2.0 - first) / 8.0
    )  # the operator's first centre is 2 mm above its first voxel's
    np.testing.assert_array_equal(found.values, hu[index : index + 4])
    assert found.origin_mm[2] + 2.0 == pytest.approx(first + 8.0 * index)
    scan(tmp_path, (12, 8, 8), (4.0, 4.0, 5.0))
    with pytest.raises(InputError, match=r"every 5 mm along z; 'thick-slices' measures every 8 mm. Set thickness_mm"):
        place(find_scan(tmp_path).read(), thick)


def test_a_coarser_scan_is_refused_with_what_fits_it(tmp_path: Path) -> None:
    scan(tmp_path, (4, 8, 8), (4.0, 4.0, 10.0))
    with pytest.raises(InputError, match=r"every 10 mm along z; 'blur' measures every 4 mm. A scan cannot be finer"):
        place(find_scan(tmp_path).read(), operator(name="blur", fwhm_mm=6.0))


def test_what_a_scan_does_not_show_counts_as_air_with_a_note_or_is_masked(tmp_path: Path) -> None:
    hu = scan(tmp_path, (6, 8, 8), (4.0, 4.0, 4.0))
    found = place(find_scan(tmp_path).read(), operator(name="blur", fwhm_mm=6.0))
    assert (found.values[[0, -1]] == -1024).all()
    np.testing.assert_array_equal(found.values[1:-1], hu)
    assert "25.0% of what is measured lie outside of the scan and count as air" in found.notes[0]
    cut = operator(name="mask", region="outside-box", size_mm=[32.0, 32.0, 24.0])
    assert place(find_scan(tmp_path).read(), cut).notes == ()


def test_projections_are_no_scan(tmp_path: Path) -> None:
    scan(tmp_path, (8, 8, 8), (4.0, 4.0, 4.0))
    views = operator(
        name="projection", beam="parallel", views=[{"angle_deg": 0.0}], detector_shape=[8, 8], detector_pitch_mm=4.0
    )
    with pytest.raises(InputError, match=r"measures 1 × 8 × 8 values in mm; a CT scan has voxels in HU"):
        place(find_scan(tmp_path).read(), views)


def test_a_file_that_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"scan.nii.gz does not exist. Give one NIfTI file, or a folder"):
        find_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"no scan that can be read \(1 unreadable_file: .*empty"):
        find_scan(tmp_path / "scan.nii.gz")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        archive.writestr("a.dcm", b"0")
    with pytest.raises(SourceError, match=r"has only archives, which are not looked into: unpack them"):
        find_scan(tmp_path / "series.zip")


def test_one_scan_is_found_and_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no scan that can be read \(it is empty"):
        find_scan(tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(SourceError, match=r"no scan that can be read \(1 unknown_format\)"):
        find_scan(tmp_path)
    scan(tmp_path, (8, 8, 8), (4.0, 4.0, 4.0))
    first = find_scan(tmp_path)
    assert (first.format, first.files) == ("nifti", ("scan.nii.gz",))
    (tmp_path / "scan.nii.gz").rename(tmp_path / "renamed.nii.gz")
    assert find_scan(tmp_path / "renamed.nii.gz").digest == first.digest
    scan(tmp_path, (8, 8, 8), (4.0, 4.0, 4.0), seed=1)
    with pytest.raises(SourceError, match="has 2 scans"):
        find_scan(tmp_path)
