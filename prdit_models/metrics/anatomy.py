"""Does a volume look like a chest? Figures of one volume that need no network, and the limits within which a chest lies.

Masks are made on a grid of about 8 mm, whatever the volume's resolution, so that one set of limits serves 32³, 64³ and 128³;
Hounsfield units are read at full resolution. Limits were fixed on real scans and phantoms before any sample was looked at; which
volumes they pass and refuse is in docs/anatomy.md (`python -m tests.bench.anatomy_limits`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

Hu = NDArray[np.float32]
Mask = NDArray[np.bool_]
Figures = dict[str, float | None]

AIR_HU = -500.0  # half way between lung or outside air and soft tissue
TISSUE_HU = -300.0  # above it a voxel of the body is neither lung nor its edge
BONE_HU = 150.0  # at 8 mm, cortical bone is averaged with marrow and muscle
MASK_MM = 8.0
_MIN_OUTSIDE = 0.005  # share of a volume below which the air around the body is too little for a mean


@dataclass(frozen=True)
class Limit:
    """The values of one figure that a chest can have.

    Attributes:
        title: what the figure is, for a table.
        low, high: both included.
        unit: empty for shares and correlations.
        low_per_mm, high_per_mm: where not 0, limits that grow with the voxel edge: they are at least these times it.
        needed: whether a volume fails where the figure is not defined.
    """

    title: str
    low: float
    high: float
    unit: str = ""
    low_per_mm: float = 0.0
    high_per_mm: float = 0.0
    needed: bool = True

    def allows(self, value: float | None, voxel_mm: float) -> bool:
        """Whether a figure of a volume with voxels of `voxel_mm` lies within."""
        if value is None:
            return not self.needed
        low, high = self.bounds(voxel_mm)
        return low <= value <= high

    def bounds(self, voxel_mm: float) -> tuple[float, float]:
        """Lower and upper limit for voxels of `voxel_mm`."""
        low = max(self.low, self.low_per_mm * voxel_mm) if self.low_per_mm else self.low
        return low, max(self.high, self.high_per_mm * voxel_mm) if self.high_per_mm else self.high


LIMITS = {
    "body_share": Limit("body, lungs included, of the box", 0.08, 0.97),
    "body_connected": Limit("largest connected part of all dense voxels", 0.97, 1.0),
    "body_filled": Limit("body between its first and last voxel of a row", 0.75, 1.0),
    "lung_right_l": Limit("lung right of the body's middle", 0.25, 4.5, "l"),
    "lung_left_l": Limit("lung left of the body's middle", 0.25, 4.5, "l"),
    "lung_connected": Limit("two largest connected parts of all air inside", 0.85, 1.0),
    "lung_taper": Limit("lungs narrow upwards (correlation)", 0.05, 1.0),
    "lung_hu": Limit("mean of the lungs", -950.0, -740.0, "HU"),
    "tissue_hu": Limit("median of the tissue", -80.0, 100.0, "HU"),
    "bone_share": Limit("bone, of the body", 0.02, 0.25),
    "outside_hu": Limit("mean of the air around the body", -1024.0, -820.0, "HU", needed=False),
    "grain_hu": Limit("tissue voxel to its neighbours (median)", 0.0, 80.0, "HU", low_per_mm=1.5, high_per_mm=10.0),
}


def anatomy(hu: Hu, voxel_mm: float) -> Figures:
    """The figures of one volume, by the names of `LIMITS`; None where one is not defined (a mean of lungs that are not there).

    Args:
        hu: shape (D, H, W), axes towards superior, posterior, left (patients on their back or front).
        voxel_mm: voxel edge.
    Raises: ValueError: not a volume of finite values, or a voxel edge that is not positive.
    """
    _check(hu, voxel_mm)
    coarse = pooled(hu, voxel_mm)
    dense, outside = coarse >= AIR_HU, outside_air(coarse < AIR_HU)
    largest, connected = largest_part(dense)
    inside = ~dense & ~outside
    body = largest | inside
    fine_body, fine_outside = _finer(body, hu.shape), _finer(ndimage.binary_erosion(outside), hu.shape)
    tissue = fine_body & (hu > TISSUE_HU)
    litres = voxel_mm**3 * hu.size / coarse.size / 1e6
    middle = float(np.nonzero(body)[2].mean()) if body.any() else 0.0
    sides = np.nonzero(inside)[2] < middle
    core = _finer(ndimage.binary_erosion(inside), hu.shape)  # without its edge, which is averaged with tissue
    return {
        "body_share": float(body.mean()),
        "body_connected": connected,
        "body_filled": _filled(body),
        "lung_right_l": float(sides.sum() * litres),
        "lung_left_l": float((~sides).sum() * litres),
        "lung_connected": _two_parts(inside),
        "lung_taper": _taper(inside, body),
        "lung_hu": _mean(hu, core),
        "tissue_hu": float(np.median(hu[tissue])) if tissue.any() else None,
        "bone_share": float((hu[fine_body] > BONE_HU).mean()) if fine_body.any() else None,
        "outside_hu": _mean(hu, fine_outside) if fine_outside.mean() > _MIN_OUTSIDE else None,
        "grain_hu": float(np.median(neighbour_distance(hu)[tissue])) if tissue.any() else None,
    }


def failures(figures: Figures, voxel_mm: float) -> list[str]:
    """Names of the figures outside their limits; empty for a volume that could be a chest."""
    return [name for name, limit in LIMITS.items() if not limit.allows(figures[name], voxel_mm)]


def pooled(hu: Hu, voxel_mm: float) -> Hu:
    """The volume on voxels of at most `MASK_MM`: means of blocks, which overlap by a voxel where their edge is not an integer."""
    sizes = tuple(min(n, math.ceil(n * voxel_mm / MASK_MM - 1e-6)) for n in hu.shape)
    volume = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))[None, None]
    means: Hu = nn.functional.adaptive_avg_pool3d(volume, (sizes[0], sizes[1], sizes[2]))[0, 0].numpy()
    return means


def neighbour_distance(hu: Hu) -> Hu:
    """Absolute difference of every voxel to the mean of its six neighbours, edges repeated; same shape."""
    padded = np.pad(hu, 1, mode="edge")
    inner = slice(1, -1)
    total = np.zeros_like(hu)
    for axis in range(3):
        for side in (slice(2, None), slice(None, -2)):
            total += padded[tuple(side if a == axis else inner for a in range(3))]
    distance: Hu = np.abs(hu - total / 6)
    return distance


def outside_air(air: Mask) -> Mask:
    """Air that reaches the front or the back of the box within its axial slice.

    Not the sides: a box that cuts a wide chest cuts its lungs there. Not through other slices: an open windpipe would connect the
    lungs with the air around the body.
    """
    outside = np.zeros_like(air)
    for found, plane in zip(outside, air, strict=True):
        labels, _ = ndimage.label(plane)
        reached = np.union1d(labels[0], labels[-1])
        found[...] = np.isin(labels, reached[reached > 0])
    return outside


def _parts(mask: Mask) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Connected parts: their number from 1 at every voxel, and their sizes."""
    labels, _ = ndimage.label(mask)
    return labels, np.bincount(labels.ravel())[1:]


