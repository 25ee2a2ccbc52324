"""Gaussian blur: the resolution of another kernel, focal spot or detector."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prdit_models.inverse.grid import Float3, per_axis
from prdit_models.inverse.linear import AIR_HU
from prdit_models.inverse.separable import Matrices, SeparableOperator

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
_REACH = 6  # standard deviations after which the kernel ends: 2e-9 of it lies outside
_WIDEST = 10  # FWHM in lengths of the volume: a wider one is a wrong unit, and its kernel would fill the memory
BOUNDARIES = ("reflect", "air")


@dataclass(frozen=True, kw_only=True)
class Blur(SeparableOperator):
    """Convolution with a Gaussian, sampled at the voxels and normalised.

    Attributes:
        fwhm_mm: full width at half maximum, along every axis or along (x, y, z); the standard deviation is FWHM / 2.355.
        boundary: what lies outside of the volume: its mirror image (`reflect`), or air of -1000 HU (`air`).

    Raises: ValueError: at construction, for a width that is not positive or far more than the volume's, or an unknown boundary.
    """

    fwhm_mm: float | Float3
    boundary: str = "reflect"
    name: ClassVar[str] = "blur"

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = per_axis(self.fwhm_mm, "fwhm_mm", "mm (without blur there is nothing to undo: use another operator)")
        object.__setattr__(self, "fwhm_mm", widths)
        if any(width > _WIDEST * length for width, length in zip(widths, self.grid.extent_mm, strict=True)):
            raise ValueError(
                f"fwhm_mm is {self.fwhm_mm!r}, more than {_WIDEST} times the volume of "
                f"{' × '.join(f'{mm:g}' for mm in self.grid.extent_mm)} mm (x, y, z): nothing is left to see. Use a narrower one."
            )
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {self.boundary!r}; expected one of {', '.join(BOUNDARIES)}.")

    @property
    def reference_hu(self) -> float:
        """Value of what lies outside, where there is one."""
        return AIR_HU if self.boundary == "air" else 0.0

    def _axis_matrices(self) -> Matrices:
        widths = per_axis(self.fwhm_mm, "fwhm_mm", "mm")
        sigmas = [w / FWHM_PER_SIGMA / s for w, s in zip(widths, self.grid.spacing_mm, strict=True)]
        z, y, x = (
            _gaussian(n, sigma, self.boundary) for n, sigma in zip(self.grid.shape, reversed(sigmas), strict=True)
        )
        return z, y, x


def _gaussian(n: int, sigma: float, boundary: str) -> Tensor:
    """Matrix (n, n) of the convolution with a Gaussian of standard deviation sigma, in voxels."""
    radius = math.ceil(_REACH * sigma)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    rows = torch.arange(n)[:, None]
    columns = rows + offsets
    weights = kernel.expand(n, -1)
    if boundary == "reflect":
        columns = columns.remainder(2 * n)
        columns = torch.where(columns < n, columns, 2 * n - 1 - columns)
    else:
        weights = weights * ((columns >= 0) & (columns < n))
        columns = columns.clamp(0, n - 1)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, columns, weights)
