"""The volume type, block means and the boxes a view is cut from: array geometry without any file format.

Axes are (z, y, x) in arrays and (x, y, z) in world coordinates; world is LPS, so axes grow towards left, posterior and superior.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    whole = np.rint(values)
    return np.clip(whole, AIR_HU, np.iinfo(np.int16).max, out=whole).astype(np.int16)


def pyramid(hu: NDArray[np.int16], num_levels: int) -> list[NDArray[np.int16]]:
    """Levels of a volume: level k is the mean of every block of 2**k voxels of level 0, rounded half to even.

    Sums are carried from level to level in int32, so each level is rounded once. A block that extends past the array's end is
    padded with AIR_HU (what a reader would see there), so a level's voxel is the mean of a full block, inside the array and at its
    edge.

    Args:
        hu: level 0, shape (z, y, x).
        num_levels: 1 to 6 (sums stay within int32).
    Returns: level 0 itself, then int16 of half the shape of the level before, rounded up.
    Raises: ValueError: if num_levels is out of range.
    Source: docs/data-model.md, "Levels".
    """
    if not 1 <= num_levels <= 6:
        raise ValueError(f"pyramid has {num_levels} levels; expected 1 to 6.")
    levels: list[NDArray[np.int16]] = [hu]
    sums: NDArray[Any] = hu
    for level in range(1, num_levels):
        sums = _sums_of_eight(sums, AIR_HU * 8 ** (level - 1))
        levels.append(_divide_half_to_even(sums, 3 * level))
    return levels


def _sums_of_eight(values: NDArray[Any], outside: int) -> NDArray[np.int32]:
    """Sum of every 2³ block, where voxels past the end count as `outside`."""
    depth, rows, columns = (-(-n // 2) for n in values.shape)
    out = np.empty((depth, rows, columns), dtype=np.int32)
    for k in range(depth):  # one slab at a time stays in the processor's cache
        slab = values[2 * k : 2 * k + 2]
        pad = [(0, size - n) for size, n in zip((2, 2 * rows, 2 * columns), slab.shape, strict=True)]
        if any(after for _, after in pad):
            slab = np.pad(slab, pad, constant_values=outside)
        plane = np.add(slab[0], slab[1], dtype=np.int32)
        plane = plane[0::2] + plane[1::2]
        np.add(plane[:, 0::2], plane[:, 1::2], out=out[k])
    return out


def _divide_half_to_even(total: NDArray[Any], bits: int) -> NDArray[np.int16]:
    """total / 2**bits: of what shifting cuts off (it rounds down), half and an odd quotient, or more than half, rounds up."""
    odd = (total >> bits) & 1
    return ((total + ((1 << (bits - 1)) - 1) + odd) >> bits).astype(np.int16)


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


@dataclass(frozen=True)
class ViewCut:
    """The part of one stored level that a view is made of.

    Attributes:
        level: which level is read.
        start: first voxel (z, y, x) of that level; it may lie outside.
        length: edge of the cube in voxels of that level.
        factor: blocks of factor³ of these voxels become one voxel of the view.
    """

    level: int
    start: Int3
    length: int
    factor: int

    def take(
        self, shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], NDArray[np.int16]]
    ) -> NDArray[np.float32]:
        """The view: the cube, AIR_HU outside the level, pooled in float32; shape (length / factor,) * 3.

        Args:
            shape: of the level.
            read: its values between slices.
        """
        source, target = padded_crop_bounds(shape, self.start, (self.length,) * 3)
        inside = all(s.start == 0 and s.stop == self.length for s in target)
        box = np.empty((self.length,) * 3, dtype=np.float32)
        if not inside:
            box.fill(AIR_HU)
        if all(s.stop > s.start for s in source):
            box[target] = read(source)
        return pool_mean(box, self.factor)


def view_cut(
    shape: tuple[int, ...], num_levels: int, size: int, edge: int, centre: Int3 | None, margin: int = 0
) -> ViewCut:
    """Which part of which level a view needs: the coarsest level whose voxels pool to those of the view.

    Args:
        shape: of level 0 (z, y, x).
        num_levels: stored.
        size: voxels per axis of the view.
        edge: voxels per axis of its cube on level 0; a multiple of size.
        centre: level-0 voxel (z, y, x) in the middle; the volume's middle when None.
        margin: voxels of the view added on every side; the view without them stays where it is.
    Raises: ValueError: size does not divide edge.
    """
    if size < 1 or edge < 1 or edge % size:
        raise ValueError(
            f"A view of size {size} cannot be cut from an edge of {edge} voxels: edge must be a positive multiple "
            f"of size. Use for example edge {max(1, round(edge / max(size, 1))) * max(size, 1)}."
        )
    factor = edge // size
    level = max(k for k in range(num_levels) if factor % 2**k == 0)
    step = 2**level
    pooled = factor // step
    first = view_start(shape, edge, centre, max(VIEW_ALIGNMENT, 2 ** (num_levels - 1)))
    start = tuple(n // step - margin * pooled for n in first)
    return ViewCut(level, (start[0], start[1], start[2]), (size + 2 * margin) * pooled, pooled)