def largest_part(mask: Mask) -> tuple[Mask, float]:
    """The largest connected part, and its share of all voxels (0 where there are none)."""
    labels, sizes = _parts(mask)
    if not len(sizes):
        return np.zeros_like(mask), 0.0
    return labels == 1 + int(sizes.argmax()), float(sizes.max() / sizes.sum())


def _two_parts(mask: Mask) -> float | None:
    """Share of the two largest connected parts; None where there are none."""
    _, sizes = _parts(mask)
    return float(np.sort(sizes)[-2:].sum() / sizes.sum()) if len(sizes) else None


def _filled(body: Mask) -> float:
    """Share of body among the voxels between its first and its last one of every row (right to left)."""
    first, last = body.argmax(2), body.shape[2] - 1 - body[:, :, ::-1].argmax(2)
    span = int((last - first + 1)[body.any(2)].sum())
    return float(body.sum() / span) if span else 0.0


def _taper(lung: Mask, body: Mask) -> float | None:
    """Minus the correlation of height and distance from the body's axis over all lung voxels.

    Lungs end in narrow tops near the axis and in wide bases around the diaphragm; upside down, the sign is reversed.
    """
    z, y, x = np.nonzero(lung)
    if len(z) < 2:
        return None
    _, axis_y, axis_x = (float(places.mean()) for places in np.nonzero(body))
    distance = np.hypot(y - axis_y, x - axis_x)
    if z.std() == 0 or distance.std() == 0:
        return None
    return -float(np.corrcoef(z, distance)[0, 1])


def _mean(hu: Hu, mask: Mask) -> float | None:
    return float(hu[mask].mean(dtype=np.float64)) if mask.any() else None


def _finer(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask on the grid of the volume: every voxel takes the value of its coarse voxel."""
    fine = nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=shape, mode="nearest")
    return fine[0, 0].numpy() > 0


def _check(hu: Hu, voxel_mm: float) -> None:
    if hu.ndim != 3 or hu.size == 0:
        raise ValueError(
            f"anatomy got an array of shape {hu.shape}; expected one volume (D, H, W) in Hounsfield units."
        )
    if not voxel_mm > 0:
        raise ValueError(f"voxel_mm is {voxel_mm}; expected a positive edge in millimetres.")
    bad = int((~np.isfinite(hu)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {hu.size} voxels are not finite; a volume with such voxels has no anatomy to measure."
        )
