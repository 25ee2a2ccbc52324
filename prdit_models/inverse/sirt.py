"""SIRT: the plain iterative reconstruction that a guided one has to beat."""

import torch
from torch import Tensor

from prdit_models.inverse.operator import MeasurementOperator

_LEAST_WEIGHT = 1e-6  # of the largest row or column sum: below it, a ray or voxel counts as not seen


@torch.no_grad()
def sirt(
    operator: MeasurementOperator,
    measurement: Tensor,
    *,
    iterations: int = 50,
    start_hu: float = -1000.0,
    limits_hu: tuple[float, float] = (-1000.0, 1000.0),
) -> Tensor:
    """Simultaneous iterative reconstruction: x += C·Aᵀ·R·(y - A x), R and C the inverse sums of rows and columns of A.

    Works with any operator whose weights are not negative, by its own forward and adjoint; it knows nothing of anatomy.

    Args:
        operator: A and b.
        measurement: y, shape (B, …).
        iterations: how many.
        start_hu: every voxel begins there (air; what nothing was measured of stays so).
        limits_hu: values are kept between them.
    Returns: HU, shape (B, 1, D, H, W).
    Source: Gregor and Benson, Computational analysis and improvement of SIRT (2008).
    """
    shape = (len(measurement), 1, *operator.grid.shape)
    volume = torch.full(shape, start_hu, dtype=measurement.dtype, device=measurement.device)
    zero = torch.zeros_like(volume[:1])
    rows = operator.forward(zero + 1000.0) - operator.forward(zero)  # A of 1 HU would drown in rounding beside b
    columns = operator.adjoint(torch.ones_like(measurement[:1]))
    row_weight, column_weight = 1000.0 * _inverse(rows), _inverse(columns)
    for _ in range(iterations):
        residual = measurement - operator.forward(volume)
        volume = (volume + column_weight * operator.adjoint(row_weight * residual)).clamp(*limits_hu)
    return volume


def _inverse(sums: Tensor) -> Tensor:
    seen = sums > _LEAST_WEIGHT * sums.max()
    return torch.where(seen, 1 / torch.where(seen, sums, 1.0), 0.0)
