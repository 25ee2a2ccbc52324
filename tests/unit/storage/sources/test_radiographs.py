"""What headers of radiographs say, by the words of the standard."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from storage.errors import SourceError
from storage.sources.dicom_errors import DicomFault
from storage.sources.radiograph_header import exposed, orientation_of, radiograph_header
from storage.sources.radiographs import find_radiographs
from tests.unit.storage.radiograph_files import CR, DX, DX_PRESENTATION, XA, item, write_radiograph


def header(**tags: Any) -> Dataset:
    return item(**{"SOPClassUID": DX, "Rows": 40, "Columns": 60, "BitsStored": 12} | tags)


@pytest.mark.parametrize(
    ("tags", "angles"),
    [
        ({"PositionerPrimaryAngle": -20}, [-20, -20, -20]),
        ({"PositionerPrimaryAngle": -20, "PositionerPrimaryAngleIncrement": 1.5}, [-20, -18.5, -17]),
        ({"PositionerPrimaryAngle": -20, "PositionerPrimaryAngleIncrement": [0, 2, 5]}, [-20, -18, -15]),
        ({}, [None] * 3),
    ],
)
def test_angles_of_frames(tags: dict[str, Any], angles: list[float | None]) -> None:
    data = header(SOPClassUID=XA, **tags)
    assert [radiograph_header(data, frame, 3).angle_deg for frame in range(3)] == angles


def test_the_angle_of_a_film_is_that_of_its_view_unless_a_c_arm_held_it() -> None:
    column = radiograph_header(header(ViewPosition="AP", PositionerPrimaryAngle=33, PositionerType="COLUMN"), 0, 1)
    assert (column.angle_deg, column.nominal_angle) == (180.0, True)
    arm = radiograph_header(header(ViewPosition="AP", PositionerPrimaryAngle=33, PositionerType="CARM"), 0, 1)
    assert (arm.angle_deg, arm.nominal_angle) == (33.0, False)


def test_distances() -> None:
    film = radiograph_header(header(DistanceSourceToPatient=1750, BodyPartThickness=240), 0, 1)
    assert film.source_to_isocentre_mm == 1630
    assert radiograph_header(header(DistanceSourceToPatient=1750), 0, 1).source_to_isocentre_mm is None
    arm = header(SOPClassUID=XA, DistanceSourceToPatient=750, DistanceSourceToDetector=0)
    assert radiograph_header(arm, 0, 1).source_to_isocentre_mm == 750
    assert radiograph_header(arm, 0, 1).source_to_detector_mm is None


@pytest.mark.parametrize(
    ("tags", "relation", "sign"),
    [
        ({"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": -1}, "intensity", -1),
        ({"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1}, "log", 1),
        ({"PixelIntensityRelationship": "LIN", "PresentationIntentType": "FOR PRESENTATION"}, None, -1),
        ({"PixelIntensityRelationship": "LIN", "SOPClassUID": DX_PRESENTATION}, None, -1),
        ({"PixelIntensityRelationship": "LIN", "SOPClassUID": XA}, "intensity", 1),
        ({"PixelIntensityRelationship": "LOG", "SOPClassUID": XA, "ModalityLUTSequence": [Dataset()]}, "intensity", 1),
        ({"PixelIntensityRelationship": "DISP", "SOPClassUID": XA}, None, 1),
        ({"SOPClassUID": CR, "PhotometricInterpretation": "MONOCHROME1"}, None, 1),
        ({"SOPClassUID": CR, "PhotometricInterpretation": "MONOCHROME2"}, None, -1),
    ],
)
def test_what_pixel_values_are(tags: dict[str, Any], relation: str | None, sign: int) -> None:
    found = radiograph_header(header(**tags), 0, 1)
    assert (found.relation, found.sign) == (relation, sign)
    assert bool(found.unrelated) == (relation is None)
    assert found.highest == 4095


def test_orientations() -> None:
    assert orientation_of(("L", "F")) == ("L", "F")
    assert orientation_of(("LP", "FA")) == ("L", "F")
    for wrong in ((), ("L",), ("L", "R"), ("L", "L"), ("X", "F"), ("", "F")):
        assert orientation_of(wrong) is None


def test_the_exposed_field_is_within_all_edges() -> None:
    edges = {f"Shutter{name}Edge": at for name, at in zip(("LeftVertical", "RightVertical"), (11, 50), strict=True)}
    edges |= {"ShutterUpperHorizontalEdge": 6, "ShutterLowerHorizontalEdge": 41}
    found = exposed(header(ShutterShape="RECTANGULAR", **edges), (40, 60))
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 39, 11, 48)  # from 0; edges count from 1
    triangle = [5, 5, 5, 45, 35, 5]  # (row, column) from 1
    both = exposed(
        header(ShutterShape=["RECTANGULAR", "POLYGONAL"], VerticesOfThePolygonalShutter=triangle, **edges), (40, 60)
    )
    assert both[10, 15]
    assert not both[30, 40]
    assert (both <= found).all()
    assert exposed(header(), (40, 60)).all()
    with pytest.raises(DicomFault, match="CollimatorRightVerticalEdge is missing"):
        exposed(header(CollimatorShape="RECTANGULAR", CollimatorLeftVerticalEdge=3), (40, 60))
    with pytest.raises(DicomFault, match="of 3 numbers instead of pairs"):
        exposed(header(CollimatorShape="POLYGONAL", VerticesOfThePolygonalCollimator=[1, 2, 3]), (40, 60))


def test_pixels_pass_their_modality_lut_and_overlays_are_cut(tmp_path: Path) -> None:
    stored = np.arange(12).reshape(3, 4)
    lut = item(LUTDescriptor=[12, 0, 16], ModalityLUTType="US")
    lut.add_new("LUTData", "US", [100 * n for n in range(12)])
    write_radiograph(tmp_path / "1.dcm", stored, sop_class=XA, ModalityLUTSequence=[lut])
    ((values, valid),) = find_radiographs(tmp_path / "1.dcm").read()
    np.testing.assert_array_equal(values, 100 * stored)
    assert valid.all()
    write_radiograph(tmp_path / "2.dcm", stored, RescaleSlope=2, RescaleIntercept=-3, PixelPaddingValue=5)
    ((values, valid),) = find_radiographs(tmp_path / "2.dcm").read()
    np.testing.assert_array_equal(values, 2 * stored - 3)
    np.testing.assert_array_equal(valid, stored != 5)
    write_radiograph(tmp_path / "3.dcm", stored + 4096 * (stored % 2), BitsStored=12, HighBit=11)
    ((values, _),) = find_radiographs(tmp_path / "3.dcm").read()
    np.testing.assert_array_equal(values, stored)


def test_pixels_that_are_missing_are_named(tmp_path: Path) -> None:
    data = write_radiograph(tmp_path / "1.dcm", np.ones((3, 4)))
    del data.PixelData
    data.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    with pytest.raises(SourceError, match=r"1\.dcm cannot be used: no pixel data\. Leave it out"):
        list(find_radiographs(tmp_path).read())


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("sop_class", [CR, DX, DX_PRESENTATION, XA])
def test_the_files_of_these_tests_are_what_the_standard_says(tmp_path: Path, sop_class: str) -> None:
    frames: dict[str, Any] = {}
    if sop_class == XA:
        frames = {"PositionerMotion": "DYNAMIC", "PositionerPrimaryAngleIncrement": [0, 45, 90]}
        frames |= {"PositionerSecondaryAngleIncrement": [0, 0, 0], "PatientOrientation": ["L", "F"]}
    pixels = np.arange(12).reshape(3, 4)
    write_radiograph(
        tmp_path / "1.dcm", np.stack([pixels] * 3) if frames else pixels, sop_class=sop_class, without=(), **frames
    )
    found = subprocess.run(["dciodvfy", tmp_path / "1.dcm"], capture_output=True, text=True, check=False).stderr
    assert [line for line in found.splitlines() if line.startswith("Error")] == []
