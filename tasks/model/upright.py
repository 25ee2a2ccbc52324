"""Arrays whose axes lie along the patient's, and what share of other cells their voxels fill."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.geometry import Float3
from storage.resample import is_aligned


@dataclass(frozen=True)
class Upright:
    """An array with ascending axes (z, y, x).

    Attributes:
        values: shape (z, y, x).
        first_mm: LPS position of the first voxel along z, y and x.
        spacing_mm: voxel distances along z, y and x.
    """

    values: NDArray[Any]
    first_mm: Float3
    spacing_mm: Float3


def upright(
    values: NDArray[Any], spacing_mm: Float3, origin_mm: Float3, direction: NDArray[np.float64]
) -> Upright | None:
    """Turn an array (k, j, i) so that its axes ascend along z, y and x; None where they do not run along the patient's.

    Args:
        values, spacing_mm, origin_mm, direction: as in `storage.sources.source.SourceVolume`.
    """
    if not is_aligned(direction):
        return None
    signs = np.rint(direction)
    axis_of = [int(np.abs(signs[world]).argmax()) for world in range(3)]  # which index axis runs along x, y, z
    turned = values.transpose([2 - axis_of[world] for world in (2, 1, 0)])
    first, spacing = [], []
    for place, world in enumerate((2, 1, 0)):
        axis = axis_of[world]
        step, count = spacing_mm[axis], turned.shape[place]
        start = origin_mm[world]
        if signs[world, axis] < 0:
            start -= (count - 1) * step
            turned = np.flip(turned, place)
        first.append(float(start))
        spacing.append(float(step))
    return Upright(turned, (first[0], first[1], first[2]), (spacing[0], spacing[1], spacing[2]))


def filled_shares(
    low_mm: NDArray[np.floating], width_mm: float, first_mm: float, spacing_mm: float, count: int
) -> NDArray[np.float64]:
    """Share of each cell along one axis that each plane of an array fills, shape (cells, planes).

    Args:
        low_mm: lower ends of the cells, shape (cells,).
        width_mm: of a cell.
        first_mm: position of the first plane, which reaches half a distance to both sides.
        spacing_mm: distance of the planes.
        count: of the planes.
    """
    low = low_mm[:, None]
    edges = first_mm + (np.arange(count)[None, :] - 0.5) * spacing_mm
    overlap = np.minimum(low + width_mm, edges + spacing_mm) - np.maximum(low, edges)
    return np.clip(overlap, 0.0, None) / width_mm


def in_the_middle(seen: Upright, count: int, width_mm: float, outside: float = 0.0) -> NDArray[np.float32]:
    """Means of an array over the cells of a cube whose middle is the array's.

    Args:
        seen: the array, of numbers or flags.
        count: cells along an edge of the cube.
        width_mm: of a cell.
        outside: what counts where the array has no voxel.
    Returns: shape (count, count, count).
    """
    means = seen.values.astype(np.float32) - np.float32(outside)
    for axis in range(3):
        first, spacing, planes = seen.first_mm[axis], seen.spacing_mm[axis], seen.values.shape[axis]
        middle = first + (planes - 1) * spacing / 2
        low = middle + (np.arange(count) - count / 2) * width_mm
        shares = filled_shares(low, width_mm, first, spacing, planes).astype(np.float32)
        means = np.moveaxis(np.tensordot(shares, np.moveaxis(means, axis, 0), axes=1), 0, axis)
    return np.ascontiguousarray(means + np.float32(outside))
