"""Scans of one slice each that are together one scan: files whose exporter gave every slice a UID of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SCANS = 3  # fewer positions are always on a line
_OFF_LINE_MM = 0.5
_EVEN = 0.1  # of the median distance
_SAME_MM = 0.01


@dataclass(frozen=True)
class SingleSlice:
    """A scan of one slice.

    Attributes:
        space: hash of what slices of one scan share (patient, study, frame of reference, kernel, geometry); in memory only.
        position_mm: LPS centre of its first pixel.
    """

    space: str
    position_mm: tuple[float, ...]


def one_scan_each(found: Mapping[str, SingleSlice]) -> dict[str, int]:
    """Of scans of one slice those that are slices of one scan: how many there are of it, by the scan's id.

    Such slices share a space and lie on a line, none twice, most of them evenly; at least `MIN_SCANS`.
    """
    spaces: dict[str, list[str]] = {}
    for scan_id, single in found.items():
        spaces.setdefault(single.space, []).append(scan_id)
    sizes: dict[str, int] = {}
    for scans in spaces.values():
        if len(scans) >= MIN_SCANS and _on_a_line(np.asarray([found[scan].position_mm for scan in scans], dtype=float)):
            sizes |= dict.fromkeys(scans, len(scans))
    return sizes


def _on_a_line(positions: NDArray[np.float64]) -> bool:
    from_middle = positions - positions.mean(axis=0)
    along = np.linalg.svd(from_middle, full_matrices=False)[2][0]
    depth = from_middle @ along
    gaps = np.diff(np.sort(depth))
    aside = np.linalg.norm(from_middle - depth[:, None] * along, axis=1).max()
    even = np.abs(gaps - np.median(gaps)) <= _EVEN * np.median(gaps)
    return bool(aside <= _OFF_LINE_MM and gaps.min() >= _SAME_MM and even.mean() >= 0.5)
