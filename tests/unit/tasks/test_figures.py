"""Pictures: windows by their closed form, and a marker that must appear where a radiologist looks for it."""

import numpy as np
import pytest

from storage.geometry import Volume
from tasks.evaluate.curves import series, smooth
from tasks.model.slices import LUNG, MEDIASTINAL, draw_plane, draw_volume, orthogonal_planes


@pytest.mark.parametrize(
    ("window", "hu", "gray"),
    [
        (LUNG, -1350, 0),  # -600 - 750
        (LUNG, -600, 128),  # 127.5 rounds half to even
        (LUNG, 150, 255),
        (LUNG, -3000, 0),
        (MEDIASTINAL, -125, 0),  # 50 - 175
        (MEDIASTINAL, 225, 255),
        (MEDIASTINAL, 50 - 175 + 70, 51),  # a fifth of the way
    ],
)
def test_windows_are_linear_between_their_ends(window: object, hu: int, gray: int) -> None:
    assert window.to_gray(np.array([hu]))[0] == gray


def marked_volume(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """Air, with dense blocks at the patient's right, front and top ends of the middle slices."""
    hu = np.full(shape, -1000, dtype=np.int16)
    z, y, x = (n // 2 for n in shape)
    hu[z, y - 1 : y + 2, :3] = 1000  # right: x small in LPS
    hu[z - 1 : z + 2, :3, x] = 900  # anterior: y small
    hu[-3:, y, x - 1 : x + 2] = 800  # superior: z large
    return Volume(hu, spacing, (0.0, 0.0, 0.0))


def test_right_anterior_superior_appear_on_their_sides() -> None:
    axial, coronal, sagittal = orthogonal_planes(marked_volume((20, 22, 24), (1.0, 1.0, 1.0)))
    assert (axial.marks, coronal.marks, sagittal.marks) == (
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    )

    def dense_sides(hu: np.ndarray) -> set[str]:
        rows, columns = np.nonzero(hu > 0)
        height, width = hu.shape
        sides = {"left": columns < 3, "right": columns >= width - 3, "top": rows < 3, "bottom": rows >= height - 3}
        return {side for side, mask in sides.items() if mask.any()}

    assert dense_sides(axial.hu) == {"left", "top"}  # R and A
    assert dense_sides(coronal.hu) == {"left", "top"}  # R and S
    assert dense_sides(sagittal.hu) == {"left", "top"}  # A and S
    assert axial.hu.max() == 1000
    assert sagittal.hu[:, :3].max() == 900
    assert coronal.hu[:3].max() == 800


def test_the_drawn_picture_shows_the_marker_where_the_plane_has_it_and_writes_the_letter() -> None:
    volume = marked_volume((20, 20, 20), (1.0, 1.0, 1.0))
    hu = volume.hu.copy()
    hu[:] = -1000
    hu[10, 2:5, 2:5] = 1000  # right, anterior corner of the axial slice
    axial = orthogonal_planes(Volume(hu, volume.spacing_mm, volume.origin_mm))[0]
    pixels = np.asarray(draw_plane(axial, LUNG, tile=200))
    assert pixels.shape == (200, 200)
    assert (pixels[22:48, 22:48] == 255).all()
    assert not (pixels[22:48, 152:178] > 100).any()
    blank = np.asarray(
        draw_plane(
            orthogonal_planes(Volume(np.full((20, 20, 20), -1350, np.int16), (1.0,) * 3, (0.0,) * 3))[0], LUNG, 200
        )
    )
    ink = blank > 200
    for region in (ink[80:120, :20], ink[80:120, 180:], ink[:20, 80:120], ink[180:, 80:120]):
        assert region.any()  # a letter on each side
    assert not ink[40:160, 40:160].any()


def test_proportions_are_those_of_the_body() -> None:
    volume = Volume(np.zeros((10, 40, 20), np.int16), (2.0, 1.0, 4.0), (0.0, 0.0, 0.0))  # 40 x 40 x 40 mm
    for plane in orthogonal_planes(volume):
        assert plane.size_mm == (40.0, 40.0)
        assert draw_plane(plane, LUNG, tile=80).size == (80, 80)
    tall = Volume(np.zeros((40, 20, 20), np.int16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert draw_plane(orthogonal_planes(tall)[1], LUNG, tile=80).size == (40, 80)
    assert draw_volume(tall).size == (6 * 288 + 5 * 6, 288)


def test_smoothing_keeps_lines_and_means_noise_away() -> None:
    line = np.linspace(3.0, 1.0, 200)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10], atol=1e-12)
    alternating = np.where(np.arange(200) % 2 == 0, 1.0, 3.0)
    assert np.abs(smooth(alternating)[20:-20] - 2.0).max() < 0.15
    np.testing.assert_array_equal(smooth(np.array([5.0])), [5.0])
    steps, values = series(
        [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": float("nan")}, {"step": 4, "a": 1}], "a"
    )
    assert (steps.tolist(), values.tolist()) == ([1, 4], [2, 1])
