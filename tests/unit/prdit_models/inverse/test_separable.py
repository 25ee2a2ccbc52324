"""Block means, blur and thick slices against plain arithmetic and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from prdit_models.inverse.blur import Blur
from prdit_models.inverse.downsampling import Downsampling
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.thick_slices import ThickSlices

GRID = Grid3((6, 4, 10), (1.0, 1.0, 2.0))
FWHM = 2 * math.sqrt(2 * math.log(2))


def random_volume(grid: Grid3) -> Tensor:
    return 300 * torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def along_z(values: Tensor, grid: Grid3) -> Tensor:
    return values[None, None, :, None, None].expand(1, 1, *grid.shape)


def test_downsampling_is_the_mean_of_blocks() -> None:
    x = random_volume(GRID)
    y = Downsampling(grid=GRID, factor=(5, 2, 3)).forward(x)[0]  # x, y, z
    assert y.shape == (2, 2, 2)
    for i, j, k in np.ndindex(2, 2, 2):
        block = x[0, 0, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2, 5 * k : 5 * k + 5]
        assert float(y[i, j, k]) == pytest.approx(float(block.mean()))
    assert torch.equal(Downsampling(grid=GRID, factor=1).forward(x), x[:, 0])


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (3, r"factor 3 does not divide the 4 voxels along y; use one of \[2, 4\]"),
        (0, "factor is 0; expected a whole number"),
        ((2, 2), r"factor is \(2, 2\)"),
        (2.0, "factor is 2.0"),
        (True, "factor is True"),
    ],
)
def test_a_factor_divides_the_grid(factor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Downsampling(grid=GRID, factor=factor)


def test_the_blur_of_a_gaussian_is_a_gaussian() -> None:
    grid, sigmas = Grid3((40, 36, 32), (1.5, 1.2, 1.0)), (3.0, 2.5, 2.0)  # x, y, z in mm
    blurs = (2.0, 3.0, 1.5)
    centre = (16, 17, 20)

    def gaussian(widths: tuple[float, ...]) -> Tensor:
        out = torch.ones(1, 1, *grid.shape, dtype=torch.float64)
        for axis, (n, s, width, c) in enumerate(zip(grid.shape[::-1], grid.spacing_mm, widths, centre, strict=True)):
            line = torch.exp(-0.5 * (((torch.arange(n) - c).double() * s) / width) ** 2) / width
            out = out * line.reshape([-1 if dim == 4 - axis else 1 for dim in range(5)])
        return out

    wider = tuple(math.hypot(a, b) for a, b in zip(sigmas, blurs, strict=True))
    for boundary in ("reflect", "air"):
        operator = Blur(grid=grid, fwhm_mm=tuple(FWHM * b for b in blurs), boundary=boundary)  # type: ignore[arg-type]
        offset = -1000 if boundary == "air" else 0
        blurred = operator.forward(1000 * gaussian(sigmas) + offset) - offset
        expected = 1000 * gaussian(wider)
        assert float((blurred[:, None] - expected).abs().max() / expected.max()) < 1e-4
        assert float((gaussian(sigmas) * 1000 - expected).abs().max() / expected.max()) > 0.5


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "reflect"), ("air", "constant")])
def test_blur_at_the_border_agrees_with_scipy(boundary: str, mode: Any) -> None:
    x = random_volume(GRID)
    fwhm = (3.0, 20.0, 5.0)  # the second reaches over the volume several times
    ours = Blur(grid=GRID, fwhm_mm=fwhm, boundary=boundary).forward(x)[0].numpy()
    sigmas = [w / FWHM / s for w, s in zip(fwhm, GRID.spacing_mm, strict=True)][::-1]
    theirs = ndimage.gaussian_filter(x[0, 0].numpy(), sigmas, mode=mode, cval=-1000.0, truncate=6.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=0.05)


def test_a_constant_stays_under_blur_unless_air_is_around() -> None:
    constant = torch.full((1, 1, *GRID.shape), 40.0, dtype=torch.float64)
    assert torch.allclose(Blur(grid=GRID, fwhm_mm=6.0).forward(constant), constant[:, 0])
    with_air = Blur(grid=GRID, fwhm_mm=6.0, boundary="air")
    assert float(with_air.forward(constant).max()) < 40.0
    assert torch.allclose(with_air.forward(torch.full_like(constant, -1000.0)), torch.tensor(-1000.0).double())


@pytest.mark.parametrize("width", [0, 0.0, -1, float("nan"), float("inf"), (1.0, 2.0), "3", None, True])
def test_a_width_is_positive(width: Any) -> None:
    with pytest.raises(ValueError, match=r"fwhm_mm is .*expected a positive number of mm"):
        Blur(grid=GRID, fwhm_mm=width)


def test_a_width_far_beyond_the_volume_is_refused_before_its_kernel_is_made() -> None:
    with pytest.raises(ValueError, match=r"fwhm_mm is .*more than 10 times the volume of .*Use a narrower one"):
        Blur(grid=GRID, fwhm_mm=1e12)


def test_an_unknown_boundary_is_refused() -> None:
    with pytest.raises(ValueError, match="boundary is 'zero'; expected one of reflect, air"):
        Blur(grid=GRID, fwhm_mm=2.0, boundary="zero")


TALL = Grid3((60, 2, 3), (1.0, 1.0, 0.8))


@pytest.mark.parametrize("profile", ["box", "gaussian"])
@pytest.mark.parametrize(("thickness", "distance"), [(2.5, None), (5.0, 3.0), (8.0, 1.0), (0.5, 2.0)])
def test_thick_slices_of_a_ramp_keep_the_ramp(profile: str, thickness: float, distance: float | None) -> None:
    operator = ThickSlices(grid=TALL, thickness_mm=thickness, distance_mm=distance, profile=profile)
    z = torch.arange(60, dtype=torch.float64) * 0.8
    measured = operator.forward(along_z(7 * z - 100, TALL))[0, :, 0, 0]
    centres = torch.tensor(operator.centres_mm, dtype=torch.float64)
    inner = (centres > 2.5 * thickness) & (centres < 47.2 - 2.5 * thickness)
    assert int(inner.sum()) >= 1
    torch.testing.assert_close(measured[inner], 7 * centres[inner] - 100, rtol=1e-9, atol=1e-6)


def test_slices_fill_the_volume_from_its_middle() -> None:
    operator = ThickSlices(grid=TALL, thickness_mm=5.0)  # 48 mm: nine slices of 5 mm, 1.5 mm left on both sides
    assert operator.measurement_shape() == (9, 2, 3)
    assert operator.centres_mm[0] == pytest.approx(-0.4 + 1.5 + 2.5)
    assert -0.4 + 48 - operator.centres_mm[-1] == pytest.approx(1.5 + 2.5)
    whole = ThickSlices(
        grid=Grid3((60, 2, 3), (1.0, 1.0, 0.1)), thickness_mm=0.3
    )  # 6 mm; 20 slices in spite of rounding
    assert len(whole.centres_mm) == 20


def test_a_box_is_the_mean_of_the_linear_volume_and_a_gaussian_adds_its_variance() -> None:
    x = random_volume(TALL)
    line = x[0, 0, :, 1, 2].numpy()
    operator = ThickSlices(grid=TALL, thickness_mm=3.3, first_mm=0.9, num_slices=15, distance_mm=2.9)
    for centre, value in zip(operator.centres_mm, operator.forward(x)[0, :, 1, 2], strict=True):
        fine = centre + (np.arange(20000) + 0.5) / 20000 * 3.3 - 1.65
        assert float(value) == pytest.approx(np.interp(fine / 0.8, np.arange(60), line).mean(), rel=1e-3, abs=0.05)
    z = (torch.arange(60, dtype=torch.float64) - 30) * 0.8
    smooth = torch.exp(-0.5 * (z / 5) ** 2)
    gaussian = ThickSlices(grid=TALL, thickness_mm=3 * FWHM, profile="gaussian", first_mm=24.0, num_slices=1)
    # linear interpolation widens by a voxel's hat function: its variance is spacing² / 6
    wide = math.sqrt(25 + 9 + 0.64 / 6)
    assert float(gaussian.forward(along_z(smooth, TALL))[0, 0, 0, 0]) == pytest.approx(5 / wide, rel=1e-4)


def test_a_constant_stays_in_thick_slices() -> None:
    operator = ThickSlices(grid=TALL, thickness_mm=8.0, profile="gaussian", first_mm=-0.4, num_slices=10, distance_mm=5)
    constant = torch.full((1, 1, *TALL.shape), -700.0, dtype=torch.float64)
    assert torch.allclose(operator.forward(constant), torch.tensor(-700.0).double())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thickness_mm": 0}, "thickness_mm is 0; expected a positive number of mm"),
        ({"thickness_mm": 60.0}, "thickness_mm 60 is more than the 48 mm of the volume"),
        ({"thickness_mm": 5.0, "distance_mm": float("nan")}, "distance_mm is nan"),
        ({"thickness_mm": 5.0, "distance_mm": 1e-5}, "Slices are 1e-05 mm apart .* expected at least 0.008 mm"),
        ({"thickness_mm": 5.0, "profile": "triangle"}, "profile is 'triangle'; expected one of box, gaussian"),
        ({"thickness_mm": 5.0, "first_mm": 2.0}, "first_mm is 2.0 and num_slices None; give both"),
        ({"thickness_mm": 5.0, "first_mm": 2.0, "num_slices": 0}, "num_slices 0; expected mm and at least 1"),
        (
            {"thickness_mm": 5.0, "first_mm": 2.0, "num_slices": 11},
            "from 2 to 52 mm, the volume reaches from -0.4 to 47.6",
        ),
        ({"thickness_mm": 5.0, "first_mm": -1.0, "num_slices": 2}, "from -1 to 4 mm.*leave out the slices outside"),
    ],
)
def test_slices_lie_in_the_volume(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThickSlices(grid=TALL, **settings)
