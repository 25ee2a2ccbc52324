"""Thick slices: what clinical archives keep of a scan that was made in thin ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prdit_models.inverse.blur import FWHM_PER_SIGMA
from prdit_models.inverse.grid import is_number, positive
from prdit_models.inverse.separable import Matrices, SeparableOperator

PROFILES = ("box", "gaussian")
_NEAREST = 0.01  # distance of slices in voxels: nearer ones are a wrong unit, and their weights would fill the memory


@dataclass(frozen=True, kw_only=True)
class ThickSlices(SeparableOperator):
    """Means over z, weighted by a slice profile; x and y stay as they are.

    Between voxel centres the volume is taken as linear, so that a linear ramp keeps its values at the slices' centres; beyond the
    first and the last centre it is constant.

    Attributes:
        thickness_mm: width of a box profile, or full width at half maximum of a Gaussian one: 2.5 to 8 mm in archives.
        distance_mm: between the centres of slices (the thickness); less: they overlap.
        profile: `box` or `gaussian`.
        first_mm: z of the first slice's centre from the centre of the first voxel (together with num_slices: slices of a series
            that is there). By default as many slices as fit with their thickness, centred in the volume.
        num_slices: how many there are from first_mm on.

    Raises: ValueError: at construction, for a setting that makes no sense, or slices that do not lie in the volume.
    """

    thickness_mm: float
    distance_mm: float | None = None
    profile: str = "box"
    first_mm: float | None = None
    num_slices: int | None = None
    name: ClassVar[str] = "thick-slices"

    def __post_init__(self) -> None:
        super().__post_init__()
        thickness = positive(self.thickness_mm, "thickness_mm", "mm")
        distance = thickness if self.distance_mm is None else positive(self.distance_mm, "distance_mm", "mm")
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}; expected one of {', '.join(PROFILES)}.")
        if (self.first_mm is None) != (self.num_slices is None):
            raise ValueError(
                f"first_mm is {self.first_mm} and num_slices {self.num_slices}; give both, or neither for slices that fill the "
                "volume."
            )
        length, spacing = self.grid.extent_mm[2], self.grid.spacing_mm[2]
        if distance < _NEAREST * spacing:
            raise ValueError(
                f"Slices are {distance:g} mm apart in a volume of voxels of {spacing:g} mm; expected at least "
                f"{_NEAREST * spacing:g} mm. Give thickness_mm and distance_mm in mm."
            )
        if self.first_mm is None:
            if thickness > length:
                raise ValueError(
                    f"thickness_mm {thickness:g} is more than the {length:g} mm of the volume along z; use thinner slices."
                )
            return
        if type(self.num_slices) is not int or self.num_slices < 1 or not is_number(self.first_mm):
            raise ValueError(
                f"first_mm is {self.first_mm!r} and num_slices {self.num_slices!r}; expected mm and at least 1."
            )
        last = self.first_mm + (self.num_slices - 1) * distance
        if self.first_mm < -spacing / 2 or last > length - spacing / 2:
            raise ValueError(
                f"Slices have centres from {self.first_mm:g} to {last:g} mm, the volume reaches from {-spacing / 2:g} to "
                f"{length - spacing / 2:g} mm; leave out the slices outside (first_mm, num_slices)."
            )

    @property
    def centres_mm(self) -> tuple[float, ...]:
        """z of the slices' centres, from the centre of the first voxel."""
        distance = self.distance_mm or self.thickness_mm
        if self.first_mm is not None and self.num_slices is not None:
            return tuple(self.first_mm + i * distance for i in range(self.num_slices))
        length, spacing = self.grid.extent_mm[2], self.grid.spacing_mm[2]
        count = math.floor((length - self.thickness_mm) / distance * (1 + 1e-9) + 1e-9) + 1
        first = (length - spacing - (count - 1) * distance) / 2
        return tuple(first + i * distance for i in range(count))

    def _axis_matrices(self) -> Matrices:
        spacing = self.grid.spacing_mm[2]
        centres = torch.tensor(self.centres_mm, dtype=torch.float64) / spacing
        return _slice_weights(self.grid.shape[0], centres, self.thickness_mm / spacing, self.profile), None, None


def _slice_weights(n: int, centres: Tensor, width: float, profile: str) -> Tensor:
    """Weights (slices, n) of voxels, all lengths in voxels.

    A voxel's weight is the integral of the profile times the hat function of linear interpolation: the second difference of the
    profile's second antiderivative.
    """
    pad = math.ceil(3 * width) + 2  # voxels beyond the ends, whose weight goes to the last one
    positions = torch.arange(-pad, n + pad, dtype=torch.float64) - centres[:, None]
    integral = _box_integral if profile == "box" else _gaussian_integral
    weights = integral(positions + 1, width) - 2 * integral(positions, width) + integral(positions - 1, width)
    columns = torch.arange(-pad, n + pad).clamp(0, n - 1).expand_as(weights)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.zeros(len(centres), n, dtype=torch.float64).scatter_add_(1, columns, weights)


def _box_integral(t: Tensor, width: float) -> Tensor:
    inside = (t + width / 2).clamp(0, width)
    return inside**2 / (2 * width) + (t - width / 2).clamp(min=0)


def _gaussian_integral(t: Tensor, width: float) -> Tensor:
    u = t * FWHM_PER_SIGMA / width
    cumulative = torch.special.ndtr(u)
    density = torch.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
    return width / FWHM_PER_SIGMA * (u * cumulative + density)
