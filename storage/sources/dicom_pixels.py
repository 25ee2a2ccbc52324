"""Stored pixels -> HU, with FILL_HU where nothing was measured."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.sources.dicom_planes import Plane
from storage.sources.source import Limits


def plane_hu(stored: NDArray[Any], plane: Plane) -> NDArray[np.float32]:
    """HU of one image by its own rescale values; FILL_HU in declared padding and below AIR_HU. Not limited above.

    Args:
        stored: pixels as stored, shape (rows, columns), integers.
        plane: its header, with slope and intercept.
    """
    raise NotImplementedError


def empty_stack(planes: "tuple[Plane, ...]") -> NDArray[Any]:
    """Uninitialised HU (slices, rows, columns): int16 where slope and intercept of every image are whole, else float32."""
    raise NotImplementedError


def settle_above(hu: NDArray[Any], limits: Limits, where: str) -> tuple[str, ...]:
    """Take values above `limits.max_hu` from a stack, in place; sentences about what was replaced.

    A region (one that touches the edge of the image, or covers a hundredth of it) is fill that nobody declared and becomes FILL_HU; few
    voxels, as in metal, become the limit.

    Raises: UnusableSeriesError: not_hu, where most voxels are beyond what HU can be.
    """
    raise NotImplementedError
