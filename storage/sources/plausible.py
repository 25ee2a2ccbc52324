"""What can be the HU of a chest CT: fill recognised while a scan is read, and one check of every volume of any format.

A loader passes each plane of HU through `recognise_fill`, adds the counts up, and asks `fill_notes` at the end. Every volume then
goes through `check_plausible` before anything of it is stored.
"""

import operator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.geometry import AIR_HU, FILL_HU
from storage.sources.source import FARTHEST_MM, Limits, SourceVolume, refuse

AIR_TISSUE_HU = -500  # a chest has air below and tissue above: an image without one of them is not in HU
HIGHEST_TISSUE_HU = 3071  # of 12 bits: metal is above, or saturates there
METAL_SHARE = 0.05  # of a scan
LOWEST_NOISE_HU = -1524  # noise of air goes below AIR_HU, but not so far
MOST_FILLS = 8  # values of a plane below that
BELOW_SHARE = 0.02  # of a scan: more of it that low is no HU, as where an intercept was applied twice
WINDOW_HU = -900  # a chest has air below
WINDOW_SHARE = 0.05  # of a scan: where so much of it has its lowest value, above that, lower ones were cut off
MASKED_SHARE = 0.75  # of the edges of its planes: noise and anatomy never give so many voxels one value
REGION_SHARE = 0.01  # of a plane: a connected region of this size is no metal
_LENGTH_TOLERANCE_MM = 1e-3  # of distances, which are rounded numbers
_EXTENT_TOLERANCE_MM = 1.0  # or a voxel, if that is less: 512 × 0.39 mm is a field of view of 200 mm


@dataclass(frozen=True)
class FillCounts:
    """What `recognise_fill` found, of one plane or (added up) of a scan.

    Attributes:
        num_voxels: of the planes.
        num_nan: no finite number.
        num_fill: above `limits.max_hu` and taken as fill.
        num_clamped: above `limits.max_hu` and set to it.
        lowest, highest: finite values of at least AIR_HU; inf and -inf where there is none.
        lowest_high: lowest value above the limit; inf where there is none.
        num_air, num_tissue: below AIR_TISSUE_HU and at least that, of what is no fill.
        num_metal: above HIGHEST_TISSUE_HU, of what is no fill.
        num_below: below LOWEST_NOISE_HU, in planes where these are of more than MOST_FILLS values, as fill is not.
        num_constant: in planes with one value in all voxels.
        num_rows, num_last_rows: of the planes, and those at the end of them that have one value.
    """

    num_voxels: int = 0
    num_nan: int = 0
    num_fill: int = 0
    num_clamped: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    lowest_high: float = np.inf
    num_air: int = 0
    num_tissue: int = 0
    num_metal: int = 0
    num_below: int = 0
    num_constant: int = 0
    num_rows: int = 0
    num_last_rows: int = 0

    def __add__(self, other: "FillCounts") -> "FillCounts":
        least, most = ("lowest", "lowest_high"), ("highest",)
        together: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            add = min if name in least else max if name in most else operator.add
            together[name] = add(getattr(self, name), getattr(other, name))
        return FillCounts(**together)


def recognise_fill(hu: NDArray[Any], limits: Limits) -> tuple[NDArray[Any], FillCounts]:
    """Take as fill what CT cannot have measured.

    Values below AIR_HU and values that are no finite number become FILL_HU. Values above `limits.max_hu` become FILL_HU where they
    are a region: connected voxels that touch the border of the plane, or are at least `REGION_SHARE` of it; and all voxels with
    the value of a region that has only one. The others, metal, become `limits.max_hu`.

    Args:
        hu: one plane (j, i): float, or integers of a type that holds FILL_HU (int16, int32, int64). Voxels that are declared
            padding may be FILL_HU already. It is not changed.
        limits: for `max_hu`.
    Returns: a plane of the same type with each value FILL_HU or in [AIR_HU, max_hu], and what was found in this one. The plane is
        `hu` itself where there is nothing to replace.
    """
    low, high = hu.min(), hu.max()
    out, found = _replace(hu, limits, low, high)
    num_tissue = int((out >= AIR_TISSUE_HU).sum())
    num_fill = 0 if low >= AIR_HU and out is hu else int((out == FILL_HU).sum())
    num_metal = int((out > HIGHEST_TISSUE_HU).sum()) if found.highest > HIGHEST_TISSUE_HU else 0
    return out, replace(
        found,
        num_air=hu.size - num_tissue - num_fill,
        num_tissue=num_tissue,
        num_metal=num_metal,
        num_below=_num_below(hu) if low < LOWEST_NOISE_HU else 0,
        num_constant=hu.size if low == high else 0,
        num_rows=len(hu),
        num_last_rows=_last_rows(hu),
    )


def _num_below(hu: NDArray[Any]) -> int:
    low = hu[hu < LOWEST_NOISE_HU]
    return low.size if len(np.unique(low)) > MOST_FILLS else 0


