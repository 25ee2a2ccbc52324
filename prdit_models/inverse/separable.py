"""Operators that act along each axis by itself: a matrix per axis, whose transpose is the exact adjoint."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prdit_models.inverse.linear import LinearOperator

Matrices = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class SeparableOperator(LinearOperator):
    """y = (M_z ⊗ M_y ⊗ M_x)·x. Matrices of a few hundred rows cost less than a network's evaluation by far."""

    def _axis_matrices(self) -> Matrices:
        """Float64 matrices (measured, voxels) along z, y, x; None: the axis stays as it is."""
        raise NotImplementedError

    @cached_property
    def _matrices(self) -> Matrices:
        return self._axis_matrices()

    @cached_property
    def _moved(self) -> dict[tuple[torch.dtype, torch.device], Matrices]:
        return {}

    def _matrices_like(self, values: Tensor) -> Matrices:
        """The matrices where and as precise as values are, kept for the next call."""
        key = (values.dtype, values.device)
        if key not in self._moved:
            z, y, x = (None if matrix is None else matrix.to(values) for matrix in self._matrices)
            self._moved[key] = (z, y, x)
        return self._moved[key]

    def _shape(self) -> tuple[int, ...]:
        return tuple(
            n if matrix is None else matrix.shape[0] for n, matrix in zip(self.grid.shape, self._matrices, strict=True)
        )

    def _linear(self, volume: Tensor) -> Tensor:
        return _along_axes(volume[:, 0], self._matrices_like(volume))

    def _transposed(self, measurement: Tensor) -> Tensor:
        z, y, x = (None if matrix is None else matrix.T for matrix in self._matrices_like(measurement))
        return _along_axes(measurement, (z, y, x))[:, None]


def _along_axes(values: Tensor, matrices: Matrices) -> Tensor:
    """Values (B, D, H, W) multiplied along each axis."""
    z, y, x = matrices
    if z is not None:
        values = (z @ values.flatten(2)).unflatten(2, values.shape[2:])
    if y is not None:
        values = y @ values
    if x is not None:
        values = values @ x.T
    return values
