"""The volume type, block means and the boxes a view is cut from: array geometry without any file format.

Axes are (z, y, x) in arrays and (x, y, z) in world coordinates; world is LPS, so axes grow towards left, posterior and superior.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1024  # lowest value kept, and the value of everything outside a volume
FILL_HU = -32768  # of a scan before resampling: a voxel that was not measured (padding); in the store it is AIR_HU
VIEW_ALIGNMENT = 4  # a view starts at a multiple of this, so that it covers whole voxels of levels 0, 1 and 2

Int3 = tuple[int, int, int]
Float3 = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """Hounsfield units on an axis-aligned LPS grid.

    Attributes:
        hu: int16, shape (z, y, x); index grows towards superior, posterior, left.
        spacing_mm: voxel distances (x, y, z).
        origin_mm: LPS world position (x, y, z) of the centre of voxel [0, 0, 0].
    """

    hu: NDArray[np.int16]
    spacing_mm: Float3
    origin_mm: Float3

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16 or 0 in self.hu.shape:
            raise ValueError(
                f"Volume.hu has shape {self.hu.shape} and type {self.hu.dtype}; expected non-empty int16 (z, y, x). "
                "Convert with to_int16_hu()."
            )
        if len(self.spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise ValueError(f"Volume.spacing_mm is {self.spacing_mm}; expected three positive millimetres (x, y, z).")
        if len(self.origin_mm) != 3 or not all(np.isfinite(o) for o in self.origin_mm):
            raise ValueError(f"Volume.origin_mm is {self.origin_mm}; expected three finite millimetres (x, y, z).")

    def world_mm(self, index_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """LPS positions (..., 3) in x, y, z of (fractional) indices (..., 3) in z, y, x."""
        index = np.asarray(index_zyx, dtype=np.float64)[..., ::-1]
        return index * np.asarray(self.spacing_mm) + np.asarray(self.origin_mm)

    def index_of(self, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional indices (..., 3) in z, y, x of LPS positions (..., 3) in x, y, z."""
        offset = np.asarray(world_mm, dtype=np.float64) - np.asarray(self.origin_mm)
        return (offset / np.asarray(self.spacing_mm))[..., ::-1]


def to_int16_hu(values: NDArray[np.floating]) -> NDArray[np.int16]:
    """Round HU half to even and clamp to [AIR_HU, 32767]; a new int16 array of the same shape."""
    return np.clip(np.rint(values), AIR_HU, np.iinfo(np.int16).max).astype(np.int16)


def block_mean(hu: NDArray[np.int16], factor: int) -> NDArray[np.int16]:
    """Mean of every factor³ block, in int32 and rounded half to even.

    A block that extends past the array's end is padded with AIR_HU (what a reader would see there), so a level's
    voxel is the mean of a full block, inside the array and at its edge.

    Args:
        hu: shape (z, y, x).
        factor: block edge in voxels, at least 1 and at most 32 (sums stay within int32).
    Returns: int16, shape (ceil(z / factor), ceil(y / factor), ceil(x / factor)).
    Raises: ValueError: if factor is out of range.
    Source: docs/data-model.md, "Levels".
    """
    if not 1 <= factor <= 32:
        raise ValueError(f"block_mean factor is {factor}; expected 1 to 32.")
    if factor == 1:
        return hu.copy()
    shape = [-(-n // factor) for n in hu.shape]
    out = np.empty(shape, dtype=np.int16)
    count = factor**3
    for k in range(shape[0]):  # one slab at a time, to keep the int32 copy small
        slab = hu[k * factor : (k + 1) * factor]
        pad = [(0, factor * n - m) for n, m in zip((1, *shape[1:]), slab.shape, strict=True)]
        if any(after for _, after in pad):
            slab = np.pad(slab, pad, constant_values=AIR_HU)
        total = slab.reshape(factor, shape[1], factor, shape[2], factor).sum(axis=(0, 2, 4), dtype=np.int32)
        out[k] = _divide_half_to_even(total, count)
    return out


def _divide_half_to_even(total: NDArray[np.int32], count: int) -> NDArray[np.int16]:
    quotient = total // count  # floor
    twice = 2 * (total - quotient * count)
    up = (twice > count) | ((twice == count) & (quotient % 2 == 1))
    return (quotient + up).astype(np.int16)


def pool_mean(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Mean of every factor³ block in float32; each axis must be a multiple of factor."""
    if factor == 1:
        return values
    if any(n % factor for n in values.shape):
        raise ValueError(f"pool_mean: shape {values.shape} is not a multiple of {factor} on every axis.")
    d, h, w = (n // factor for n in values.shape)
    pooled: NDArray[np.float32] = values.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5), dtype=np.float32)
    return pooled


def view_start(shape: tuple[int, ...], edge: int, centre: Int3 | None = None, alignment: int = VIEW_ALIGNMENT) -> Int3:
    """First level-0 voxel (z, y, x) of a cube of `edge` voxels around a centre; it may lie outside the volume.

    Args:
        shape: level-0 shape (z, y, x).
        edge: cube edge in level-0 voxels.
        centre: voxel (z, y, x) that should be in the middle; the volume's middle when None.
        alignment: the start is rounded to the nearest multiple of this, halves up.
    """
    middle = [n / 2 for n in shape] if centre is None else [float(c) for c in centre]
    start = [int(np.floor((m - edge / 2) / alignment + 0.5)) * alignment for m in middle]
    return start[0], start[1], start[2]


def padded_crop_bounds(shape: tuple[int, ...], start: Int3, size: Int3) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of an array that a box covers which may extend past it, and where in the box that part goes.

    Returns: (slices in the array, slices in the box); empty slices when they do not overlap.
    """
    source, target = [], []
    for n, first, length in zip(shape, start, size, strict=True):
        low, high = max(first, 0), min(first + length, n)
        high = max(low, high)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    return tuple(source), tuple(target)
