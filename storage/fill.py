"""Voxels that were not measured (`FILL_HU`): the nearest tissue takes their place before a spline passes through them.

An interpolating spline swings at an edge: fill of -2000 HU beside tissue would lift the tissue's last voxels by 200 HU.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.geometry import AIR_HU, FILL_HU

REACH = 6  # planes: 0.268**6 of a step of 1000 HU is 0.4 HU there, and less between samples


def has_fill(hu: NDArray[np.generic]) -> bool:
    """Whether any voxel is FILL_HU."""
    return bool(hu.min() == FILL_HU)


class Fill:
    """Where a scan has fill, and its planes with tissue in place of it.

    Attributes:
        mask: True where a voxel is FILL_HU; shape of the scan.
    """

    def __init__(self, hu: NDArray[np.generic]) -> None:
        self._hu = hu
        self.mask: NDArray[np.bool_] = hu == FILL_HU
        # Nearly always every plane has the same field of view: equal masks share one distance transform.
        self._packed = [np.packbits(plane).tobytes() for plane in self.mask]
        self._in_plane = lru_cache(maxsize=2 * REACH + 1)(self._nearest_in_plane)

    def plane(self, index: int) -> NDArray[np.float32]:
        """One plane as float32; fill has the value of the nearest voxel that is none, air if none is within `REACH` planes.

        Distances are counted in voxels.
        """
        plane = self._hu[index].astype(np.float32, order="C")
        targets, sources, distance = self._in_plane(self._packed[index])
        if not targets.size:
            return plane
        values = plane.ravel()[sources] if sources.size else np.full(targets.size, AIR_HU, dtype=np.float32)
        best = distance
        for step in range(1, REACH + 1):
            for other in (index - step, index + step):
                if not 0 <= other < len(self._packed) or self._packed[other] == self._packed[index]:
                    continue
                near_values, near_distance = self._elsewhere(other, targets)
                total = np.hypot(near_distance, step)
                values = np.where(total < best, near_values, values)
                best = np.minimum(total, best)
        plane.ravel()[targets] = values
        return plane

    def _elsewhere(self, index: int, at: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Another plane at given pixels: value of its nearest tissue, and the distance of that within the plane."""
        targets, sources, distance = self._in_plane(self._packed[index])
        origin = np.arange(self.mask[index].size)
        far = np.zeros(origin.size, dtype=np.float32)
        far[targets] = distance
        if sources.size:
            origin[targets] = sources
        return self._hu[index].ravel()[origin[at]].astype(np.float32), far[at]

    def _nearest_in_plane(self, packed: bytes) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """(fill pixels, the nearest pixel of each that is none, its distance) of a mask; no sources where all is fill."""
        rows, columns = self.mask.shape[1:]
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=rows * columns)
        mask = bits.reshape(rows, columns).astype(bool)
        targets = np.flatnonzero(mask)
        if targets.size == mask.size:
            return targets, targets[:0], np.full(targets.size, np.inf, dtype=np.float32)
        if not targets.size:
            return targets, targets, np.zeros(0, dtype=np.float32)
        distance, (row, column) = ndimage.distance_transform_edt(mask, return_indices=True)
        sources = (row * np.intp(columns) + column).ravel()[targets]
        return targets, sources, distance.ravel()[targets].astype(np.float32)
