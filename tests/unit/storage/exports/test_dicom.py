"""DICOM as it is written: values at their places for independent readers, marks, UIDs, and what dciodvfy says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK

from storage.documents.samples import Guided
from storage.exports.dicom import export_dicom, series
from storage.exports.origin import origin_of
from storage.snapshots import load_snapshot, newest
from storage.sources.dicom_series import load_series
from storage.sources.source import Limits, ScanRequest, SourceVolume
from storage.volume_store import VolumeStore
from tests.exported import ATTRIBUTES, GENERATED, MARK, PATIENT, SCAN, SEED, dciodvfy, sample_store, scan_store, thorax

# dciodvfy of before 2023 does not know SyntheticData, which the standard has had since then.
UNKNOWN_TO_OLD = (
    "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)  ? "
)


def exported(store: VolumeStore, path: Path, level: int = 0) -> list[Any]:
    """The images of the store's only volume, in the order of their names."""
    (volume_id,) = store.volume_ids()
    listed = None if store.synthetic else load_snapshot(newest(store)).volumes[volume_id]
    planes: list[None] = []
    export_dicom(path, store, origin_of(store, volume_id, level, listed), lambda: planes.append(None))
    files = sorted(path.iterdir())
    assert len(files) == len(planes) == store.read_level(volume_id, level).hu.shape[0]
    return [pydicom.dcmread(file) for file in files]


def load(folder: Path, **limits: Any) -> SourceVolume:
    names = tuple(sorted(path.name for path in folder.iterdir()))
    (found,) = load_series(ScanRequest(folder, names, "scan", Limits(**limits)))
    return found


@pytest.mark.parametrize("level", [0, 1])
def test_our_own_reader_finds_the_same_voxels_at_the_same_places(tmp_path: Path, level: int) -> None:
    store = scan_store(tmp_path / "store")
    exported(store, tmp_path / "out", level)
    found, volume = load(tmp_path / "out"), store.read_level(SCAN, level)
    np.testing.assert_array_equal(found.hu, volume.hu)
    np.testing.assert_allclose(found.spacing_mm, volume.spacing_mm, atol=1e-4)
    np.testing.assert_allclose(found.origin_mm, volume.origin_mm, atol=1e-4)
    np.testing.assert_allclose(found.direction, np.eye(3), atol=1e-9)
    assert found.notes == ()
    of_the_grid = {"SliceThickness", "ReconstructionDiameter", "StudyInstanceUID", "SeriesInstanceUID"}
    kept = {name: value for name, value in ATTRIBUTES.items() if name not in of_the_grid}
    assert {name: found.attributes.get(name) for name in kept} == kept
    assert "ReconstructionDiameter" not in found.attributes
    assert found.attributes["SliceThickness"] == pytest.approx(6.7 * 2**level)


def test_itk_sees_the_same(tmp_path: Path) -> None:
    """SimpleITK reads with GDCM, which shares no code with pydicom."""
    exported(scan_store(tmp_path / "store"), tmp_path / "out")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image, volume = reader.Execute(), thorax()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-9)


def test_pixels_lie_where_the_header_says(tmp_path: Path) -> None:
    """Arithmetic of PS3.3 C.7.6.2.1.1 alone."""
    images, volume = exported(scan_store(tmp_path / "store"), tmp_path / "out"), thorax()
    for z, y, x in ((0, 0, 0), (23, 29, 35), (5, 11, 19)):
        data = images[z]
        cosines = np.array(data.ImageOrientationPatient, dtype=float)
        row_mm, column_mm = (float(v) for v in data.PixelSpacing)
        place = (
            np.array(data.ImagePositionPatient, dtype=float) + cosines[:3] * column_mm * x + cosines[3:] * row_mm * y
        )
        np.testing.assert_allclose(place, volume.world_mm(np.array([z, y, x], dtype=float)), atol=1e-4)
        assert data.pixel_array[y, x] * data.RescaleSlope + data.RescaleIntercept == volume.hu[z, y, x]


def test_a_scan_has_a_key_and_no_name_and_says_that_it_was_resampled(tmp_path: Path) -> None:
    first = exported(scan_store(tmp_path / "store"), tmp_path / "out")[0]
    assert (first.PatientID, str(first.PatientName), first.PatientBirthDate) == (PATIENT, "", "")
    assert (first.PatientIdentityRemoved, first.PatientSex, first.PatientAge) == ("YES", "F", "066Y")
    assert first.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
    assert first.DerivationDescription == "Resampled by prdit to 6.7 mm (cubic interpolation)."
    assert first.DerivationCodeSequence[0].CodeValue == "113085"
    assert (first.ContrastBolusAgent, first.Manufacturer) == ("unspecified", "SIEMENS")
    equipment = first.ContributingEquipmentSequence[0]
    assert (equipment.Manufacturer, equipment.PurposeOfReferenceCodeSequence[0].CodeValue) == ("prdit", "109102")
    assert "SyntheticData" not in first
    text = str(first)
    assert "1.2.3.1" not in text  # the scanner's UIDs are not those of these images
    assert "1.2.3.2" not in text


