"""Stored pixels -> HU, with FILL_HU where nothing was measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

from storage.geometry import FILL_HU
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_values import tag_integer
from storage.sources.field_of_view import mark_outside_field_of_view
from storage.sources.plane_checks import check_each_plane
from storage.sources.plausible import (
    AIR_TISSUE_HU,
    HIGHEST_TISSUE_HU,
    FillCounts,
    edges,
    fill_notes,
    recognise_fill,
)
from storage.sources.source import Limits, refuse
from storage.verdicts import counted

REGION_VOXELS = 16  # of a plane: fewer are no region of padding
_STEP_HU, _WORSE = 100.0, 3.0  # mean difference of planes in a row, and how often that with one rescale for both


def read_stack(
    planes: Sequence[Plane], stored_pixels: Callable[[Plane], NDArray[Any]], limits: Limits, where: str
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """HU of the planes of a volume, and sentences about what was replaced.

    Args:
        planes: in the order of k, each with slope and intercept.
        stored_pixels: pixels of a plane as stored, integers of shape (rows, columns); called once for each, in their order.
        limits: for values above what HU can be.
        where: how sentences call the volume.
    Returns: shape (k, rows, columns): int16 where slope and intercept of every plane are whole, else float32; each value FILL_HU or
        at least AIR_HU.
    Raises: UnusableSeriesError: inconsistent_shape, or as `storage.sources.plausible.fill_notes` and `check_each_plane`.
    """
    rows, columns = planes[0].shape
    whole = all(_whole(plane.slope) and _whole(plane.intercept) for plane in planes)
    stack = np.empty((len(planes), rows, columns), dtype=np.int16 if whole else np.float32)
    counts: list[FillCounts] = []
    padded: set[int] = set()  # planes of declared padding alone
    num_negative = num_same = 0
    before: tuple[Plane, NDArray[Any], NDArray[np.float32]] | None = None
    for index, plane in enumerate(planes):
        stored = stored_pixels(plane)
        if stored.shape != (rows, columns):
            detail = (
                f"pixels of {' × '.join(map(str, stored.shape))} in {plane.name}, its header says {rows} × {columns}"
            )
            refuse("inconsistent_shape", where, detail, plane.file)
        hu = plane_hu(stored, plane)
        num_negative += _read_as_negative(hu, stored, plane)
        if before is not None:
            _check_step(before, (plane, stored, hu), where)
            num_same += bool(np.array_equal(stored, before[1]) and stored.min() != stored.max())
        before = plane, stored, hu
        if (hu == FILL_HU).all():
            padded.add(index)
        stack[index], found = recognise_fill(hu, limits)
        counts.append(found)
    if len(padded) == len(planes):
        refuse("no_content", where, "all its voxels are declared padding (PixelPaddingValue, PixelPaddingRangeLimit)")
    notes = fill_notes(sum(counts, FillCounts()), limits, where)
    if num_same:
        notes = (
            *notes,
            f"{counted(num_same, 'slice')} with the pixels of the one before: copies may be in the place of others",
        )
    if num_negative:
        notes = (
            *notes,
            f"{num_negative} voxels of unsigned pixels are negative numbers (PixelRepresentation), fill or air",
        )
    ends = check_each_plane(
        stack, counts, lambda k: (f"{where}, file {planes[k].name}", planes[k].file), padded.__contains__
    )
    return stack, (*notes, *ends, *mark_outside_field_of_view(stack))


def plane_hu(stored: NDArray[Any], plane: Plane) -> NDArray[np.float32]:
    """HU of one image by its own slope and intercept, FILL_HU in declared padding; nothing else is changed.

    Padding that tissue can be too (0 stored where that is water) is padding only in regions at the border of the plane.
    """
    hu = stored.astype(np.float32) * np.float32(plane.slope or 0.0) + np.float32(plane.intercept or 0.0)
    if plane.padding is not None:
        low, high = plane.padding
        padding = (stored >= low) & (stored <= high)
        if (hu[padding] >= AIR_TISSUE_HU).any():
            padding &= _regions_at_border(padding) | (hu < AIR_TISSUE_HU) | (hu > HIGHEST_TISSUE_HU)
        hu[padding] = FILL_HU
    return hu


def _check_step(
    before: tuple[Plane, NDArray[Any], NDArray[np.float32]],
    here: tuple[Plane, NDArray[Any], NDArray[np.float32]],
    where: str,
) -> None:
    """Refuse a plane whose rescale is not that of the one before, and should be: the planes agree far better with that.

    Args:
        before, here: two planes in a row, their stored values and HU.
    """
    (one, _, hu_before), (plane, stored, hu) = before, here
    if (plane.slope, plane.intercept) == (one.slope, one.intercept):
        return
    off = float(np.abs(hu - hu_before).mean())
    as_before = float(np.abs(plane_hu(stored, replace(one, padding=plane.padding)) - hu_before).mean())
    if off > _STEP_HU and off > _WORSE * as_before:
        detail = (
            f"HU = {plane.slope:g} × stored + {plane.intercept:g}, in the slice before {one.slope:g} × stored + {one.intercept:g}, "
            f"with which it would be {as_before:.0f} HU from that on average instead of {off:.0f}"
        )
        refuse("impossible_hu", f"{where}, file {plane.name}", detail, plane.file)


def _read_as_negative(hu: NDArray[np.float32], stored: NDArray[Any], plane: Plane) -> int:
    """Change HU of unsigned 16 bits that are negative numbers in truth, below what 0 stands for; returns how many there are.

    Noise of air goes below an intercept of -1000, and some writers call signed pixels unsigned. Only where 0 stands for air
    are such values no tissue.
    """
    if stored.dtype != np.uint16 or not plane.slope or (plane.intercept or 0.0) > AIR_TISSUE_HU:
        return 0
    negative = hu > np.iinfo(np.int16).max
    hu[negative] -= np.float32(2**16 * plane.slope)
    return int(negative.sum())


def _regions_at_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is connected to the border of the plane, and no smaller than `REGION_VOXELS`."""
    labels, count = ndimage.label(mask)
    touching = np.zeros(count + 1, dtype=bool)
    touching[edges(labels)] = True
    touching &= np.bincount(labels.ravel(), minlength=count + 1) >= REGION_VOXELS
    touching[0] = False
    regions: NDArray[np.bool_] = touching[labels]
    return regions


