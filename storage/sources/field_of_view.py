"""Fill outside the field of view that no tag declares and that a single plane does not show: one value, the same in every plane."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.geometry import AIR_HU, FILL_HU
from storage.sources.plausible import AIR_TISSUE_HU, HIGHEST_TISSUE_HU

MOST_PLANES = 0.95  # of a scan: so many have the value in a corner
LEAST_SHARE, MOST_SHARE = 0.01, 0.4  # of a plane, for fill of a value that can be measured; a circle may have any
_CIRCLE_VOXELS = 1.5  # how far the edge of a circular field of view may lie from a circle
_CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def mark_outside_field_of_view(hu: NDArray[Any]) -> tuple[str, ...]:
    """Set voxels outside the field of view to FILL_HU, where their value gives them away.

    They are connected to a corner of the plane and have one value, the same in `MOST_PLANES` of the planes. Up to
    `HIGHEST_TISSUE_HU`, which can be measured, only voxels that have it in all those planes are meant, where what they surround is
    cut off by the plane's edges, or is a circle or a rectangle, as no patient is, and has air of its own; the value of air must be
    the lowest of the scan too.

    Args:
        hu: a scan (k, j, i) with each value FILL_HU or at least AIR_HU; it is changed.
    Returns: sentences about values that became others.
    """
    notes = []
    for value in _corner_values(hu):
        if value >= HIGHEST_TISSUE_HU:
            count = _mark_high(hu, value)
        elif value >= AIR_TISSUE_HU or not any(((plane > FILL_HU) & (plane < value)).any() for plane in hu):
            count = _mark_possible(hu, value)
        else:
            continue
        if count and value != AIR_HU:
            notes.append(
                f"{count} of {hu.size} voxels outside the field of view, all of {value:g} HU, were taken as fill: {AIR_HU} HU"
            )
    return tuple(notes)


def _corner_values(hu: NDArray[Any]) -> list[float]:
    """Values that a corner has in most planes, but FILL_HU."""
    found = set()
    for j, i in _CORNERS:
        values, counts = np.unique(hu[:, j, i], return_counts=True)
        if counts.max() >= MOST_PLANES * len(hu):
            found.add(float(values[counts.argmax()]))
    return sorted(found - {float(FILL_HU)})


def _mark_high(hu: NDArray[Any], value: float) -> int:
    count = 0
    for plane in hu:
        region = _from_corners(plane == value)
        plane[region] = FILL_HU
        count += int(region.sum())
    return count


def _mark_possible(hu: NDArray[Any], value: float) -> int:
    planes = [plane for plane in hu if any(plane[corner] == value for corner in _CORNERS)]
    outside = np.ones(hu.shape[1:], dtype=bool)
    for plane in planes:
        outside &= plane == value
    outside = _from_corners(outside)
    if not LEAST_SHARE <= outside.mean() < 1 or not _is_field_of_view(~outside):
        return 0
    if not any((~outside & (plane > FILL_HU) & (plane < AIR_TISSUE_HU)).any() for plane in planes):
        return 0
    for plane in planes:
        plane[outside] = FILL_HU
    return int(outside.sum()) * len(planes)


def _from_corners(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is connected to a corner."""
    labels, _ = ndimage.label(mask)
    wanted = {int(labels[corner]) for corner in _CORNERS} - {0}
    return np.isin(labels, list(wanted))


def _is_field_of_view(inside: NDArray[np.bool_]) -> bool:
    """Whether a region is cut off by opposite edges of its plane, or is a rectangle or a circle."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    last_row, last_column = inside.shape[0] - 1, inside.shape[1] - 1
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if (rows[0] == 0 and rows[-1] == last_row) or (columns[0] == 0 and columns[-1] == last_column) or box.all():
        return bool(inside.mean() >= 1 - MOST_SHARE)
    edge = inside & ~ndimage.binary_erosion(inside, border_value=1)
    j, i = np.nonzero(edge)
    terms = np.stack([j, i, np.ones(len(j))], axis=1).astype(np.float64)  # j² + i² = a j + b i + c on a circle
    (a, b, c), *_ = np.linalg.lstsq(terms, np.square(j) + np.square(i), rcond=None)
    radius = np.sqrt(max(0.0, c + (a * a + b * b) / 4))
    return bool(np.abs(np.hypot(j - a / 2, i - b / 2) - radius).max() <= _CIRCLE_VOXELS)
