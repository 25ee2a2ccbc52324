"""DICOM radiographs as measurements: what was simulated is found again, left stays left, and what cannot be used is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import MeasurementOperator, operator_from_dict
from prdit_models.inverse.sirt import sirt
from storage.documents.measurement import Measurement
from storage.errors import InputError, SourceError
from tasks.model.view import ViewConfig
from tasks.reconstruct.comparison import Comparison
from tasks.reconstruct.measure import load_measurement, measure_stage
from tasks.reconstruct.radiographs import RadiographFiles
from tasks.reconstruct.setting import Setting
from tasks.run.stage import RunContext
from tests.unit.storage.radiograph_files import CR, DX_PRESENTATION, ENHANCED_XA, XA, item, write_radiograph

SETTING = Setting(ViewConfig(size=16, edge=32), 2.0, HounsfieldWindow())  # 16 voxels of 4 mm
GRID = Grid3((16, 16, 16), (4.0, 4.0, 4.0))
SHAPE, PITCH, AIR, PER_MM = (72, 84), 1.5, 60000.0, 0.02
FILM: dict[str, Any] = {"name": "projection", "source_to_isocentre_mm": 1600.0, "source_to_detector_mm": 1800.0}
WATER = {"water_per_mm": PER_MM, "air_value": AIR}
Pixels = NDArray[np.float64]


def phantom() -> torch.Tensor:
    """A body that is another one seen from every side: wider at the left, taller behind, with a dense corner."""
    volume = torch.full((1, 1, *GRID.shape), -1000.0)
    volume[..., 3:13, 3:12, 3:14] = 0.0
    volume[..., 3:7, 4:7, 9:13] = 800.0  # low, anterior, left
    volume[..., 9:13, 6:11, 4:7] = -850.0  # high, right
    return volume


def seen(view: dict[str, Any], **changes: Any) -> Pixels:
    """mm of water of the phantom in every pixel of one film, (rows, columns), down and right as seen from the detector."""
    settings = FILM | {"views": [view], "detector_shape": SHAPE, "detector_pitch_mm": PITCH} | changes
    return np.asarray(operator_from_dict(settings, GRID).forward(phantom().double())[0, 0])


def intensity(water_mm: Pixels) -> Pixels:
    return AIR * np.exp(-PER_MM * water_mm)


def measured(path: Path, operator: dict[str, Any]) -> tuple[Measurement, NDArray[np.float32], MeasurementOperator]:
    films = RadiographFiles.of(path, operator, SETTING)
    workdir = path.parent / f"work-{len(list(path.parent.iterdir()))}"
    document, values = load_measurement(measure_stage(films, films.operator, SETTING, RunContext(workdir=workdir)).ref)
    return document, values[0].numpy(), operator_from_dict(document.operator, GRID)


def mask(operator: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = operator.measured_pixels.numpy()
    return found


def blocks(pixels: Pixels, edge: int) -> Pixels:
    rows, columns = (n // edge for n in pixels.shape)
    return pixels[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).mean(axis=(1, 3))


def test_pa_and_lateral_films_are_what_was_simulated(tmp_path: Path) -> None:
    views = [{"angle_deg": 0.0}, {"angle_deg": 90.0}]
    water = [seen(view) for view in views]
    write_radiograph(tmp_path / "films" / "1.dcm", intensity(water[0]))
    write_radiograph(
        tmp_path / "films" / "2.dcm", intensity(water[1]), ViewPosition="LL", PatientOrientation=["P", "F"]
    )
    (tmp_path / "films" / "notes.txt").write_text("no radiograph")
    document, values, operator = measured(tmp_path / "films", FILM | {"radiograph": WATER, "noise_std": 1.5})
    # a voxel's shadow is 4 · 1800 / 1600 = 4.5 mm: three pixels
    assert document.shape == (2, 24, 28)
    assert document.operator["detector_pitch_mm"] == [4.5, 4.5]
    assert [view["angle_deg"] for view in document.operator["views"]] == [0.0, 90.0]
    assert document.noise_std == 1.5
    there = mask(operator)
    expected = np.stack([blocks(each, 3) for each in water])
    # intensities are whole numbers: half of one is 0.5 / 60000 · exp(0.02 L) / 0.02 mm
    np.testing.assert_allclose(values[there], expected[there], atol=0.02)
    assert (expected[~there] < 1e-6).all()  # what sees no voxel
    # and the operator explains them, but for the means over blocks
    residual = operator.forward(phantom())[0].numpy() - values
    assert np.sqrt(np.mean(residual[there] ** 2)) < 4.0
    assert values[there].max() > 50
    assert document.recorded is not None
    assert document.recorded.format == "dicom"
    assert any("1 files that are no radiographs" in note for note in document.recorded.notes)
    assert any("blocks of 3 × 3 pixels" in note for note in document.recorded.notes)


FILMS: list[tuple[dict[str, Any], dict[str, Any], Callable[[Pixels], Pixels]]] = [
    ({"angle_deg": 0.0}, {}, lambda water: water),
    ({"angle_deg": 0.0}, {"PatientOrientation": ["R", "F"]}, np.fliplr),
    ({"angle_deg": 0.0}, {"PatientOrientation": ["L", "H"]}, np.flipud),
    ({"angle_deg": 0.0}, {"PatientOrientation": ["F", "L"]}, np.transpose),
    ({"angle_deg": 0.0}, {"PatientOrientation": ["H", "L"]}, lambda water: np.fliplr(water.T)),
    # an AP film, hung as one looks at the patient: seen from its detector behind the patient, left is left
    ({"angle_deg": 180.0}, {"ViewPosition": "AP"}, np.fliplr),
    ({"angle_deg": -90.0}, {"ViewPosition": "RL", "PatientOrientation": ["A", "F"]}, lambda water: water),
    ({"angle_deg": 90.0}, {"ViewPosition": "LL", "PatientOrientation": ["A", "F"]}, np.fliplr),
]


@pytest.mark.parametrize(("view", "tags", "stored"), FILMS)
def test_left_stays_left_however_a_film_is_hung(
    tmp_path: Path, view: dict[str, Any], tags: dict[str, Any], stored: Callable[[Pixels], Pixels]
) -> None:
    water = seen(view)
    write_radiograph(tmp_path / "1.dcm", stored(intensity(water)), **tags)
    document, values, operator = measured(tmp_path / "1.dcm", FILM | {"radiograph": WATER})
    assert document.operator["views"][0]["angle_deg"] == view["angle_deg"]
    there = mask(operator)
    np.testing.assert_allclose(values[there], blocks(water, 3)[None][there], atol=0.02)
    assert np.abs(values[0] - values[0, :, ::-1]).max() > 10  # the phantom would show a mirror
    # an image without a model puts the dense corner where it is
    if abs(view["angle_deg"]) != 90.0:
        found = sirt(operator, torch.from_numpy(values)[None], iterations=20)[0, 0].mean(dim=1)  # along y
        low_left, low_right = found[3:7, 9:13].mean(), found[3:7, 3:7].mean()
        assert low_left > low_right + 100


@pytest.mark.parametrize(
    ("tags", "own", "pixels"),
    [
        ({"PixelIntensityRelationshipSign": -1}, {"air_value": 65535 - AIR}, lambda water: 65535 - intensity(water)),
        (
            {"PixelIntensityRelationshipSign": -1, "PhotometricInterpretation": "MONOCHROME1"},
            {"air_value": 65535 - AIR},
            lambda water: 65535 - intensity(water),
        ),
        (
            {"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1},
            {"air_value": 0.0, "log_per_value": 1e-4},
            lambda water: PER_MM * water / 1e-4,
        ),
        (
            {"PixelIntensityRelationship": "LOG"},
            {"air_value": 60000.0, "log_per_value": 1e-4},
            lambda water: 60000 - PER_MM * water / 1e-4,
        ),
        ({}, {"air_value": None}, intensity),  # estimated: a fifth of the film sees air
        ({"sop_class": CR, "without": ["PixelIntensityRelationship"]}, {"pixel_values": "intensity"}, intensity),
        ({"sop_class": DX_PRESENTATION}, {"pixel_values": "intensity"}, intensity),
        ({"BitsStored": 12, "HighBit": 11}, {"air_value": AIR / 16}, lambda water: intensity(water) / 16),
        ({"PixelPaddingValue": 0}, {}, intensity),
    ],
)
def test_pixel_values_become_mm_of_water(
    tmp_path: Path, tags: dict[str, Any], own: dict[str, Any], pixels: Callable[[Pixels], Pixels]
) -> None:
    water = seen({"angle_deg": 0.0})
    write_radiograph(tmp_path / "1.dcm", pixels(water), **tags)
    _, values, operator = measured(tmp_path / "1.dcm", FILM | {"radiograph": WATER | own})
    there = mask(operator)
    np.testing.assert_allclose(
        values[there], blocks(water, 3)[None][there], atol=0.15 if tags.get("BitsStored") == 12 else 0.02
    )


def test_attenuation_is_estimated_from_the_peak_voltage_and_said(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "1.dcm", intensity(seen({"angle_deg": 0.0})), KVP=120)
    document, values, operator = measured(tmp_path / "1.dcm", FILM | {"radiograph": {"air_value": AIR}})
    there = mask(operator)
    # 66 keV: between 0.0206 (60 keV) and 0.0184 (80 keV) per mm (NIST)
    assert 0.0184 < PER_MM * blocks(seen({"angle_deg": 0.0}), 3).max() / values[there].max() < 0.0206
    assert document.recorded is not None
    assert any("estimated from 120 kV" in note for note in document.recorded.notes)


def test_what_collimator_shutter_and_padding_hide_pulls_nowhere(tmp_path: Path) -> None:
    water = seen({"angle_deg": 0.0})
    pixels = intensity(water)
    hidden = np.ones(SHAPE, dtype=bool)
    hidden[9:66, 12:78] = False
    pixels[hidden] = 7.0  # nearly black: it would be 450 mm of water
    pixels[30:33, 40:44] = 0.0
    edges: dict[str, Any] = {
        "CollimatorShape": "RECTANGULAR",
        "CollimatorLeftVerticalEdge": 12,
        "CollimatorRightVerticalEdge": 79,
    }
    edges |= {"CollimatorUpperHorizontalEdge": 9, "CollimatorLowerHorizontalEdge": 67}
    circle: dict[str, Any] = {
        "ShutterShape": "CIRCULAR",
        "CenterOfCircularShutter": [36, 42],
        "RadiusOfCircularShutter": 30,
    }
    write_radiograph(tmp_path / "1.dcm", pixels, PixelPaddingValue=0, **edges, **circle)
    _, values, operator = measured(tmp_path / "1.dcm", FILM | {"radiograph": WATER})
    there = mask(operator)
    # rows 9 to 64 and columns 12 to 70 (from 0) lie within both, in whole blocks of three
    assert values.shape == (1, 18, 19)
    assert values.max() < 150
    assert (values[~there] == 0).all()
    first = np.array(operator.to_dict()["views"][0]["detector_offset_mm"]) / PITCH
    top, left = first + np.array(SHAPE) / 2 - np.array(values.shape[1:]) * 3 / 2
    assert (top, left) == pytest.approx((9, 12))
    shown = blocks(water[int(top) :, int(left) :], 3)[: values.shape[1], : values.shape[2]]
    np.testing.assert_allclose(values[there], shown[None][there], atol=0.02)
    row, column = np.nonzero(there[0])
    assert ((3 * row + 10 - 35) ** 2 + (3 * column + 13 - 41) ** 2 < 30**2).all()  # blocks within the circle
    # of the residual they are no part, though nothing is left in them
    left = operator.forward(phantom())[0].numpy()[there] - values[there]
    comparison = Comparison(operator, torch.from_numpy(values)[None], SETTING)
    assert comparison.residual(phantom()[0, 0].numpy()) == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-4)
    # pixels without a value pull nowhere
    other = values.copy()
    other[~there] = 400.0
    back = [operator.adjoint(torch.from_numpy(each)[None]) for each in (values, other)]
    assert torch.equal(*back)
    assert not operator.forward(phantom())[0].numpy()[~there].any()


def test_films_of_other_pixels_and_shapes_are_brought_to_one_detector(tmp_path: Path) -> None:
    frontal = seen({"angle_deg": 0.0}, detector_shape=(60, 90))
    lateral = seen({"angle_deg": 90.0}, detector_shape=(120, 80), detector_pitch_mm=1.125)
    write_radiograph(tmp_path / "a" / "1.dcm", intensity(frontal))
    write_radiograph(
        tmp_path / "a" / "2.dcm", intensity(lateral), ViewPosition="LL", PatientOrientation=["P", "F"],
        ImagerPixelSpacing=[1.125, 1.125],
    )  # fmt: skip
    document, values, operator = measured(tmp_path / "a", FILM | {"radiograph": WATER})
    assert document.operator["detector_pitch_mm"] == [4.5, 4.5]
    assert document.shape == (2, 30, 30)
    there = mask(operator)
    assert not there[0, 20:].any()
    assert not there[1, :, 20:].any()
    np.testing.assert_allclose(values[0, :20][there[0, :20]], blocks(frontal, 3)[there[0, :20]], atol=0.02)
    np.testing.assert_allclose(values[1, :, :20][there[1, :, :20]], blocks(lateral, 4)[there[1, :, :20]], atol=0.02)


def test_a_copy_of_a_film_is_no_second_view(tmp_path: Path) -> None:
    water = seen({"angle_deg": 0.0})
    write_radiograph(tmp_path / "films" / "1.dcm", intensity(water))
    (tmp_path / "films" / "copy.dcm").write_bytes((tmp_path / "films" / "1.dcm").read_bytes())
    document, _, _ = measured(tmp_path / "films", FILM | {"radiograph": WATER})
    assert len(document.operator["views"]) == 1
    assert document.recorded is not None
    assert "1 files were left out that are copies of others, byte by byte" in document.recorded.notes


@pytest.mark.parametrize("increments", [[0.0, 45.0, 90.0], 45.0])
def test_a_rotating_c_arm_has_one_view_per_frame(tmp_path: Path, increments: Any) -> None:
    distances = {"source_to_isocentre_mm": 700.0, "source_to_detector_mm": 1000.0}
    water = np.stack([seen({"angle_deg": angle, "tilt_deg": 5.0}, **distances) for angle in (-30.0, 15.0, 60.0)])
    write_radiograph(
        tmp_path / "run.dcm", intensity(water), sop_class=XA, PositionerPrimaryAngle=-30, PositionerSecondaryAngle=5,
        PositionerMotion="DYNAMIC", PositionerPrimaryAngleIncrement=increments,
        PositionerSecondaryAngleIncrement=[0.0, 0.0, 0.0],
    )  # fmt: skip
    document, values, operator = measured(
        tmp_path / "run.dcm", {"name": "projection", "radiograph": WATER | {"bin": 2}}
    )
    assert [view["angle_deg"] for view in document.operator["views"]] == [-30.0, 15.0, 60.0]
    assert {view["tilt_deg"] for view in document.operator["views"]} == {5.0}
    assert document.operator["detector_pitch_mm"] == [3.0, 3.0]
    there = mask(operator)
    np.testing.assert_allclose(values[there], np.stack([blocks(each, 2) for each in water])[there], atol=0.02)
    residual = operator.forward(phantom())[0].numpy() - values
    assert np.sqrt(np.mean(residual[there] ** 2)) < 3.0
    assert document.recorded is not None
    assert any("taken as seen from the detector" in note for note in document.recorded.notes)


def test_frames_of_an_enhanced_image_have_headers_of_their_own(tmp_path: Path) -> None:
    angles, distances = (0.0, 40.0), {"source_to_isocentre_mm": 700.0, "source_to_detector_mm": 1000.0}
    water = np.stack([seen({"angle_deg": angle}, **distances) for angle in angles])
    shared = item(
        FramePixelDataPropertiesSequence=[
            item(PixelIntensityRelationship="LIN", PixelIntensityRelationshipSign=1, ImagerPixelSpacing=[PITCH, PITCH])
        ],
        XRayGeometrySequence=[item(DistanceSourceToIsocenter=700.0, DistanceSourceToDetector=1000.0)],
    )
    frames = [
        item(PositionerPositionSequence=[item(PositionerPrimaryAngle=angle, PositionerSecondaryAngle=0.0)])
        for angle in angles
    ]
    write_radiograph(
        tmp_path / "run.dcm", intensity(water), sop_class=ENHANCED_XA, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        without=["PositionerPrimaryAngle", "PositionerSecondaryAngle", "DistanceSourceToPatient",
                 "DistanceSourceToDetector", "ImagerPixelSpacing", "PixelIntensityRelationship"],
    )  # fmt: skip
    document, values, operator = measured(tmp_path / "run.dcm", {"name": "projection", "radiograph": WATER})
    assert [view["angle_deg"] for view in document.operator["views"]] == [0.0, 40.0]
    there = mask(operator)
    np.testing.assert_allclose(values[there], np.stack([blocks(each, 3) for each in water])[there], atol=0.02)


def test_the_operator_gives_what_headers_lack(tmp_path: Path) -> None:
    view = {"angle_deg": 8.0, "detector_offset_mm": [6.0, -9.0], "isocentre_mm": [4.0, 0.0, -8.0]}
    water = seen(view)
    write_radiograph(
        tmp_path / "1.dcm",
        intensity(water),
        without=["PatientOrientation", "ViewPosition", "ImagerPixelSpacing", "KVP"],
    )
    given = FILM | {"views": [view], "detector_pitch_mm": PITCH, "radiograph": WATER | {"patient_orientation": "L\\F"}}
    _, values, operator = measured(tmp_path / "1.dcm", given)
    there = mask(operator)
    np.testing.assert_allclose(values[there], blocks(water, 3)[None][there], atol=0.02)
    residual = operator.forward(phantom())[0].numpy() - values
    assert np.sqrt(np.mean(residual[there] ** 2)) < 4.0


def test_no_word_of_a_header_is_kept(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "1.dcm", intensity(seen({"angle_deg": 0.0})))
    document, _, _ = measured(tmp_path / "1.dcm", FILM | {"radiograph": WATER})
    text = json.dumps(document.to_json())
    for secret in ("SECRET", "Confidentia", "Hidden", "1950", "2020", "1.2.3.4", "1.dcm"):
        assert secret not in text


@pytest.mark.parametrize(
    ("tags", "operator", "message"),
    [
        ({"without": ["ViewPosition"]}, {}, r"no PositionerPrimaryAngle and no ViewPosition of PA.*set angle_deg in the op"),
        ({"ViewPosition": "LLO"}, {}, "set angle_deg in the operator"),
        ({"without": ["PatientOrientation"]}, {}, r"no PatientOrientation.*patient_orientation under radiograph.*L\\F"),
        ({"without": ["ImagerPixelSpacing"], "PixelSpacing": [1.5, 1.5]}, {}, "no ImagerPixelSpacing: set detector_pitch_mm"),
        ({"without": ["KVP"]}, {"radiograph": {"air_value": AIR}}, "no KVP.*water_per_mm under radiograph"),
        ({}, {"source_to_detector_mm": None}, "no DistanceSourceToDetector: set source_to_detector_mm"),
        ({}, {"source_to_isocentre_mm": None}, "DistanceSourceToPatient with BodyPartThickness: set source_to_isocentre_mm"),
        ({"DistanceSourceToDetector": 1500.0}, {}, r"source_to_detector_mm is 1800 in the operator, and 1500 in the header"),
        ({}, {"views": [{"angle_deg": 90.0}]}, r"angle_deg is 90 in the operator, and 0 in the header.*ViewPosition"),
        ({}, {"detector_pitch_mm": 0.2}, r"detector_pitch_mm is 0.2 in the operator, and 1.5, 1.5 in the header"),
        ({}, {"detector_shape": [10, 10]}, r"detector_shape is \[10, 10\] in the operator, and \[72, 84\]"),
        ({}, {"views": [{}, {}]}, "2 views, and there are 1 radiographs"),
        ({"PatientOrientation": ["P", "F"]}, {}, "columns towards P and rows towards F .* at 0° .* cannot show"),
        ({"sop_class": DX_PRESENTATION}, {}, r"is processed for presentation.*for processing.*\.npy.*pixel_values: intensity"),
        ({"sop_class": CR, "without": ["PixelIntensityRelationship"]}, {}, "no PixelIntensityRelationship of LIN.*pixel_values"),
        ({"PixelIntensityRelationship": "DISP"}, {}, "values for display"),
        ({"PixelIntensityRelationship": "LOG"}, {}, "logarithmic.*log_per_value under radiograph"),
        ({}, {"radiograph": {"air": 3}}, r"operator: radiograph.air: unknown key"),
        ({}, {"radiograph": {"frames": 1}}, r"operator: radiograph\.frames: expected a list, such as .*, got 1"),
        ({}, {"views": [{"angle": 0.0}]}, r"views\[0\] of the operator has unknown keys: angle\. Known here: angle_deg, tilt_deg"),
        ({}, {"beam": "parallel"}, "source_to_isocentre_mm, source_to_detector_mm of the operator is set, and a parallel beam"),
        ({}, {"radiograph": {"water_per_mm": -1}}, "water_per_mm is -1"),
        ({}, {"radiograph": {"patient_orientation": "left"}}, "patient_orientation is 'left'"),
        ({}, {"isocentre_mm": [900.0, 0.0, 0.0]}, "check isocentre_mm, detector_offset_mm"),
        ({}, {"angle": 3}, "'projection' has no setting 'angle'; it has noise_std"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named_with_what_helps(
    tmp_path: Path, tags: dict[str, Any], operator: dict[str, Any], message: str
) -> None:
    write_radiograph(tmp_path / "1.dcm", intensity(seen({"angle_deg": 0.0})), **tags)
    given = {key: value for key, value in (FILM | {"radiograph": WATER} | operator).items() if value is not None}
    with pytest.raises(InputError, match=message):
        RadiographFiles.of(tmp_path / "1.dcm", given, SETTING)


def test_values_that_are_no_path_lengths_are_refused(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "1.dcm", intensity(seen({"angle_deg": 0.0})))
    films = RadiographFiles.of(tmp_path, FILM | {"radiograph": WATER | {"water_per_mm": 2.0}}, SETTING)
    with pytest.raises(InputError, match=r"expected mm of water along each ray.*correct air_value, water_per_mm"):
        measure_stage(films, films.operator, SETTING, RunContext(workdir=tmp_path / "work"))


def test_folders_of_other_things_are_named(tmp_path: Path) -> None:
    pixels = intensity(seen({"angle_deg": 0.0}))
    with pytest.raises(SourceError, match="does not exist"):
        RadiographFiles.of(tmp_path / "nowhere", FILM, SETTING)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"has no radiograph \(1 other files\).*DX, CR, XA or XRF.*\.npy"):
        RadiographFiles.of(tmp_path / "none", FILM, SETTING)
    for name, tags in (("people", {"PatientID": "B"}), ("studies", {"StudyInstanceUID": "1.2.9"})):
        write_radiograph(tmp_path / name / "1.dcm", pixels)
        write_radiograph(tmp_path / name / "2.dcm", pixels, **tags)
        with pytest.raises(SourceError, match=r"radiographs of several (patients|studies).*one examination"):
            RadiographFiles.of(tmp_path / name, FILM, SETTING)
    path = tmp_path / "cut.dcm"
    write_radiograph(path, pixels)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SourceError, match=r"cannot be (used|read)"):
        RadiographFiles.of(path, FILM, SETTING)
    write_radiograph(tmp_path / "cine.dcm", np.stack([pixels] * 3), sop_class=XA)
    with pytest.raises(SourceError, match=r"3 frames of one view \(0°\).*frames: \[1\] under radiograph"):
        RadiographFiles.of(tmp_path / "cine.dcm", {"name": "projection", "radiograph": WATER}, SETTING)
    chosen = {"name": "projection", "radiograph": WATER | {"frames": [2]}}
    assert RadiographFiles.of(tmp_path / "cine.dcm", chosen, SETTING).values.shape[0] == 1
    with pytest.raises(SourceError, match="3 frames, and frames asks for 9"):
        RadiographFiles.of(tmp_path / "cine.dcm", {"name": "projection", "radiograph": {"frames": [9]}}, SETTING)
    increments: dict[str, Any] = {"PositionerPrimaryAngleIncrement": [0.0, 1.0]}
    write_radiograph(tmp_path / "odd.dcm", np.stack([pixels] * 3), sop_class=XA, **increments)
    with pytest.raises(SourceError, match="PositionerPrimaryAngleIncrement of 2 frames, the image has 3"):
        RadiographFiles.of(tmp_path / "odd.dcm", {"name": "projection", "radiograph": WATER}, SETTING)
    write_radiograph(tmp_path / "dark.dcm", np.zeros(SHAPE))
    with pytest.raises(InputError, match="no exposed pixel"):
        RadiographFiles.of(tmp_path / "dark.dcm", FILM | {"radiograph": WATER}, SETTING)
