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
        flat = plane.ravel()
        targets, origin, squared = self._in_plane(self._packed[index])
        values, best = flat[origin[targets]], squared[targets]
        for step in range(1, REACH + 1):
            for other in (index - step, index + step):
                if not 0 <= other < len(self._packed) or self._packed[other] == self._packed[index]:
                    continue
                _, near, near_squared = self._in_plane(self._packed[other])
                total = near_squared[targets] + step**2
                closer = np.flatnonzero(total < best)
                values[closer] = self._hu[other].ravel()[near[targets[closer]]]
                best[closer] = total[closer]
        values[np.isinf(best)] = AIR_HU
        flat[targets] = values
        return plane

    def _nearest_in_plane(self, packed: bytes) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """(fill pixels; for every pixel the nearest that is no fill, and its distance squared, infinite where all is fill)."""
        shape = self.mask.shape[1:]
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=shape[0] * shape[1])
        targets, pixels = np.flatnonzero(bits), np.arange(bits.size)
        if targets.size == bits.size:
            return targets, pixels, np.full(bits.size, np.inf, dtype=np.float32)
        if not targets.size:
            return targets, pixels, np.zeros(bits.size, dtype=np.float32)
        distance, (row, column) = ndimage.distance_transform_edt(bits.reshape(shape), return_indices=True)
        origin = (row * np.intp(shape[1]) + column).ravel()
        return targets, origin, (distance**2).ravel().astype(np.float32)
