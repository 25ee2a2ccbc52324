"""What a source of measurements gives, and checks that several share."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prdit_models.inverse.grid import Grid3
from storage.documents.measurement import Recorded, Simulated
from storage.errors import InputError
from storage.geometry import Float3

_LEAST_WATER_MM = 20.0  # a body's largest path; below it the values are in another unit


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


def check_water(values: NDArray[np.float32], where: str) -> None:
    """Refuse projections that are no mm of water.

    Raises: InputError: values that are not finite, or none as long as a body.
    """
    if values.size and np.isfinite(values).all() and values.max() >= _LEAST_WATER_MM:
        return
    span = f"{values.min():.4g} to {values.max():.4g}" if values.size else "nowhere"
    raise InputError(
        f"{where} has values from {span}; expected mm of water along each ray, of which a chest has 100 and more. Line integrals "
        "-log(I/I0) become mm of water when divided by the attenuation of water, about 0.02 per mm."
    )


def centred_origin(grid: Grid3) -> Float3:
    """Position of the first voxel of a volume whose place is not known: its centre is at 0, 0, 0."""
    x, y, z = (-(n - 1) / 2 * step for n, step in zip(reversed(grid.shape), grid.spacing_mm, strict=True))
    return x, y, z
