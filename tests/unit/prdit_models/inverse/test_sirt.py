"""SIRT finds what the measurement determines, and stays within limits."""

import torch

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import operator_from_dict
from prdit_models.inverse.sirt import sirt

GRID = Grid3((8, 8, 8), (4.0, 4.0, 4.0))


def test_means_of_blocks_are_matched_by_one_step() -> None:
    operator = operator_from_dict({"name": "downsampling", "factor": 2}, GRID)
    measurement = torch.linspace(-900, 900, 64).reshape(1, 4, 4, 4)
    found = sirt(operator, measurement, iterations=1, start_hu=0.0)
    blocks = measurement.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found[:, 0], blocks, atol=0.05, rtol=0)


def test_projections_are_explained_better_with_each_iteration() -> None:
    views = [{"angle_deg": angle} for angle in (0.0, 45.0, 90.0, 135.0)]
    operator = operator_from_dict(
        {"name": "projection", "beam": "parallel", "views": views, "detector_shape": [8, 12], "detector_pitch_mm": 4.0},
        GRID,
    )
    truth = torch.full((1, 1, 8, 8, 8), -1000.0)
    truth[..., 2:6, 2:6, 3:7] = 200.0
    measurement = operator.forward(truth)
    sizes, errors = [], []
    for iterations in (1, 10, 100):
        found = sirt(operator, measurement, iterations=iterations)
        assert found.min() >= -1000
        assert found.max() <= 1000
        sizes.append(float((measurement - operator.forward(found)).square().mean().sqrt()))
        errors.append(float((found - truth).square().mean().sqrt()))
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
    assert errors[0] > errors[1] > errors[2]
