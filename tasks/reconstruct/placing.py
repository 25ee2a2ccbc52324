"""A scan brought to the places at which an operator measures: box means, never interpolation of what the scan has not resolved."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prdit_models.inverse.operator import MeasurementOperator
from storage.errors import InputError
from storage.geometry import AIR_HU, Float3
from storage.sources.source import SourceVolume
from tasks.model.upright import Upright, filled_shares, upright

SAME = 0.01  # relative difference of distances that count as equal
_MOST_OUTSIDE = 0.5  # share of a measurement that may lie outside of the scan


@dataclass(frozen=True)
class Places:
    """Where an operator measures along one axis of a volume.

    Attributes:
        first_mm: centre of the first sample, from the centre of the first voxel.
        distance_mm: between samples.
        count: of samples.
        fixed: whether samples have a width that is not their distance: then a scan must have them as they are.
    """

    first_mm: float
    distance_mm: float
    count: int
    fixed: bool = False


@dataclass(frozen=True)
class Placed:
    """A scan as a measurement.

    Attributes:
        values: float32 HU, shape (z, y, x) of the measurement.
        origin_mm: LPS position (x, y, z) of the centre of the first voxel of the volume that was measured.
        notes: sentences about what was assumed.
    """

    values: NDArray[np.float32]
    origin_mm: Float3
    notes: tuple[str, ...]


def kept_of(operator: MeasurementOperator) -> NDArray[np.bool_] | None:
    """Which voxels an operator keeps as they are, shape (z, y, x), where that is all it does (a mask); else None."""
    mask = getattr(operator, "mask", None)
    return None if mask is None else np.asarray(mask)


def places_of(operator: MeasurementOperator) -> tuple[Places, Places, Places]:
    """Where an operator measures along z, y and x.

    Raises: InputError: it does not measure a volume in HU.
    """
    grid = operator.grid
    shape = operator.measurement_shape() if kept_of(operator) is None else grid.shape
    if operator.unit != "HU" or len(shape) != 3:
        raise InputError(
            f"The operator {operator.name!r} measures {' × '.join(map(str, shape))} values in {operator.unit}; a CT scan has "
            "voxels in HU. Give projections in mm of water as .npy, or an operator that measures a volume (downsampling, "
            "thick-slices, mask, blur)."
        )
    found = []
    for axis, (n, voxels, spacing) in enumerate(zip(shape, grid.shape, reversed(grid.spacing_mm), strict=True)):
        distance = voxels * spacing / n
        found.append(Places((distance - spacing) / 2, distance, n))
        centres = getattr(operator, "centres_mm", None)
        if axis == 0 and centres is not None:
            step = centres[1] - centres[0] if len(centres) > 1 else float(getattr(operator, "thickness_mm", distance))
            found[0] = Places(float(centres[0]), float(step), n, fixed=True)
    z, y, x = found
    return z, y, x


def place(scan: SourceVolume, operator: MeasurementOperator) -> Placed:
    """Put the middle of a model's box into the middle of a scan, and take the scan's values where the operator measures.

    Along an axis where both have the same distance the box is moved by less than a voxel, so that samples are taken as they are.
    Where the scan is finer, a sample is the mean of the scan over its width.

    Raises: InputError: the scan is coarser than what the operator measures, oblique, or shows too little of what is measured.
    """
    seen = _upright(scan)
    hu, first, spacing = seen.values, seen.first_mm, seen.spacing_mm
    values, origin, covered = np.maximum(hu, AIR_HU).astype(np.float32), [], []
    for axis, (there, name) in enumerate(zip(places_of(operator), "zyx", strict=True)):
        weights, start = _weights(there, (first[axis], spacing[axis], values.shape[axis]), name, operator)
        moved = np.tensordot(weights, np.moveaxis(values, axis, 0) - AIR_HU, axes=1) + AIR_HU
        values = np.moveaxis(moved, 0, axis)
        origin.append(start)
        covered.append(weights.sum(axis=1))
    z, y, x = origin
    notes = _outside(operator, covered)
    return Placed(np.ascontiguousarray(values, dtype=np.float32), (x, y, z), (*scan.notes, *notes))


def _outside(operator: MeasurementOperator, covered: list[NDArray[np.float64]]) -> tuple[str, ...]:
    """A note where the scan does not show all that the operator measures.

    Args:
        operator: of the measurement.
        covered: share of each sample that lies in the scan, along z, y and x.
    Raises: InputError: it shows less than half.
    """
    kept, share = kept_of(operator), np.einsum("i,j,k->ijk", *covered)
    outside = 1.0 - float(share.mean() if kept is None else share[kept].mean())
    if outside > _MOST_OUTSIDE:
        raise InputError(
            f"The scan covers {1 - outside:.0%} of what {operator.name!r} measures in the model's box of "
            f"{' × '.join(f'{mm:g}' for mm in operator.grid.extent_mm)} mm (x, y, z); at least {1 - _MOST_OUTSIDE:.0%} are "
            "needed. Use a model of a smaller view, or the operator mask for what the scan does not show."
        )
    if outside <= 1e-6:
        return ()
    remedy = (
        "; to have them filled, use the operator mask"
        if kept is None
        else "; make the mask smaller to have them filled"
    )
    return (f"{outside:.1%} of what is measured lie outside of the scan and count as air, as in a store{remedy}",)


def _weights(
    there: Places, here: tuple[float, float, int], name: str, operator: MeasurementOperator
) -> tuple[NDArray[np.float64], float]:
    """Weights (samples, planes of the scan) along one axis, and the position of the box's first voxel.

    Args:
        there: where the operator measures.
        here: (position of the first plane, distance, planes) of the scan.
        name: of the axis.
        operator: for messages.
    """
    first, spacing, count = here
    same = abs(spacing - there.distance_mm) <= SAME * there.distance_mm
    if not same and (there.fixed or spacing > there.distance_mm):
        raise InputError(
            f"The scan has a voxel every {spacing:.4g} mm along {name}; {operator.name!r} measures every "
            f"{there.distance_mm:.4g} mm. "
            + (
                f"Set thickness_mm (and distance_mm) to what the scan has: distance_mm: {spacing:.4g}."
                if there.fixed
                else f"A scan cannot be finer than it is: use an operator whose samples are {spacing:.4g} mm or more apart "
                "(downsampling with a larger factor, thick-slices)."
            )
        )
    middle = first + (count - 1) * spacing / 2
    start = middle - (there.count - 1) * there.distance_mm / 2  # of the first sample
    if same:
        shift = round((start - first) / spacing)
        weights = np.zeros((there.count, count))
        rows = np.arange(there.count)
        inside = (rows + shift >= 0) & (rows + shift < count)
        weights[rows[inside], rows[inside] + shift] = 1.0
        return weights, first + shift * spacing - there.first_mm
    low = start + (np.arange(there.count) - 0.5) * there.distance_mm
    return filled_shares(low, there.distance_mm, first, spacing, count), start - there.first_mm


def _upright(scan: SourceVolume) -> Upright:
    """HU with ascending axes. Raises: InputError: its axes do not run along the patient's, or its planes are uneven."""
    found = upright(scan.hu, scan.spacing_mm, scan.origin_mm, scan.direction)
    if found is None or scan.slice_mm is not None:
        raise InputError(
            "The scan is oblique, tilted, or its slices are unevenly spaced; what an operator measures lies along the patient's "
            "axes. `prdit ingest` resamples such scans into a store: reconstruct from there (--volume)."
        )
    return found
