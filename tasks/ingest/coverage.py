"""Share of body and lung that a view cuts off, from HU thresholds on the coarsest level."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.geometry import VIEW_ALIGNMENT, Int3, Volume, view_start

BODY_HU = -500
_MIN_LUNG_ML = 50.0
_VIEW_EDGE = 256  # level-0 voxels


def body_and_lung(hu: NDArray[np.int16], voxel_ml: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the body (largest dense part, filled slice by slice) and of the air in it.

    A scanner table that touches the body counts as body; accurate to about one percent, which is enough for a warning.

    Args:
        hu: shape (z, y, x), about 4 mm voxels.
        voxel_ml: volume of one voxel; air of less than 50 ml in total does not count as lung.
    """
    dense = ndimage.binary_opening(hu > BODY_HU)
    labels, count = ndimage.label(dense)
    if count == 0:
        empty = np.zeros(hu.shape, dtype=bool)
        return empty, empty
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = np.stack([ndimage.binary_fill_holes(plane) for plane in labels == int(sizes.argmax())])
    lung = ndimage.binary_opening(body & (hu < BODY_HU))
    if lung.sum() * voxel_ml < _MIN_LUNG_ML:
        lung = np.zeros(hu.shape, dtype=bool)
    return body, lung


def cut_shares(level: Volume, factor: int, base_shape: Int3) -> dict[str, float]:
    """Share of body and of lung outside the default view's box: `{"body": …, "lung": …}`, 0 where there is none.

    Args:
        level: a coarse level.
        factor: its block edge in level-0 voxels.
        base_shape: shape of level 0.
    """
    start = view_start(base_shape, _VIEW_EDGE, None, max(VIEW_ALIGNMENT, factor))
    box = tuple(slice(max(0, first // factor), max(0, (first + _VIEW_EDGE) // factor)) for first in start)
    voxel_ml = float(np.prod(level.spacing_mm)) / 1000
    shares = {}
    for name, mask in zip(("body", "lung"), body_and_lung(level.hu, voxel_ml), strict=True):
        total = int(mask.sum())
        shares[name] = round(1 - int(mask[box].sum()) / total, 4) if total else 0.0
    return shares
