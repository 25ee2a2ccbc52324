"""Masks: which voxels are kept, by counting; and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.mask import Mask

GRID = Grid3((6, 8, 10), (2.0, 1.0, 3.0))


def positions() -> tuple[np.ndarray[Any, Any], ...]:
    """x, y, z in mm from the centre, each (D, H, W)."""
    z, y, x = np.meshgrid((np.arange(6) - 2.5) * 3, np.arange(8) - 3.5, (np.arange(10) - 4.5) * 2.0, indexing="ij")
    return x, y, z


def test_regions_in_millimetres() -> None:
    x, y, z = positions()
    box = (abs(x - 1) <= 3) & (abs(y) <= 2) & (abs(z + 3) <= 4.5)
    settings = {"size_mm": (6.0, 4.0, 9.0), "centre_mm": (1.0, 0.0, -3.0)}
    assert np.array_equal(Mask(grid=GRID, region="box", **settings).mask, ~box)
    assert np.array_equal(Mask(grid=GRID, region="outside-box", **settings).mask, box)
    cylinder = Mask(grid=GRID, region="outside-cylinder", size_mm=(14.0, 6.0, 1.0))
    assert np.array_equal(cylinder.mask, (x / 7) ** 2 + (y / 3) ** 2 <= 1)
    assert 0 < int(cylinder.mask.sum()) < GRID.shape[0] * 80


@pytest.mark.parametrize(
    ("side", "axis", "sign"),
    [
        ("left", 0, 1),
        ("right", 0, -1),
        ("posterior", 1, 1),
        ("anterior", 1, -1),
        ("superior", 2, 1),
        ("inferior", 2, -1),
    ],
)
def test_a_side_of_the_patient_is_missing(side: str, axis: int, sign: int) -> None:
    missing = ~Mask(grid=GRID, region="half", side=side, centre_mm=(0.5, 0.25, 0.75)).mask.numpy()
    assert np.array_equal(missing, sign * (positions()[axis] - (0.5, 0.25, 0.75)[axis]) > 0)
    assert 0.3 < missing.mean() < 0.7


def test_a_measurement_has_the_kept_voxels_and_returns_to_its_volume() -> None:
    kept = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    operator = Mask(grid=GRID, region="array", kept=kept)
    x = torch.arange(480.0).reshape(1, 1, *GRID.shape)
    y = operator.forward(x)
    assert torch.equal(y[0], x[0, 0][kept])
    assert torch.equal(operator.adjoint(y)[0, 0], torch.where(kept, x[0, 0], torch.tensor(0.0)))


@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_an_array_becomes_text_that_means_the_same(as_type: Any) -> None:
    kept = np.random.default_rng(0).random(GRID.shape) < 0.5
    operator = Mask(grid=GRID, region="array", kept=as_type(kept))
    assert np.array_equal(operator.mask, kept)
    assert isinstance(operator.to_dict()["kept"], str)
    assert Mask(grid=GRID, region="array", kept=operator.to_dict()["kept"]) == operator


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "sphere"}, "region is 'sphere'; expected one of box, half"),
        ({"region": ["box"]}, r"region is \['box'\]; expected one of box, half"),
        ({"region": "half", "side": ["left"]}, r"side is \['left'\]; expected one of left, right"),
        ({"region": "box"}, "'box' needs size_mm"),
        ({"region": "half"}, "'half' needs side"),
        ({"region": "half", "side": "top"}, "side is 'top'; expected one of left, right"),
        ({"region": "half", "side": "left", "size_mm": 3.0}, "size_mm is set, which the region 'half' does not have"),
        ({"region": "box", "size_mm": (1.0, 0.0, 1.0)}, "size_mm is .*expected a positive number of mm"),
        ({"region": "box", "size_mm": 3.0, "centre_mm": (1.0, 2.0)}, "centre_mm is .*three finite"),
        ({"region": "box", "size_mm": 100.0}, "keeps none of the .* voxels; make the missing region smaller"),
        ({"region": "box", "size_mm": 0.001}, "keeps all of the .* voxels, so that there is nothing to fill in"),
        ({"region": "array", "kept": np.ones((6, 8, 9), bool)}, r"kept has shape \(6, 8, 9\) .*resample the mask"),
        ({"region": "array", "kept": np.ones((6, 8, 10))}, "type float64; expected booleans"),
        ({"region": "array", "kept": "!"}, "kept is text that is no mask"),
        ({"region": "array", "kept": "AAAA"}, "kept is text that is no mask"),
    ],
)
def test_what_is_no_mask_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask(grid=GRID, **settings)


def test_the_text_of_another_grid_is_refused() -> None:
    kept = np.arange(6 * 8 * 12).reshape(6, 8, 12) > 0
    text = Mask(grid=Grid3((6, 8, 12), (1.0, 1.0, 1.0)), region="array", kept=kept).kept
    with pytest.raises(ValueError, match=r"mask of another shape than \(6, 8, 10\)"):
        Mask(grid=GRID, region="array", kept=text)