def _last_rows(hu: NDArray[Any]) -> int:
    """How many rows at the end of a plane have one value."""
    if hu[-1].min() != hu[-1].max():
        return 0
    others = (hu != hu[-1, -1]).any(axis=1)
    return len(hu) - 1 - int(np.flatnonzero(others)[-1]) if others.any() else len(hu)


def _replace(hu: NDArray[Any], limits: Limits, low: Any, high: Any) -> tuple[NDArray[Any], FillCounts]:
    ceiling = highest_hu(limits)
    if low >= AIR_HU and high <= ceiling:  # false where there is a NaN
        return hu, FillCounts(hu.size, lowest=float(low), highest=float(high))
    finite = np.isfinite(hu) if hu.dtype.kind == "f" else np.ones(hu.shape, dtype=bool)
    num_nan = hu.size - int(finite.sum())
    with np.errstate(invalid="ignore"):
        measured = finite & (hu >= AIR_HU)
        above = finite & (hu > ceiling)
    out = hu.copy()
    out[~measured] = FILL_HU
    kept = hu[measured]
    lowest, highest = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    if not above.any():
        return out, FillCounts(hu.size, num_nan, lowest=lowest, highest=highest)
    fill = _regions(hu, above)
    out[fill] = FILL_HU
    metal = above & ~fill
    out[metal] = ceiling
    lowest_high = float(hu[above].min())
    return out, FillCounts(hu.size, num_nan, int(fill.sum()), int(metal.sum()), lowest, highest, lowest_high)


def fill_notes(counts: FillCounts, limits: Limits, where: str) -> tuple[str, ...]:
    """Sentences about what `recognise_fill` replaced in a scan.

    Raises: UnusableSeriesError: "not_finite" unless `limits.nan` is "air"; "impossible_hu" where the values above the limit are
        the scan itself: nothing else is air, or they are most of it and not one value.
    """
    total, limit = counts.num_voxels, f"ingest.max_hu = {highest_hu(limits)}"
    if counts.num_nan and limits.nan == "refuse":
        refuse("not_finite", where, f"{counts.num_nan} of {total}")
    if counts.num_below > BELOW_SHARE * total:
        detail = f"{counts.num_below} of {total} voxels of many values below {LOWEST_NOISE_HU}"
        refuse("impossible_hu", where, detail)
    num_high = counts.num_fill + counts.num_clamped
    if num_high:
        varied = counts.lowest_high != counts.highest
        if counts.lowest >= AIR_TISSUE_HU or (varied and num_high > total / 2):
            detail = f"from {counts.lowest:g} to {counts.highest:g}, {num_high} of {total} voxels above {limit}"
            refuse("impossible_hu", where, detail)
    notes = []
    if counts.num_nan:
        notes.append(f"{counts.num_nan} of {total} voxels are not finite and became {AIR_HU} HU")
    if counts.num_fill:
        notes.append(f"{counts.num_fill} of {total} voxels in regions above {limit} were taken as fill: {AIR_HU} HU")
    if counts.num_clamped:
        notes.append(f"{counts.num_clamped} of {total} voxels above {limit} were set to it")
    return tuple(notes)


def highest_hu(limits: Limits) -> int:
    """The largest HU that is kept: `limits.max_hu`, whole and within int16."""
    return int(min(limits.max_hu, np.iinfo(np.int16).max))


def edges(array: NDArray[Any]) -> NDArray[Any]:
    """The values on the four edges of a plane (j, i), or of all planes of a scan (k, j, i); those in corners twice."""
    parts = (array[..., 0, :], array[..., -1, :], array[..., 0], array[..., -1])
    return np.concatenate([part.ravel() for part in parts])


