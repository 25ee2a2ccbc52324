"""The coarse mask that a model is shown beside a noisy volume: where body and lungs are, not what they look like."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from prdit_models.metrics.anatomy import AIR_HU, Hu, Mask, largest_part, pooled

CHANNELS = ("body", "lungs")  # the body's includes the lungs
OUTSIDE, BODY, LUNGS = 0, 1, 2  # values of a label volume
_WITHIN_SLICE = np.zeros((3, 3, 3), dtype=bool)  # which neighbours of a voxel are connected with it
_WITHIN_SLICE[1, 1, :] = _WITHIN_SLICE[1, :, 1] = True


def body_and_lungs(hu: Hu, voxel_mm: float) -> tuple[Mask, Mask]:
    """Masks of the body, lungs included, and of the air in it, on the grid of `prdit_models.metrics.anatomy.pooled` (about 8 mm).

    Air is outside where it reaches a corner of its axial slice. The anatomy figures count all air at the front and the back of the
    box as outside; a box that cuts the back of a patient would lose both lungs, and a model would be told that there are none.

    Args:
        hu: shape (D, H, W), axes (z, y, x).
        voxel_mm: voxel edge.
    """
    coarse = pooled(hu, voxel_mm)
    dense = coarse >= AIR_HU
    parts, _ = ndimage.label(~dense, _WITHIN_SLICE)
    reached = np.unique(parts[:, [0, 0, -1, -1], [0, -1, 0, -1]])
    outside = np.isin(parts, reached[reached > 0])
    lungs = ~dense & ~outside
    return largest_part(dense)[0] | lungs, lungs


def mask_of_volume(hu: Hu, voxel_mm: float, cell: int) -> Tensor:
    """The mask of a volume in Hounsfield units.

    They are found on a grid of about 8 mm whatever the volume's voxels are, which takes milliseconds.

    Args:
        hu: shape (S, S, S), axes (z, y, x).
        voxel_mm: voxel edge.
        cell: edge of a cell of the mask in voxels; divides S.
    Returns: shares in [0, 1] of `CHANNELS` in every cell, float32, shape (2, S/cell, S/cell, S/cell).
    """
    size = hu.shape[0] // cell
    found = torch.from_numpy(np.stack(body_and_lungs(hu, voxel_mm))).float()
    return F.adaptive_avg_pool3d(found, size)


def labels_of_mask(mask: Tensor, cell: int) -> NDArray[np.int16]:
    """A mask as labels of voxels: `LUNGS` or `BODY` where at least half of the cell is, else `OUTSIDE`.

    Args:
        mask: shares, shape (2, s, s, s).
        cell: edge of a cell in voxels.
    Returns: int16, shape (s · cell,) * 3.
    """
    body, lungs = (mask >= 0.5).numpy()
    labels = np.where(lungs, LUNGS, np.where(body, BODY, OUTSIDE)).astype(np.int16)
    for axis in range(3):
        labels = labels.repeat(cell, axis)
    return labels
