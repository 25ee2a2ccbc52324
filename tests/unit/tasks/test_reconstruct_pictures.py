"""What pictures of a measurement show, voxel by voxel, and through which slices."""

import numpy as np
import torch

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import MeasurementOperator, operator_from_dict
from tasks.reconstruct.page import _setting
from tasks.reconstruct.pictures import (
    BODY,
    NOT_MEASURED,
    in_a_row,
    measured_volume,
    shown_measurement,
    slices,
    through_lungs,
    views,
    voxels,
)

GRID = Grid3((16, 16, 16), (8.0, 8.0, 8.0))
TWO_VIEWS = {
    "name": "projection",
    "views": [{"angle_deg": 0.0}, {"angle_deg": 90.0}],
    "detector_shape": [24, 20],
    "detector_pitch_mm": 10.0,
    "beam": "parallel",
}


def made(**settings: object) -> MeasurementOperator:
    return operator_from_dict(settings, GRID)


def noise() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 200


def test_every_voxel_has_the_value_of_its_block() -> None:
    operator = made(name="downsampling", factor=[2, 1, 4])
    values = operator.forward(noise())
    shown = measured_volume(operator, values)
    assert shown is not None
    np.testing.assert_array_equal(shown, values[0].numpy().repeat(4, 0).repeat(2, 2))


def test_every_voxel_has_the_value_of_its_slice_and_none_beyond_the_last() -> None:
    operator = made(name="thick-slices", thickness_mm=48.0)  # 2 slices of 6 voxels, 2 voxels left over at each end
    values = operator.forward(noise())
    shown = measured_volume(operator, values)
    assert shown is not None
    np.testing.assert_array_equal(shown[2:14], values[0].numpy().repeat(6, 0))
    assert np.isnan(shown[[0, 1, 14, 15]]).all()
    few = made(
        name="thick-slices", thickness_mm=16.0, first_mm=36.0, num_slices=2
    )  # centres between voxels 4 and 5, 6 and 7
    seen = measured_volume(few, few.forward(noise()))
    assert seen is not None
    assert np.flatnonzero(~np.isnan(seen[:, 0, 0])).tolist() == [4, 5, 6, 7]


def test_what_a_mask_leaves_out_has_no_value() -> None:
    operator = made(name="mask", region="half", side="left")
    volume = noise()
    shown = measured_volume(operator, operator.forward(volume))
    assert shown is not None
    np.testing.assert_array_equal(shown[..., :8], volume[0, 0, ..., :8].numpy())
    assert np.isnan(shown[..., 8:]).all()


def test_radiographs_are_bright_where_paths_are_long_with_the_left_on_the_right() -> None:
    operator = made(**TWO_VIEWS)
    volume = torch.full((1, 1, 16, 16, 16), -1000.0)
    volume[..., 12:14, 3:5, 11:13] = 0.0  # high, in front, left
    values = operator.forward(volume)
    assert measured_volume(operator, values) is None
    frontal, lateral = shown_measurement(operator, values, (0, 0, 0))
    assert (frontal.size, lateral.size) == ((240, 288), (240, 288))
    for picture, right in ((frontal, True), (lateral, False)):  # seen from the left, what is in front is on the left
        gray = np.asarray(picture)[..., 0]
        row, column = np.unravel_index(gray.argmax(), gray.shape)
        assert row < 144
        assert bool(column > 120) is right
    twice = views(2 * values)
    np.testing.assert_array_equal(np.asarray(twice[0]), np.asarray(frontal))  # scaled to its own longest paths
    assert [each.size for each in views(values.repeat(1, 3, 1, 1))] == [(288, 86)]  # six views: one sinogram


def test_slices_go_through_the_lungs_not_through_the_skin() -> None:
    hu = np.full((16, 16, 16), -1000, np.float32)
    hu[:, 3:13, 2:14] = 0
    hu[:, 2], hu[:, 13] = -500, -500  # skin: half air
    hu[3:8, 5:9, 3:6] = -800
    hu[4:7, 5:8, 10:13] = -800
    whole = made(name="blur", fwhm_mm=8.0)
    assert through_lungs(hu, whole) == (5, 6, 4)
    assert through_lungs(hu, made(name="mask", region="half", side="left")) == (5, 6, 11)
    no_lung_missing = made(name="mask", region="box", size_mm=[8, 8, 8])
    assert through_lungs(hu, no_lung_missing) == (5, 6, 4)
    assert through_lungs(np.zeros((16, 16, 16), np.float32), whole) == (8, 8, 8)


def test_pictures_show_every_voxel_and_colour_what_has_no_value() -> None:
    hu = np.full((16, 16, 16), -300, np.float32)
    hu[..., 8:], hu[8, 4, 2] = np.nan, 400
    axial, coronal, sagittal = (np.asarray(each) for each in voxels(hu, 8.0, BODY, (8, 4, 2), tile=32, marks=0))
    assert axial.shape == coronal.shape == sagittal.shape == (32, 32, 3)
    assert (axial[:, 16:] == NOT_MEASURED).all()
    assert (axial[8:10, 4:6] == 255).all()
    assert (coronal[14:16, 4:6] == 255).all()  # the head is up
    assert set(axial[:, :16, 0].ravel().tolist()) == {128, 255}
    strip = in_a_row(slices(np.zeros((16, 16, 16), np.float32), 8.0, BODY, (0, 0, 0), tile=32, marks=0))
    assert strip.size == (3 * 32 + 2 * 6, 32)
    assert set(np.asarray(strip).ravel().tolist()) == {182, 255}


def test_settings_of_an_operator_are_said_without_what_is_not_set() -> None:
    assert _setting(made(**TWO_VIEWS).to_dict()["views"]) == "angle_deg 0; angle_deg 90"
    assert _setting([8.0, 8.0]) == "8, 8"
    assert _setting([{"angle_deg": 15.0, "tilt_deg": 5.0, "detector_offset_mm": [0.0, 2.0]}]) == (
        "angle_deg 15, tilt_deg 5, detector_offset_mm 0, 2"
    )
