"""FDK finds what chords in closed form come from, and says where there is no arc."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prdit_models.inverse.fdk import circular_arc, fdk
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import operator_from_dict
from prdit_models.inverse.projection import Projection

GRID = Grid3((24, 40, 40), (3.0, 2.5, 2.5))
FAR: dict[str, Any] = {"source_to_isocentre_mm": 500.0, "source_to_detector_mm": 800.0}
CENTRE, RADIUS = np.array([8.0, -12.0, 4.0]), 28.0


def chords(operator: Projection, density: float) -> NDArray[np.float64]:
    """Chords of a sphere along every ray, times its density, (1, views, rows, columns), by the words of `View`."""
    rows, columns = operator.detector_shape
    pitch = operator.detector.pitch_mm
    found = []
    for view in operator.views:
        a = math.radians(view.angle_deg)
        towards, right = np.array([math.sin(a), -math.cos(a), 0.0]), np.array([math.cos(a), math.sin(a), 0.0])
        down = (np.arange(rows) - (rows - 1) / 2) * pitch[0] + view.detector_offset_mm[0]
        aside = (np.arange(columns) - (columns - 1) / 2) * pitch[1] + view.detector_offset_mm[1]
        vertical = down[:, None, None] * np.array([0.0, 0.0, -1.0])
        pixels = vertical + aside[:, None] * right
        if operator.beam == "parallel":
            origin, direction = pixels, np.broadcast_to(towards, pixels.shape)
        else:
            origin = -500.0 * towards + (vertical if operator.beam == "fan" else 0.0)
            direction = pixels + 300.0 * towards - origin
        direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
        away = np.linalg.norm(np.cross(CENTRE - np.asarray(operator.isocentre_mm) - origin, direction), axis=-1)
        found.append(2 * density * np.sqrt(np.maximum(RADIUS**2 - away**2, 0)))
    return np.stack(found)[None]


def from_centre() -> NDArray[np.float64]:
    z, y, x = (
        (np.arange(n) - (n - 1) / 2) * step - middle
        for n, step, middle in zip(GRID.shape, GRID.spacing_mm[::-1], CENTRE[::-1], strict=True)
    )
    return np.asarray(np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2))


def views(beam: str, num: int, arc: float, start: float = 0.0, **changes: Any) -> Projection:
    distances = {} if beam == "parallel" else FAR
    scale = 1.0 if beam == "parallel" else 1.6
    common: dict[str, Any] = {
        "grid": GRID,
        "views": [{"angle_deg": start + i * arc / num, "detector_offset_mm": [1.5, 2.0]} for i in range(num)],
        "detector_shape": (52, 82) if beam == "cone" else (28, 82),
        "detector_pitch_mm": (3.0, 2.0 * scale),
        "beam": beam,
    }
    return Projection(**{**common, **distances, **changes})


@pytest.mark.parametrize(
    ("beam", "num", "arc"),
    [
        ("parallel", 180, 180.0),
        ("parallel", 240, 360.0),
        ("parallel", 200, 230.0),
        ("fan", 240, 360.0),
        ("fan", 220, 215.0),
        ("cone", 240, 360.0),
        ("cone", 220, 215.0),
    ],
)
@pytest.mark.parametrize("density", [1.05, 0.2])
def test_a_sphere_has_its_hu(beam: str, num: int, arc: float, density: float) -> None:
    operator = views(beam, num, arc, start=33.0)
    found = circular_arc(operator)
    assert found is not None
    assert found.arc_deg == pytest.approx(arc)
    volume = fdk(found, torch.from_numpy(chords(operator, density)))[0, 0].numpy()
    away, hu = from_centre(), 1000 * (density - 1)
    inside, outside = volume[away < RADIUS - 5], volume[away > RADIUS + 5]
    assert inside.mean() == pytest.approx(hu, abs=2)
    assert inside.std() < 3
    assert np.abs(outside + 1000).mean() < 10


def test_a_turned_about_point_moves_nothing() -> None:
    operator = views("fan", 240, 360.0, isocentre_mm=(10.0, -6.0, 3.0))
    arc = circular_arc(operator)
    assert arc is not None
    volume = fdk(arc, torch.from_numpy(chords(operator, 0.8)).float())[0, 0].numpy()
    inside = volume[from_centre() < RADIUS - 5]
    assert inside.mean() == pytest.approx(-200, abs=2)
    assert inside.std() < 3


def test_few_views_leave_streaks_and_values_stay_within_limits() -> None:
    errors = []
    for num in (180, 9):
        operator = views("parallel", num, 180.0)
        arc = circular_arc(operator)
        assert arc is not None
        volume = fdk(arc, torch.from_numpy(chords(operator, 1.0)), limits_hu=(-1000.0, 400.0))[0, 0].numpy()
        assert volume.min() == -1000
        assert volume.max() <= 400
        errors.append(float(np.abs(volume - np.where(from_centre() < RADIUS, 0.0, -1000.0)).mean()))
    assert errors[1] > 3 * errors[0]


def test_measurements_of_a_batch_are_apart() -> None:
    operator = views("cone", 6, 360.0)
    arc = circular_arc(operator)
    assert arc is not None
    one, other = (torch.from_numpy(chords(operator, density)) for density in (1.0, 0.3))
    both = fdk(arc, torch.cat([one, other]))
    torch.testing.assert_close(both[:1], fdk(arc, one))
    torch.testing.assert_close(both[1:], fdk(arc, other))


def test_sparse_views_are_an_arc() -> None:
    operator = operator_from_dict(
        {"name": "sparse-view", "num_views": 10, "arc_deg": 200.0, "start_deg": 350.0, "beam": "parallel"}, GRID
    )
    arc = circular_arc(operator)
    assert arc is not None
    assert (arc.start_deg, arc.step_deg) == pytest.approx((350.0, 20.0))
    assert not arc.full


@pytest.mark.parametrize(
    "angles",
    [
        [0.0, 90.0],  # two views are on no arc in particular
        [0.0, 30.0, 90.0],
        [0.0, 0.0, 0.0],
        [0.0, 90.0, 180.0, 180.0, 270.0],
    ],
)
def test_uneven_views_are_no_arc(angles: list[float]) -> None:
    assert circular_arc(views("parallel", 1, 1.0, views=[{"angle_deg": angle} for angle in angles])) is None


def test_tilted_views_and_views_of_other_distances_are_no_circle() -> None:
    even = [{"angle_deg": 36.0 * i} for i in range(10)]
    assert circular_arc(views("cone", 1, 1.0, views=even)) is not None
    tilted = [*even[:-1], {"angle_deg": 324.0, "tilt_deg": 5.0}]
    assert circular_arc(views("cone", 1, 1.0, views=tilted)) is None
    nearer = [*even[:-1], {"angle_deg": 324.0, "source_to_isocentre_mm": 400.0}]
    assert circular_arc(views("cone", 1, 1.0, views=nearer)) is None
    assert circular_arc(operator_from_dict({"name": "blur", "fwhm_mm": 3.0}, GRID)) is None