def test_a_kernel_that_is_too_long_for_its_tag_is_left_out(tmp_path: Path) -> None:
    first = exported(scan_store(tmp_path / "store", ConvolutionKernel="standard sharp lung"), tmp_path / "out")[0]
    assert "ConvolutionKernel" not in first
    assert dciodvfy(tmp_path / "out" / "0001.dcm") == []


def test_a_generated_volume_says_so_and_from_what(tmp_path: Path) -> None:
    images = exported(sample_store(tmp_path / "samples.zarr"), tmp_path / "out")
    for data in images:
        assert data["SyntheticData"].tag == 0x0008001C
        assert data.SyntheticData == "YES"
        assert data.ImageComments == "Synthetic data: not a scan of a person. Research use only."
        for text in (data.DerivationDescription, data.ContributingEquipmentSequence[0].ContributionDescription):
            assert MARK.checkpoint in text
            assert f"seed {SEED}" in text
    first = images[0]
    assert str(first.PatientName) == f"SYNTHETIC^{GENERATED}"
    assert first.PatientID == f"SYNTHETIC-abababababab-{SEED}"
    assert first.SeriesDescription == "SYNTHETIC generated by global, 6.7 mm"
    equipment = first.ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
    assert equipment.SoftwareVersions


def test_a_synthetic_scan_that_was_accepted_keeps_its_mark(tmp_path: Path) -> None:
    first = exported(scan_store(tmp_path / "store", synthetic=True), tmp_path / "out")[0]
    assert first.SyntheticData == "YES"
    assert first.SeriesDescription == "SYNTHETIC resampled by prdit, 6.7 mm"


def test_the_same_export_has_the_same_bytes_and_another_one_other_uids(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    first, second = exported(store, tmp_path / "a"), exported(store, tmp_path / "b")
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert one.read_bytes() == other.read_bytes()
    coarse = exported(store, tmp_path / "coarse", 1)
    changed = exported(scan_store(tmp_path / "other", ConvolutionKernel="B70f"), tmp_path / "c")
    generated = exported(sample_store(tmp_path / "samples.zarr"), tmp_path / "d")
    uids = {image.SOPInstanceUID for series in (first, coarse, changed, generated) for image in series}
    assert len(uids) == len(first) + len(coarse) + len(changed) + len(generated)
    assert len({series[0].SeriesInstanceUID for series in (first, coarse, changed, generated)}) == 4
    assert {image.SOPInstanceUID for image in second} == {image.SOPInstanceUID for image in first}
    assert first[0].StudyInstanceUID == coarse[0].StudyInstanceUID == changed[0].StudyInstanceUID
    assert first[0].FrameOfReferenceUID == coarse[0].FrameOfReferenceUID
    for uid in uids:
        assert uid.startswith("2.25.")
        assert (int(uid.removeprefix("2.25.")) >> 76) & 0xF == 5  # the version of the UUID
        assert len(uid) <= 64


def test_dciodvfy_finds_no_error_in_a_scan(tmp_path: Path) -> None:
    exported(scan_store(tmp_path / "store"), tmp_path / "out")
    assert dciodvfy(tmp_path / "out" / "0001.dcm") == []
    bare = scan_store(tmp_path / "bare")
    (volume_id,) = bare.volume_ids()
    origin = replace(origin_of(bare, volume_id, 0, None), attributes={}, patient_key=PATIENT)
    export_dicom(tmp_path / "without", bare, origin, lambda: None)
    assert dciodvfy(tmp_path / "without" / "0001.dcm") == []


def test_dciodvfy_finds_no_error_in_a_generated_volume_but_a_tag_newer_than_itself(tmp_path: Path) -> None:
    first = exported(sample_store(tmp_path / "samples.zarr"), tmp_path / "out")[0]
    assert set(dciodvfy(tmp_path / "out" / "0001.dcm")) <= {UNKNOWN_TO_OLD}
    del first.SyntheticData
    first.save_as(tmp_path / "without.dcm")
    assert dciodvfy(tmp_path / "without.dcm") == []


def test_a_reconstruction_names_its_measurement(tmp_path: Path) -> None:
    origin = origin_of(sample_store(tmp_path), GENERATED, 0, None)
    assert origin.generated is not None
    guided = Guided(measurement="sha256:" + "4" * 64, guide="pigdm", strength=1.0, settings={})
    drawn = replace(origin, generated=origin.generated.model_copy(update={"guided": guided}))
    assert "towards" not in origin.description
    assert drawn.description.endswith(f"Drawn towards measurement {guided.measurement} by guide pigdm.")
    assert drawn.identity != origin.identity
    assert "not a scan of a person" in origin.description
    assert "not a scan: family" in drawn.description  # a person was measured, and can be recognised
    image = next(series(VolumeStore.open(tmp_path).read_level(GENERATED), drawn))
    assert "shows the person who was measured" in image.ImageComments
    assert image.SyntheticData == "YES"
