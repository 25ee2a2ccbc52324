"""Line integrals against chords of a sphere, a block, and dense sampling of the same rays; where things appear on the detector."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from prdit_models.inverse import projection, rays
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.projection import Projection
from prdit_models.inverse.sparse_view import SparseView

Rays = tuple[NDArray[np.float64], NDArray[np.float64]]
FAR: dict[str, Any] = {"source_to_isocentre_mm": 500.0, "source_to_detector_mm": 700.0}
VIEW = {"angle_deg": 25.0, "tilt_deg": 10.0}


def pixel_rays(angle: float, tilt: float, beam: str, shape: tuple[int, int], pitch: float) -> Rays:
    """Points and unit directions (rows, columns, 3) in x, y, z, one by one from the words of `View`; distances as in FAR."""
    a, b = math.radians(angle), math.radians(tilt)
    towards = np.array([math.cos(b) * math.sin(a), -math.cos(b) * math.cos(a), math.sin(b)])
    right = np.array([math.cos(a), math.sin(a), 0.0])
    down = np.cross(right, towards)
    origins, directions = np.empty((*shape, 3)), np.empty((*shape, 3))
    for r, c in np.ndindex(*shape):
        vertical = (r - (shape[0] - 1) / 2) * pitch * down
        aside = vertical + (c - (shape[1] - 1) / 2) * pitch * right
        if beam == "parallel":
            origins[r, c], directions[r, c] = aside - 500 * towards, towards
            continue
        source = -500 * towards + (vertical if beam == "fan" else 0)
        origins[r, c], directions[r, c] = source, aside + 200 * towards - source
    return origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def distances(ray: Rays, centre: tuple[float, float, float]) -> NDArray[np.float64]:
    """Of a point from every ray."""
    origins, directions = ray
    return np.asarray(np.linalg.norm(np.cross(np.asarray(centre) - origins, directions), axis=-1))


def sphere(grid: Grid3, centre: tuple[float, float, float], radius: float, parts: int = 4) -> Tensor:
    """Water in air, voxels at its surface by the share that lies inside."""
    z, y, x = (
        (torch.arange(n * parts) + 0.5) / parts * s - n * s / 2 - c
        for n, s, c in zip(grid.shape, grid.spacing_mm[::-1], centre[::-1], strict=True)
    )
    inside = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2
    return F.avg_pool3d(inside.float()[None, None], parts).double() * 1000 - 1000


@pytest.mark.parametrize("beam", rays.BEAMS)
def test_a_sphere_shows_its_chords_and_the_error_falls_with_the_voxel(beam: str) -> None:
    centre, radius, errors = (4.0, -6.0, 3.0), 30.0, {}
    away = distances(pixel_rays(25.0, 10.0, beam, (61, 61), 2.0), centre)
    chords = 2 * np.sqrt(np.maximum(radius**2 - away**2, 0))
    for voxel in (4.0, 2.0):
        grid = Grid3((round(80 / voxel),) * 3, (voxel,) * 3)
        geometry = {} if beam == "parallel" else FAR
        operator = Projection(
            grid=grid, views=(VIEW,), detector_shape=(61, 61), detector_pitch_mm=2.0, beam=beam, **geometry
        )
        error = operator.forward(sphere(grid, centre, radius))[0, 0].numpy() - chords
        assert np.abs(error[away < 0.9 * radius]).max() < voxel
        assert abs(error.mean()) < 0.01
        errors[voxel] = float(np.sqrt(np.mean(error**2)))
        assert errors[voxel] < 0.4 * voxel
    assert errors[2.0] < 0.6 * errors[4.0]


def test_the_error_of_unequal_voxels_is_that_of_the_largest() -> None:
    centre, radius = (4.0, -6.0, 3.0), 30.0
    grid = Grid3((20, 60, 48), (1.7, 1.4, 4.0))
    operator = Projection(grid=grid, views=(VIEW,), detector_shape=(61, 61), detector_pitch_mm=2.0, **FAR)
    away = distances(pixel_rays(25.0, 10.0, "cone", (61, 61), 2.0), centre)
    chords = 2 * np.sqrt(np.maximum(radius**2 - away**2, 0))
    error = operator.forward(sphere(grid, centre, radius))[0, 0].numpy() - chords
    assert np.abs(error[away < 0.9 * radius]).max() < 4.0


@pytest.mark.parametrize(("angle", "edge_mm"), [(0.0, 15.0), (90.0, 20.0), (180.0, 15.0), (-90.0, 20.0)])
def test_a_block_of_water_shows_its_edges_exactly(angle: float, edge_mm: float) -> None:
    grid = Grid3((12, 10, 14), (2.0, 2.5, 3.0))
    block = torch.full((1, 1, *grid.shape), -1000.0, dtype=torch.float64)
    block[..., 3:9, 2:8, 2:12] = 0.0  # x: 10 voxels of 2 mm; y: 6 of 2.5; z: 6 of 3
    flat = Projection(
        grid=grid, views=({"angle_deg": angle},), detector_shape=(9, 9), detector_pitch_mm=1.0, beam="parallel"
    )
    assert torch.allclose(flat.forward(block), torch.tensor(edge_mm).double(), rtol=1e-12)
    cone = Projection(grid=grid, views=({"angle_deg": angle},), detector_shape=(9, 9), detector_pitch_mm=1.0, **FAR)
    _, direction = pixel_rays(angle, 0.0, "cone", (9, 9), 1.0)
    slant = np.abs(direction[..., 1 if angle in (0.0, 180.0) else 0])
    np.testing.assert_allclose(cone.forward(block)[0, 0], edge_mm / slant, rtol=1e-12)
    # twice as dense, twice as long; air shows nothing
    assert torch.allclose(flat.forward(block * 2 + 1000), torch.tensor(2 * edge_mm).double())
    assert not flat.forward(torch.full_like(block, -1000.0)).any()


@pytest.mark.parametrize("beam", rays.BEAMS)
@pytest.mark.parametrize("angle", [0.0, 40.0, 135.0, 250.0])
def test_integrals_agree_with_dense_samples_along_the_same_rays(beam: str, angle: float) -> None:
    grid, tilt, shape, pitch = Grid3((14, 18, 16), (2.0, 1.5, 2.5)), -15.0, (7, 9), 4.0
    # smooth, and air at its border, so that one sample per plane of voxels is enough
    volume = ndimage.gaussian_filter(np.pad(np.random.default_rng(2).normal(size=(8, 12, 10)), 3), 1.5)
    volume = 1000 * volume / volume.std() - 1000
    geometry = {} if beam == "parallel" else FAR
    operator = Projection(
        grid=grid,
        views=({"angle_deg": angle, "tilt_deg": tilt},),
        detector_shape=shape,
        detector_pitch_mm=pitch,
        beam=beam,
        **geometry,
    )
    ours = operator.forward(torch.from_numpy(volume)[None, None])[0, 0].numpy()
    origins, directions = pixel_rays(angle, tilt, beam, shape, pitch)
    along = np.arange(440.0, 560.0, 0.05)
    points = origins[..., None, :] + along[:, None] * directions[..., None, :]
    index = (points / np.asarray(grid.spacing_mm))[..., ::-1] + (np.asarray(grid.shape) - 1) / 2
    samples = ndimage.map_coordinates(volume / 1000 + 1, np.moveaxis(index, -1, 0), order=1, mode="grid-constant")
    dense = samples.sum(-1) * 0.05
    assert np.abs(ours - dense).max() < 0.02 * np.abs(dense).max()


@pytest.mark.parametrize(
    ("angle", "tilt", "place_mm", "right_mm", "down_mm"),
    [
        (0.0, 0.0, (10.0, 0.0, 5.0), 10.0, -5.0),  # PA: the patient's left on the right, head up
        (90.0, 0.0, (0.0, 10.0, 5.0), 10.0, -5.0),  # left lateral: posterior on the right
        (180.0, 0.0, (10.0, 0.0, 5.0), -10.0, -5.0),
        (0.0, 30.0, (0.0, 0.0, 10.0), 0.0, -10.0 * math.cos(math.pi / 6)),
        (
            0.0,
            30.0,
            (0.0, 10.0, 0.0),
            0.0,
            -10.0 * math.sin(math.pi / 6),
        ),  # tilted towards the head: what lies behind moves up
    ],
)
def test_where_a_ball_appears(
    angle: float, tilt: float, place_mm: tuple[float, float, float], right_mm: float, down_mm: float
) -> None:
    grid, pitch = Grid3((40, 40, 40), (1.0, 1.0, 1.0)), 0.5
    ball = sphere(grid, place_mm, 2.0)
    for beam, geometry in (("parallel", {}), ("cone", FAR)):
        operator = Projection(
            grid=grid,
            views=({"angle_deg": angle, "tilt_deg": tilt, "detector_offset_mm": (1.0, -2.0)},),
            detector_shape=(121, 121),
            detector_pitch_mm=pitch,
            beam=beam,
            **geometry,
        )
        shadow = operator.forward(ball)[0, 0].numpy()
        row, column = ndimage.center_of_mass(shadow)
        towards = (math.sin(math.radians(angle)), -math.cos(math.radians(angle)), math.tan(math.radians(tilt)))
        depth = math.cos(math.radians(tilt)) * sum(p * t for p, t in zip(place_mm, towards, strict=True))
        scale = 1.0 if beam == "parallel" else 700 / (500 + depth)
        assert (column - 60) * pitch - 2.0 == pytest.approx(scale * right_mm, abs=0.1)
        assert (row - 60) * pitch + 1.0 == pytest.approx(scale * down_mm, abs=0.1)
        # the integral over the detector is the ball's volume, magnified twice
        assert shadow.sum() * pitch**2 == pytest.approx(4 / 3 * math.pi * 8 * scale**2, rel=0.05)


def test_views_can_turn_about_another_point_and_have_their_own_distances() -> None:
    grid = Grid3((20, 20, 20), (1.0, 1.0, 1.0))
    x = 300 * torch.randn(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    common: dict[str, Any] = {"grid": grid, "detector_shape": (9, 11), "detector_pitch_mm": 2.0}
    near = Projection(views=({"angle_deg": 0.0},), source_to_isocentre_mm=50.0, source_to_detector_mm=90.0, **common)
    own = {"angle_deg": 0.0, "source_to_isocentre_mm": 50.0, "source_to_detector_mm": 90.0}
    both = Projection(views=({"angle_deg": 0.0}, own), **FAR, **common).forward(x)
    assert torch.equal(both[:, 1], near.forward(x)[:, 0])
    # an isocentre 10 mm nearer to the source, which stays where it is, as does the detector
    moved = Projection(
        views=({"angle_deg": 0.0},),
        isocentre_mm=(3.0, 10.0, 0.0),
        source_to_isocentre_mm=40.0,
        source_to_detector_mm=90.0,
        **common,
    )
    same = Projection(
        views=({"angle_deg": 0.0},),
        isocentre_mm=(3.0, 0.0, 0.0),
        source_to_isocentre_mm=50.0,
        source_to_detector_mm=90.0,
        **common,
    )
    assert torch.allclose(moved.forward(x), same.forward(x))
    assert not torch.allclose(same.forward(x), near.forward(x))


def test_pixels_that_were_not_measured_are_0_and_pull_nowhere() -> None:
    grid, generator = Grid3((9, 11, 7), (1.0, 1.2, 1.5)), torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {
        "grid": grid,
        "views": ({"angle_deg": 0.0}, {"angle_deg": 70.0}),
        "detector_shape": (8, 9),
        "detector_pitch_mm": 2.0,
        **FAR,
    }
    measured = torch.rand(2, 8, 9, generator=generator) < 0.6
    whole, part = Projection(**settings), Projection(**settings, measured=measured)
    x = torch.randn(1, 1, *grid.shape, generator=generator, dtype=torch.float64)
    found = part.forward(x)[0]
    assert not found[~measured].any()
    torch.testing.assert_close(found[measured], whole.forward(x)[0][measured])
    y = torch.randn(1, 2, 8, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(part.adjoint(y), whole.adjoint(torch.where(measured, y, 0.0)))
    assert not torch.equal(part.adjoint(y), whole.adjoint(y))
    settings["views"] = whole.views
    assert Projection(**settings, measured=part.to_dict()["measured"]) == part
    assert Projection.measured_text(measured.numpy()) == part.measured
    with pytest.raises(ValueError, match=r"measured has shape \(3,\) .*expected booleans of the shape \(2, 8, 9\)"):
        Projection(**settings, measured=np.ones(3, bool))


def test_a_view_can_turn_about_a_point_of_its_own() -> None:
    grid = Grid3((20, 20, 20), (1.0, 1.0, 1.0))
    x = torch.randn(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    common: dict[str, Any] = {"grid": grid, "detector_shape": (9, 11), "detector_pitch_mm": 2.0, **FAR}
    moved = Projection(views=({"angle_deg": 30.0},), isocentre_mm=(3.0, -4.0, 5.0), **common)
    views = ({"angle_deg": 30.0}, {"angle_deg": 30.0, "isocentre_mm": (3.0, -4.0, 5.0)})
    both = Projection(views=views, **common).forward(x)
    assert torch.equal(both[:, 1], moved.forward(x)[:, 0])
    assert not torch.allclose(both[:, 0], both[:, 1])


def test_chunks_and_tables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid3((9, 11, 7), (1.0, 1.2, 1.5))
    settings: dict[str, Any] = {
        "grid": grid,
        "num_views": 6,
        "source_to_isocentre_mm": 60.0,
        "source_to_detector_mm": 90.0,
    }
    x = torch.randn(2, 1, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = SparseView(**settings)
    y = whole.forward(x)
    assert len(whole.projection._kept) == 6
    assert torch.equal(whole.forward(x), y)
    back = whole.adjoint(y)
    monkeypatch.setattr(rays, "_MAX_SAMPLES", 50)
    monkeypatch.setattr(projection, "_MAX_KEPT_RAYS", 10)
    small = SparseView(**settings)
    torch.testing.assert_close(small.forward(x), y)
    torch.testing.assert_close(small.adjoint(y), back)
    assert not small.projection._kept


@pytest.mark.parametrize("beam", rays.BEAMS)
def test_sparse_views_are_spread_over_the_arc_and_see_the_whole_volume(beam: str) -> None:
    grid = Grid3((8, 16, 20), (1.5, 1.5, 2.0))
    geometry = {} if beam == "parallel" else {"source_to_isocentre_mm": 100.0, "source_to_detector_mm": 180.0}
    operator = SparseView(grid=grid, num_views=8, arc_deg=180.0, start_deg=5.0, beam=beam, **geometry)
    assert [view.angle_deg for view in operator.projection.views] == [5.0 + 22.5 * i for i in range(8)]
    wider = Projection(
        grid=grid,
        views=operator.projection.views,
        detector_shape=tuple(n + 20 for n in operator.projection.detector_shape),  # type: ignore[arg-type]
        detector_pitch_mm=operator.projection.detector_pitch_mm,
        beam=beam,
        **geometry,
    )
    corners = torch.full((1, 1, *grid.shape), -1000.0, dtype=torch.float64)
    corners[..., ::7, ::15, ::19] = 1000.0
    seen, all_of_it = operator.forward(corners)[0], wider.forward(corners)[0]
    assert torch.allclose(all_of_it[:, 10:-10, 10:-10], seen)
    # a voxel reaches one voxel beyond its centre in the interpolation: a little of it may lie over the edge
    assert float(seen.sum()) > 0.9 * float(all_of_it.sum())
    if beam != "cone":
        assert operator.measurement_shape()[1] == 8
        water = operator.forward(torch.zeros_like(corners))[0]
        torch.testing.assert_close(water, water[:, :1].expand_as(water))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ()}, r"views is \(\); expected at least one view"),
        ({"views": "PA"}, "views is 'PA'"),
        ({"views": [{}]}, "View 0 is {}; expected angle_deg"),
        ({"views": [{"angle_deg": 0.0, "angel": 1}]}, "View 0 is .*expected angle_deg and any of tilt_deg"),
        ({"views": [3]}, "View 0 is 3; expected a mapping with its geometry"),
        ({"views": [{"angle_deg": float("nan")}]}, "angle_deg of a view is nan"),
        ({"views": [{"angle_deg": 0.0, "source_to_detector_mm": -1}]}, "source_to_detector_mm of a view is -1"),
        ({"views": [{"angle_deg": 0.0, "detector_offset_mm": 3}]}, "detector_offset_mm of a view is 3"),
        (
            {"source_to_detector_mm": None},
            "view at 0° has source_to_isocentre_mm 500.0 and source_to_detector_mm None.*both",
        ),
        ({"source_to_isocentre_mm": 5.0}, "reaches from -5 to 15 mm after the source.*Enlarge source_to_isocentre_mm"),
        (
            {"source_to_detector_mm": 505.0},
            "from 490 to 510 mm .*detector stands at 505.*Enlarge source_to_detector_mm",
        ),
        (
            {"beam": "parallel"},
            "source_to_isocentre_mm, source_to_detector_mm of the operator is set.*parallel beam has no",
        ),
        ({"beam": "laser"}, "beam is 'laser'; expected one of parallel, fan, cone"),
        ({"detector_shape": (0, 5)}, r"detector_shape is \(0, 5\)"),
        ({"detector_pitch_mm": 0.0}, "detector_pitch_mm is 0.0; expected a positive"),
        (
            {"isocentre_mm": (400.0, 0.0, 0.0)},
            "along the detector's columns, which reach from -10 to 10 mm; check isocentre_mm",
        ),
        ({"isocentre_mm": (0.0, 0.0, float("inf"))}, "isocentre_mm is .*three finite"),
    ],
)
def test_views_without_a_usable_geometry_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "grid": Grid3((20, 20, 20), (1.0, 1.0, 1.0)),
        "views": [{"angle_deg": 0.0}],
        "detector_shape": (10, 20),
        "detector_pitch_mm": 1.0,
        **FAR,
    }
    Projection(**good)
    with pytest.raises(ValueError, match=message):
        Projection(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_views": 0}, "num_views is 0; expected a whole number of at least 1"),
        ({"num_views": 10**12}, r"1000000000000 views of .* are .* values, more than 1.07e\+09; take fewer views"),
        ({"source_to_isocentre_mm": "595"}, "source_to_isocentre_mm is '595'; expected a positive number of mm"),
        ({"source_to_isocentre_mm": -595.0}, "source_to_isocentre_mm is -595.0; expected a positive number of mm"),
        ({"source_to_detector_mm": float("inf")}, "source_to_detector_mm is inf; expected a positive number of mm"),
        ({"arc_deg": 0}, "arc_deg is 0; expected a positive number of degrees"),
        ({"arc_deg": 400.0}, "arc_deg is 400.0; expected at most 360"),
        ({"start_deg": float("nan")}, "start_deg is nan"),
        ({"beam": "laser"}, "beam is 'laser'"),
        ({"source_to_isocentre_mm": None}, "A fan beam has source_to_isocentre_mm None .*such as 595"),
        (
            {"source_to_isocentre_mm": 14.0},
            "source_to_isocentre_mm is 14, and the volume reaches to 14 mm from its axis",
        ),
        ({"beam": "parallel"}, "parallel beam has no source"),
    ],
)
def test_sparse_views_need_an_arc_and_a_source(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"grid": Grid3((20, 20, 20), (1.0, 1.0, 1.0)), "num_views": 4, **FAR}
    with pytest.raises(ValueError, match=message):
        SparseView(**{**good, **change})
