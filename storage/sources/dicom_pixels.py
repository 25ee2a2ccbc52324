"""Stored pixels -> HU, with FILL_HU where nothing was measured."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.geometry import FILL_HU
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_values import tag_integer
from storage.sources.plausible import FillCounts, fill_notes, recognise_fill
from storage.sources.source import Limits, refuse


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
    Raises: UnusableSeriesError: inconsistent_shape, or as `storage.sources.plausible.fill_notes`.
    """
    rows, columns = planes[0].shape
    whole = all(_whole(plane.slope) and _whole(plane.intercept) for plane in planes)
    stack = np.empty((len(planes), rows, columns), dtype=np.int16 if whole else np.float32)
    counts = FillCounts()
    for index, plane in enumerate(planes):
        stored = stored_pixels(plane)
        if stored.shape != (rows, columns):
            detail = (
                f"pixels of {' × '.join(map(str, stored.shape))} in {plane.name}, its header says {rows} × {columns}"
            )
            refuse("inconsistent_shape", where, detail, plane.file)
        stack[index], found = recognise_fill(plane_hu(stored, plane), limits)
        counts += found
    return stack, fill_notes(counts, limits, where)


def plane_hu(stored: NDArray[Any], plane: Plane) -> NDArray[np.float32]:
    """HU of one image by its own slope and intercept, FILL_HU in declared padding; nothing else is changed."""
    hu = stored.astype(np.float32) * np.float32(plane.slope or 0.0) + np.float32(plane.intercept or 0.0)
    if plane.padding is not None:
        low, high = plane.padding
        hu[(stored >= low) & (stored <= high)] = FILL_HU
    return hu


def without_overlays(stored: NDArray[Any], header: Dataset, padding: tuple[int, int] | None) -> NDArray[Any]:
    """Unsigned stored values without what lies above BitsStored, where overlays of older editions of the standard are.

    Values whose high bits are all equal are left alone: those are negative numbers, or padding, in a type that says otherwise.

    Args:
        stored: pixels, integers of shape (rows, columns).
        header: with BitsAllocated and BitsStored.
        padding: lowest and highest stored value that is declared padding; such values are left alone.
    """
    allocated, bits = tag_integer(header, "BitsAllocated") or 0, tag_integer(header, "BitsStored") or 0
    if not 0 < bits < allocated or stored.dtype != f"u{allocated // 8}":
        return stored
    high = stored >> bits
    mixed = (high != 0) & (high != (1 << (allocated - bits)) - 1)
    if padding is not None:
        mixed &= (stored < padding[0]) | (stored > padding[1])
    if not mixed.any():
        return stored
    cleaned: NDArray[Any] = np.where(mixed, stored & ((1 << bits) - 1), stored)
    return cleaned


def _whole(value: float | None) -> bool:
    return value is not None and float(value).is_integer()
