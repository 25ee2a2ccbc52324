"""What a source of measurements gives, and whether it can be mm of water."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prdit_models.inverse.grid import Grid3
from storage.documents.measurement import Recorded, Simulated
from storage.errors import InputError
from storage.geometry import Float3

_LOWEST_WATER_MM = -50.0  # beside the body, where the intensity without it is known to some percent
_LEAST_WATER_MM = 20.0  # a body's largest path at least
_MOST_WATER_MM = 1000.0  # twice the width of a large chest
_NOISES = 5.0  # standard deviations by which noise may leave the range


@dataclass(frozen=True)
class Taken:
    """What a source gives.

    Attributes:
        values: in the operator's unit and shape.
        origin_mm: LPS position of the first voxel of the volume that was measured.
        saturated_fraction: share of values in HU that lay outside of the model's window.
        origin: document of where it comes from.
    """

    values: NDArray[np.float32]
    origin_mm: Float3
    saturated_fraction: float
    origin: Simulated | Recorded


def check_water(values: NDArray[np.float32], noise_std: float) -> None:
    """Refuse path lengths that no body has: they are in another unit.

    Args:
        values: mm of water.
        noise_std: of their noise.
    Raises: InputError: values below or above those of any body, or none as long as one.
    """
    low, high, noise = float(values.min()), float(values.max()), _NOISES * noise_std
    if _LOWEST_WATER_MM - noise <= low and _LEAST_WATER_MM <= high <= _MOST_WATER_MM + noise:
        return
    raise InputError(
        f"The measurement has values from {low:.4g} to {high:.4g}; expected mm of water along each ray: 0 beside a body, 100 and "
        f"more through a chest, at most {_MOST_WATER_MM:g}. Intensities I become line integrals by -log(I/I0), and these mm of "
        "water when divided by the attenuation of water, about 0.02 per mm. Of DICOM radiographs, correct air_value, water_per_mm "
        "or pixel_values under radiograph in the operator."
    )


def centred_origin(grid: Grid3) -> Float3:
    """Position of the first voxel of a volume whose place is not known: its centre is at 0, 0, 0."""
    x, y, z = (-(n - 1) / 2 * step for n, step in zip(reversed(grid.shape), grid.spacing_mm, strict=True))
    return x, y, z
