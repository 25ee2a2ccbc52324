"""Downsampling: means of blocks, what super-resolution starts from."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prdit_models.inverse.separable import Matrices, SeparableOperator


@dataclass(frozen=True, kw_only=True)
class Downsampling(SeparableOperator):
    """Means of blocks of voxels: the same arithmetic as a store's coarser levels, without their rounding.

    Attributes:
        factor: voxels per block along every axis, or along (x, y, z).

    Raises: ValueError: at construction, for a factor that is no whole number or does not divide the grid.
    """

    factor: int | tuple[int, int, int]
    name: ClassVar[str] = "downsampling"

    def __post_init__(self) -> None:
        super().__post_init__()
        factors = tuple(self.factor) if isinstance(self.factor, tuple | list) else (self.factor,) * 3
        if len(factors) != 3 or any(type(f) is not int or f < 1 for f in factors):
            raise ValueError(f"factor is {self.factor!r}; expected a whole number of at least 1, or three (x, y, z).")
        object.__setattr__(self, "factor", self.factor if isinstance(self.factor, int) else factors)
        for axis, n, factor in zip("zyx", self.grid.shape, reversed(factors), strict=True):
            if n % factor:
                known = [f for f in range(2, min(n, 16) + 1) if n % f == 0]
                raise ValueError(
                    f"factor {factor} does not divide the {n} voxels along {axis}; use one of {known}, or crop the volume."
                )

    def _axis_matrices(self) -> Matrices:
        factors = (self.factor,) * 3 if isinstance(self.factor, int) else self.factor
        z, y, x = (_block_mean(n, factor) for n, factor in zip(self.grid.shape, reversed(factors), strict=True))
        return z, y, x


def _block_mean(n: int, factor: int) -> Tensor | None:
    if factor == 1:
        return None
    return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor
