"""What can be the HU of a chest CT: fill that nobody declared, metal, whole scans beyond; extents, distances, content."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.plausible import (
    FillCounts,
    check_plausible,
    extent_mm,
    fill_notes,
    highest_hu,
    recognise_fill,
)
from storage.sources.source import Limits, SourceVolume

EDGE = 64
CHEST = np.random.default_rng(0).integers(-1000, 1500, (EDGE, EDGE)).astype(np.int32)
Y, X = np.mgrid[:EDGE, :EDGE]
CORNERS = (Y - 31.5) ** 2 + (X - 31.5) ** 2 > 32**2


def with_values(value: Any, *where: Any) -> np.ndarray:
    plane = CHEST.copy()
    for place in where:
        plane[place] = value
    return plane


def notes_of(*planes: np.ndarray, **limits: Any) -> tuple[str, ...]:
    found = FillCounts()
    for plane in planes:
        found += recognise_fill(plane, Limits(**limits))[1]
    return fill_notes(found, Limits(**limits), "Scan x")


def reason_of(*planes: np.ndarray, **limits: Any) -> str:
    with pytest.raises(UnusableSeriesError) as caught:
        notes_of(*planes, **limits)
    assert str(caught.value).startswith("Scan x ")
    return caught.value.reason


# ---- fill ----------------------------------------------------------------------------------------------------------------


def test_a_plane_of_hu_stays_as_it_is() -> None:
    out, found = recognise_fill(CHEST, Limits())
    assert out is CHEST
    assert (found.lowest, found.highest, found.num_fill, found.num_clamped) == (CHEST.min(), CHEST.max(), 0, 0)
    assert notes_of(CHEST) == ()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_values_below_air_are_fill_without_a_note(dtype: type) -> None:
    plane = with_values(-2000, CORNERS).astype(dtype)
    before = plane.copy()
    out, found = recognise_fill(plane, Limits())
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.where(CORNERS, FILL_HU, CHEST))
    np.testing.assert_array_equal(plane, before)
    assert found.lowest == CHEST[~CORNERS].min()
    assert notes_of(plane) == ()


def test_declared_padding_stays_fill() -> None:
    out, _ = recognise_fill(with_values(FILL_HU, CORNERS), Limits())
    np.testing.assert_array_equal(out, np.where(CORNERS, FILL_HU, CHEST))


REGIONS = {
    "corners of one value": (with_values(62512, CORNERS), CORNERS),
    "corners just above the limit": (with_values(30720, CORNERS), CORNERS),
    "noisy corners": (np.where(CORNERS, 40000 + CHEST, CHEST), CORNERS),
    "a strip along the border": (np.where(X == 0, 40000 + CHEST, CHEST), X == 0),
    "a large region inside, of many values": (
        np.where((Y > 20) & (Y < 30) & (X > 20) & (X < 30), 40000 + CHEST, CHEST),
        (Y > 20) & (Y < 30) & (X > 20) & (X < 30),
    ),
    "specks with the value of the corners": (
        with_values(62512, CORNERS, (30, 30), (40, 12)),
        CORNERS | ((Y == 30) & (X == 30)) | ((Y == 40) & (X == 12)),
    ),
}


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_regions_above_the_limit_are_fill_and_noted(name: str, dtype: type) -> None:
    plane, fill = REGIONS[name]
    out, _ = recognise_fill(plane.astype(dtype), Limits())
    np.testing.assert_array_equal(out, np.where(fill, FILL_HU, CHEST))
    assert notes_of(plane, CHEST) == (
        f"{fill.sum()} of {2 * EDGE**2} voxels in regions above ingest.max_hu = 30719 were taken as fill: -1024 HU",
    )


METAL = {
    "single voxels": [(20, 20), (20, 40), (50, 33)],
    "a clip of several values": [(30, 30), (30, 31), (31, 30)],
}


@pytest.mark.parametrize("name", METAL)
def test_scattered_metal_is_set_to_the_limit_and_noted(name: str) -> None:
    plane = CHEST.copy()
    for step, place in enumerate(METAL[name]):
        plane[place] = 31000 + step
    out, _ = recognise_fill(plane, Limits())
    assert [out[place] for place in METAL[name]] == [30719] * 3
    out[tuple(np.transpose(METAL[name]))] = plane[tuple(np.transpose(METAL[name]))]
    np.testing.assert_array_equal(out, plane)
    assert notes_of(plane) == (f"3 of {EDGE**2} voxels above ingest.max_hu = 30719 were set to it",)


def test_saturated_metal_inside_is_no_fill() -> None:
    block = (Y > 20) & (Y < 26) & (X > 20) & (X < 26)
    out, _ = recognise_fill(np.where(block, 31743, CHEST), Limits())
    np.testing.assert_array_equal(out, np.where(block, 30719, CHEST))


def test_the_limit_is_configuration_and_printed() -> None:
    plane = with_values(5000, CORNERS)
    assert recognise_fill(plane, Limits())[0] is plane
    assert recognise_fill(plane, Limits(max_hu=4000.0))[0][0, 0] == FILL_HU
    (note,) = notes_of(plane, max_hu=4000.0)
    assert "ingest.max_hu = 4000" in note
    assert highest_hu(Limits(max_hu=1e9)) == 32767  # what the store can hold
    assert recognise_fill(with_values(40000, CORNERS), Limits(max_hu=1e9))[0][0, 0] == FILL_HU


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_number(value: float) -> None:
    plane = CHEST.astype(np.float32)
    plane[10, 10:13] = value
    out, found = recognise_fill(plane, Limits())
    assert (out[10, 10:13] == FILL_HU).all()
    assert found.num_nan == 3
    assert reason_of(plane) == "not_finite"
    assert notes_of(plane, nan="air") == (f"3 of {EDGE**2} voxels are not finite and became -1024 HU",)


BEYOND = {
    "RescaleIntercept 30000": (CHEST + 31024,),
    "everything beyond": (np.maximum(CHEST, 0) + 40000,),
    "most of it, of many values, beside some air": (np.where(X < 20, CHEST, 40000 + CHEST),),
    "negative HU read as unsigned": (np.where(CHEST < 0, CHEST + 65536, CHEST),),
    "an intercept that was applied twice": (CHEST - 1024, CHEST - 1024),
    "all planes but one": (CHEST, CHEST + 40000, CHEST + 40000, CHEST + 40000),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_scan_beyond_hu_is_refused(name: str) -> None:
    assert reason_of(*BEYOND[name]) == "impossible_hu"


def test_much_fill_of_one_value_is_no_reason_to_refuse() -> None:
    plane = with_values(65535, X < 50)
    assert len(notes_of(plane)) == 1
    assert "65535" not in notes_of(plane)[0]


# ---- extents -------------------------------------------------------------------------------------------------------------

_c, _s = np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40))
TIPPED = np.array([[1.0, 0, 0], [0, _c, -_s], [0, _s, _c]])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # j runs downwards, k backwards
SAGITTAL = np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]])
GANTRY = np.deg2rad(20)
TILTED = np.array([[1.0, 0, 0], [0, np.cos(GANTRY), 0], [0, -np.sin(GANTRY), 1.0]])  # the step along k stays along z


def volume(
    shape: tuple[int, int, int] = (64, 64, 64),
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    direction: np.ndarray | None = None,
    hu: Any = None,
) -> SourceVolume:
    values = np.zeros(shape, np.int16)
    values[:, : shape[1] // 2] = -1000
    return SourceVolume(
        values if hu is None else hu, spacing, (0.0, 0.0, 0.0), np.eye(3) if direction is None else direction, {}, ""
    )


def refused(found: SourceVolume, **limits: Any) -> UnusableSeriesError:
    with pytest.raises(UnusableSeriesError) as caught:
        check_plausible(found, Limits(**{"min_length_mm": 150.0, "min_width_mm": 200.0} | limits), "Scan x")
    return caught.value


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (np.eye(3), (100.0, 120.0, 60.0)),
        (-np.eye(3), (100.0, 120.0, 60.0)),
        (CORONAL, (100.0, 60.0, 120.0)),
        (SAGITTAL, (60.0, 100.0, 120.0)),
        (TILTED, (100.0, 120.0 * np.cos(GANTRY), 60.0)),
    ],
)
def test_extent_is_along_the_patient_with_faces(direction: np.ndarray, expected: tuple[float, ...]) -> None:
    scan = volume((20, 40, 50), (2.0, 3.0, 3.0), direction)
    np.testing.assert_allclose(extent_mm(scan), expected, rtol=1e-9)


def test_a_thin_slab_does_not_become_long_by_tipping() -> None:
    scan = volume((4, 100, 100), (3.0, 3.0, 2.0), TIPPED)
    assert extent_mm(scan)[2] == pytest.approx(8 / _c)  # the box around it is 199 mm high
    assert refused(scan).reason == "too_short"


def test_limits_are_inclusive_and_printed() -> None:
    check_plausible(volume((60, 50, 50), (4.0, 4.0, 2.5)), Limits(min_length_mm=150, min_width_mm=200), "Scan x")
    error = refused(volume((59, 50, 50), (4.0, 4.0, 2.5)))
    assert error.reason == "too_short"
    assert "147.5 mm long" in str(error)
    assert "ingest.min_length_mm = 150" in str(error)
    error = refused(volume((60, 50, 49), (4.0, 4.0, 2.5)))
    assert error.reason == "too_narrow"
    assert "196.0 mm wide and 200.0 mm deep" in str(error)
    assert "ingest.min_width_mm = 200" in str(error)
    assert refused(volume((60, 49, 50), (4.0, 4.0, 2.5))).reason == "too_narrow"


def test_an_extent_may_lack_a_voxel_of_at_most_a_millimetre() -> None:
    limits = Limits(min_length_mm=150, min_width_mm=200)
    nominal = volume((100, 51, 51), (3.91, 3.91, 1.5))  # 199.41 mm
    check_plausible(nominal, limits, "Scan x")
    check_plausible(volume((149, 50, 50), (4.0, 4.0, 1.0)), limits, "Scan x")
    assert refused(volume((100, 51, 51), (3.9, 3.9, 1.5))).reason == "too_narrow"  # 198.9 mm
    assert refused(volume((148, 50, 50), (4.0, 4.0, 1.0))).reason == "too_short"
    check_plausible(volume((299, 50, 50), (4.0, 4.0, 0.5)), limits, "Scan x")
    assert refused(volume((298, 50, 50), (4.0, 4.0, 0.5))).reason == "too_short"


def test_a_position_beyond_any_room_is_no_position() -> None:
    """On a grid there, voxels of a millimetre cannot be told apart."""
    far = replace(volume(), origin_mm=(0.0, -1e30, 0.0))
    error = refused(far)
    assert error.reason == "bad_number"
    assert "a position of -1e+30 mm instead of at most 1e+06" in str(error)


@pytest.mark.parametrize("name", ["axial slab", "coronal slab", "sagittal slab"])
def test_slabs_by_where_they_are_thin(name: str) -> None:
    direction = {"axial slab": np.eye(3), "coronal slab": CORONAL, "sagittal slab": SAGITTAL}[name]
    error = refused(volume((4, 100, 100), (3.0, 3.0, 2.0), direction))
    assert error.reason == ("too_short" if name == "axial slab" else "too_narrow")


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 12.0), (12.0, 4.0, 4.0), (4.0, 12.0, 4.0)])
def test_the_largest_distance_counts(spacing: tuple[float, float, float]) -> None:
    error = refused(volume(spacing=spacing))
    assert error.reason == "thick_slices"
    assert "12 mm" in str(error)
    assert "ingest.max_slice_mm = 10" in str(error)
    check_plausible(volume(spacing=spacing), Limits(max_slice_mm=12.0), "Scan x")


# ---- values --------------------------------------------------------------------------------------------------------------

RAMP = np.tile(np.arange(64), (64, 64, 1))
NO_HU = {
    "a mask": ((RAMP > 30).astype(np.int16), "values from 0 to 1"),
    "a windowed image": ((RAMP * 4).astype(np.int16), "values from 0 to 252"),
    "normalised to one": ((RAMP / 63).astype(np.float32), "values from 0 to 1"),
    "normalised to both sides": ((RAMP / 31.5 - 1).astype(np.float32), "values from -1 to 1"),
    "lost its intercept": ((RAMP * 40).astype(np.int16), "values from 0 to 2520"),
    "clipped at the limit": (np.maximum(RAMP * 40 - 1000, -500).astype(np.int16), "values from -500 to 1520"),
    "beyond, below ingest.max_hu": ((RAMP + 20000).astype(np.int16), "values from 20000 to 20063"),
    "a mask all of which is set": (np.ones((64, 64, 64), np.int16), "values from 1 to 1: no air"),
    "scaled by a thousandth": ((RAMP / 1000 - 1024).astype(np.float32), "to -1023.94: no tissue"),
    "air and lungs alone": ((RAMP * 8 - 1004).astype(np.int16), "values from -1004 to -500: no tissue"),
    "a mask in fill": (np.where(RAMP < 10, FILL_HU, RAMP).astype(np.int16), "values from 10 to 63"),
}


@pytest.mark.parametrize("name", NO_HU)
def test_what_cannot_be_hu(name: str) -> None:
    hu, detail = NO_HU[name]
    error = refused(volume(hu=hu))
    assert error.reason == "not_hu"
    assert detail in str(error)


@pytest.mark.parametrize(("share", "is_metal"), [(0.04, True), (0.06, False)])
def test_how_much_metal_there_can_be(share: float, is_metal: bool) -> None:
    hu = (RAMP * 40 - 1000).astype(np.int16)
    hu[np.random.default_rng(0).random(hu.shape) < share] = 9000
    if is_metal:
        check_plausible(volume(hu=hu), Limits(), "Scan x")
    else:
        error = refused(volume(hu=hu))
        assert error.reason == "impossible_hu"
        assert "above 3071: there is less metal" in str(error)


@pytest.mark.parametrize(("floor", "is_window"), [(-600, True), (-820, True), (-950, False)])
def test_a_window_cuts_off_what_is_low(floor: int, is_window: bool) -> None:
    hu = np.maximum(RAMP * 40 - 1000, floor).astype(np.int16)
    if is_window:
        error = refused(volume(hu=hu))
        assert error.reason == "not_hu"
        assert f"have the lowest value, {floor}: what is lower was cut off" in str(error)
    else:
        check_plausible(volume(hu=hu), Limits(), "Scan x")


@pytest.mark.parametrize("fill", [-2000, -3024, -32768])
def test_fill_far_below_air_is_no_reason_to_refuse(fill: int) -> None:
    assert notes_of(with_values(fill, X < 30)) == ()


def test_one_voxel_of_air_is_enough() -> None:
    hu = np.maximum(RAMP * 40 - 1000, -500).astype(np.int16)
    hu[63, 5, 5] = -501
    check_plausible(volume(hu=hu), Limits(), "Scan x")


@pytest.mark.parametrize(
    ("value", "detail"), [(FILL_HU, "all its voxels are fill"), (-700, "are -700 HU"), (-1024, "are -1024 HU")]
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_what_shows_nothing(value: int, detail: str, dtype: type) -> None:
    error = refused(volume(hu=np.full((64, 64, 64), value, dtype)))
    assert error.reason == "no_content"
    assert detail in str(error)


def test_one_value_beside_fill_shows_nothing() -> None:
    assert refused(volume(hu=np.where(RAMP < 10, FILL_HU, -1000).astype(np.int16))).reason == "no_content"


def test_values_are_judged_over_all_planes() -> None:
    hu = np.full((64, 64, 64), -1000, np.int16)
    hu[0, 0, 0] = 40  # the last plane that is looked at
    check_plausible(volume(hu=hu), Limits(), "Scan x")


def scanned_chest() -> np.ndarray:
    """A body of noise with a lung in air of noise; planes of 64 × 64."""
    body = (Y - 31.5) ** 2 + (X - 31.5) ** 2 < 24**2
    lung = (Y - 31.5) ** 2 + (X - 20) ** 2 < 8**2
    hu = np.random.default_rng(0).normal(0.0, 12.0, (24, EDGE, EDGE)) + np.where(
        lung, -850.0, np.where(body, 40.0, -1000.0)
    )
    return np.rint(hu).clip(-1024, 3071).astype(np.int16)


MASKED = {
    "air set to 0": lambda hu: np.where(hu < -950, 0, hu),
    "lungs kept": lambda hu: np.where((hu < -700) & (hu > -950), hu, 0),
    "outside set to 40": lambda hu: np.where(hu < -950, 40, hu),
    "cropped to the body and windowed": lambda hu: hu[:, 16:48, 10:40].clip(-1000, -300),
}


@pytest.mark.parametrize("what", MASKED)
def test_a_scan_whose_air_was_masked_or_that_was_windowed_is_refused(what: str) -> None:
    hu = MASKED[what](scanned_chest())
    with pytest.raises(UnusableSeriesError, match="of the edges of its planes are") as caught:
        check_plausible(volume(hu=hu), Limits(), "Scan x")
    assert caught.value.reason == "not_hu"


NOT_MASKED = {
    "as scanned": lambda hu: hu,
    "cropped to the body": lambda hu: hu[:, 16:48, 10:40],
    "masked to air": lambda hu: np.where(hu < -950, -1000, hu),
    "a table along half of every edge": lambda hu: np.where(X < 32, hu, 40),
}


@pytest.mark.parametrize("what", NOT_MASKED)
def test_air_or_tissue_at_the_edges_is_no_mask(what: str) -> None:
    check_plausible(volume(hu=NOT_MASKED[what](scanned_chest())), Limits(), "Scan x")