def without_overlays(stored: NDArray[Any], header: Dataset, padding: tuple[int, int] | None) -> NDArray[Any]:
    """Stored values without what lies above BitsStored, where overlays of older editions of the standard are.

    Unsigned values whose high bits are all equal are left alone: those are negative numbers, or padding, in a type that says
    otherwise. Signed ones have their sign there.

    Args:
        stored: pixels, integers of shape (rows, columns).
        header: with BitsAllocated and BitsStored.
        padding: lowest and highest stored value that is declared padding; such values are left alone.
    """
    allocated, bits = tag_integer(header, "BitsAllocated") or 0, tag_integer(header, "BitsStored") or 0
    if not 0 < bits < allocated or stored.dtype.itemsize != allocated // 8:
        return stored
    if stored.dtype.kind == "i":
        kept = (stored << (allocated - bits)) >> (allocated - bits)
        mixed = kept != stored
    else:
        kept, high = stored & ((1 << bits) - 1), stored >> bits
        mixed = (high != 0) & (high != (1 << (allocated - bits)) - 1)
    if padding is not None:
        mixed &= (stored < padding[0]) | (stored > padding[1])
    if not mixed.any():
        return stored
    cleaned: NDArray[Any] = np.where(mixed, kept, stored)
    return cleaned


def _whole(value: float | None) -> bool:
    return value is not None and float(value).is_integer()