def _regions(hu: NDArray[Any], above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which voxels above the limit are fill, see `recognise_fill`."""
    values = hu[above]
    if edges(above).any() and values.min() == values.max():
        return above  # corners of one value: what is left out below takes most of the time
    labels, count = ndimage.label(above)
    of_value = labels[above]
    sizes = np.bincount(of_value, minlength=count + 1)
    lowest, highest = np.full(count + 1, np.inf), np.full(count + 1, -np.inf)
    np.minimum.at(lowest, of_value, values)
    np.maximum.at(highest, of_value, values)
    border = np.zeros(count + 1, dtype=bool)
    border[edges(labels)] = True
    is_fill = border | (sizes >= REGION_SHARE * hu.size)
    one_value = (lowest == highest) & is_fill
    filled: NDArray[np.bool_] = np.zeros(above.shape, dtype=bool)
    filled[above] = is_fill[of_value] | np.isin(values, np.unique(lowest[one_value]))
    return filled


def check_plausible(found: SourceVolume, limits: Limits, where: str) -> None:
    """Refuse a volume that is no CT of a whole chest, or lies nowhere, whichever format it came from.

    Args:
        found: a volume as a loader gives it.
        limits: least extents, largest slice distance.
        where: how sentences call the volume.

    Raises: UnusableSeriesError: "bad_number", "too_short", "too_narrow", "thick_slices", "no_content" or "not_hu".
    """
    _check_extent(found, limits, where)
    _check_values(found.hu, where)
    _check_edges(found.hu, where)


def extent_mm(found: SourceVolume) -> NDArray[np.float64]:
    """How long a scan is along x, y and z of the patient, faces included: the line through its middle, inside its voxels.

    Unlike the box around it, this does not make a thin slab long because it is tilted.
    """
    steps = found.direction * np.asarray(found.spacing_mm)
    shape = np.asarray(found.hu.shape[::-1], dtype=np.float64)
    voxels_per_mm = np.abs(np.linalg.inv(steps))  # row: index axis, column: world axis
    with np.errstate(divide="ignore"):
        length: NDArray[np.float64] = (shape[:, None] / voxels_per_mm).min(axis=0)
    return length


def _check_extent(found: SourceVolume, limits: Limits, where: str) -> None:
    farthest = max(found.origin_mm, key=abs)
    if abs(farthest) > FARTHEST_MM:
        refuse("bad_number", where, f"a position of {farthest:g} mm instead of at most {FARTHEST_MM:g}")
    thickest = max(found.spacing_mm)
    if thickest > limits.max_slice_mm + _LENGTH_TOLERANCE_MM:
        refuse("thick_slices", where, f"voxels {thickest:.4g} mm apart, ingest.max_slice_mm = {limits.max_slice_mm:g}")
    width, depth, length = extent_mm(found)
    tolerance = max(_LENGTH_TOLERANCE_MM, min(_EXTENT_TOLERANCE_MM, *found.spacing_mm))
    if length < limits.min_length_mm - tolerance:
        detail = f"{length:.1f} mm long from head to foot, ingest.min_length_mm = {limits.min_length_mm:g}"
        refuse("too_short", where, detail)
    if min(width, depth) < limits.min_width_mm - tolerance:
        detail = f"{width:.1f} mm wide and {depth:.1f} mm deep, ingest.min_width_mm = {limits.min_width_mm:g}"
        refuse("too_narrow", where, detail)


def _check_values(hu: NDArray[Any], where: str) -> None:
    """Planes from the middle outwards: a chest has air and tissue in the first that is looked at."""
    lowest, highest = np.inf, -np.inf
    for k in sorted(range(len(hu)), key=lambda k: abs(2 * k - len(hu))):
        plane = hu[k]
        measured = plane[plane != FILL_HU]
        if measured.size:
            lowest, highest = min(lowest, float(measured.min())), max(highest, float(measured.max()))
        if lowest < AIR_TISSUE_HU < highest:
            _check_metal(hu, where)
            if lowest > WINDOW_HU:
                _check_window(hu, where)
            return
    values = f"values from {lowest:g} to {highest:g}"
    if highest < lowest:
        refuse("no_content", where, "all its voxels are fill")
    if lowest >= AIR_TISSUE_HU:
        refuse("not_hu", where, f"{values}: no air, nothing below {AIR_TISSUE_HU}")
    if lowest == highest:
        refuse("no_content", where, f"all its voxels are {lowest:g} HU")
    refuse("not_hu", where, f"{values}: no tissue, nothing above {AIR_TISSUE_HU}")


def _check_edges(hu: NDArray[Any], where: str) -> None:
    """The edges of the planes show air, or tissue of many values: one value that is no air is what a mask or a window left."""
    all_edges = edges(hu)
    measured = all_edges[all_edges != FILL_HU]
    values, counts = np.unique(measured[measured >= AIR_TISSUE_HU], return_counts=True)
    if counts.size and counts.max() > MASKED_SHARE * measured.size and measured.size > MASKED_SHARE * all_edges.size:
        share, value = counts.max() / measured.size, values[counts.argmax()]
        refuse("not_hu", where, f"{share:.0%} of the edges of its planes are {value:g} HU, where a scan shows air")


def _check_metal(hu: NDArray[Any], where: str) -> None:
    if hu.max() <= HIGHEST_TISSUE_HU:
        return
    num_metal, num_measured = int((hu > HIGHEST_TISSUE_HU).sum()), int((hu != FILL_HU).sum())
    if num_metal > METAL_SHARE * num_measured:
        detail = f"{num_metal} of {num_measured} voxels above {HIGHEST_TISSUE_HU}: there is less metal in a patient"
        refuse("impossible_hu", where, detail)


def _check_window(hu: NDArray[Any], where: str) -> None:
    measured = hu[hu != FILL_HU]
    lowest = measured.min()
    share = float((measured == lowest).mean()) if lowest > WINDOW_HU else 0.0
    if share > WINDOW_SHARE:
        refuse(
            "not_hu", where, f"{share:.0%} of its voxels have the lowest value, {lowest:g}: what is lower was cut off"
        )
