"""Positions of slices -> one line: even, or uneven within a limit; or the reason why they are neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from storage.sources.source import refuse
from storage.verdicts import counted

SAME_MM = 0.01  # slices closer than this are at one position; positions within this of a line are on it
GAP = 1.5  # of the median distance: more is a gap
MIN_RUN = 3  # so many wide distances in a row, all alike, are another slice distance, not gaps
MAX_GAPS = 1 / 3  # of the distances: where more are wide, no distance is the usual one
_MOST = 0.75  # of the distances
_MIN_ROUNDED = 4  # distances that a coarse unit makes longer (or shorter) than the others, and
_MIN_ROUNDED_SHARE = 0.15  # of all
_ALIKE = 0.1  # of a distance
_EXACT_MM = 1e-4
_FLOAT_SLACK = 1e-6  # share, of comparisons with a limit that a value may meet exactly

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Where the slices of a volume lie.

    Attributes:
        origin_mm: LPS position of the first slice.
        step_mm: LPS step between slices, the mean where they are uneven.
        slice_mm: distance of each slice from the first along the step; None where they are even.
        note: what was assumed; "" where nothing was.
    """

    origin_mm: Array
    step_mm: Array
    slice_mm: tuple[float, ...] | None = None
    note: str = ""


def fit_line(positions: Array, normal: Array, units: Sequence[Sequence[float]], max_jitter: float, where: str) -> Line:
    """Lay slices on a line.

    Positions count as even where each is within `SAME_MM` of evenly spaced points of a line, or within half a unit of the last
    digit that was written and the distances are such as rounding makes (`_is_rounding`). Else, where each is
    within `max_jitter` of the slice distance, the recorded distances are kept.

    Args:
        positions: LPS of each slice, shape (n, 3), n at least 2, sorted along the normal, none twice.
        normal: unit vector.
        units: value of the last digit written of each coordinate, by slice; empty where positions are binary numbers.
        max_jitter: share of the slice distance.
        where: how sentences call the series.

    Raises: UnusableSeriesError: missing_slices, inconsistent_spacing or inconsistent_position.
    """
    depth = positions @ normal
    step = float(np.median(np.diff(depth)))
    off = np.asarray([off_even(positions[:, axis]) for axis in range(3)])
    unit = np.min(np.asarray(units, dtype=float), axis=0) if all(len(one) == 3 for one in units) else np.zeros(3)
    unit = np.maximum(unit, [_common_unit(positions[:, axis]) for axis in range(3)])
    rounded = [_is_rounding(positions[:, axis], float(unit[axis]), step) for axis in range(3)]
    half = np.where(rounded, 0.5 * unit, 0.0) * (1 + _FLOAT_SLACK) + 1e-9
    if (off <= np.maximum(half, SAME_MM)).all():
        note = (
            ""
            if off.max() <= SAME_MM
            else f"positions are rounded to {unit[off > SAME_MM].max():g} mm: the mean slice step is used"
        )
        return _even_line(positions, note)
    off_mm = off_even(depth)
    limit_mm = max_jitter * step * (1 + _FLOAT_SLACK) + 1e-9
    if off_mm > limit_mm:
        _refuse_uneven(depth, step, off_mm, max_jitter, where)
    along = np.polynomial.polynomial.polyfit(depth, positions, 1)  # position = along[0] + along[1] × depth
    aside = float(np.linalg.norm(positions - (along[0] + depth[:, None] * along[1]), axis=1).max())
    if aside > max(limit_mm, float(np.linalg.norm(half)), SAME_MM):
        limit = f"the limit is {max_jitter:g} of the slice distance of {step:.3f} mm"
        refuse("inconsistent_position", where, f"up to {aside:.2f} mm beside a straight line, {limit}")
    beside = f"slices lie up to {aside:.3f} mm beside a straight line: the line is used" if aside > SAME_MM else ""
    if off_mm <= SAME_MM:
        return _even_line(positions, beside)
    from_first = (depth - depth[0]) * float(np.linalg.norm(along[1]))
    origin: Array = along[0] + depth[0] * along[1]
    note = f"slices lie up to {off_mm:.3f} mm ({off_mm / step:.1%}) from even positions: recorded distances are used"
    mean: Array = along[1] * float(depth[-1] - depth[0]) / (len(depth) - 1)
    return Line(origin, mean, tuple(float(v) for v in from_first), "; ".join(filter(None, (note, beside))))


def _common_unit(values: Array) -> float:
    """The largest of 1, 0.1 and 0.01 of which all values are multiples, because "-81.0" may be rounded to 1; 0 where none is."""
    for digits in range(3):
        if np.abs(values - np.round(values, digits)).max() < _FLOAT_SLACK:
            return 10.0**-digits
    return 0.0


def _is_rounding(values: Array, unit: float, step_mm: float) -> bool:
    """Whether coordinates that are within half a unit of a line may be what rounding to that unit made of it.

    Rounding does not move one slice where most distances are equal, which half a unit would allow. A unit of more than half the
    slice distance makes distances that differ by as much as a missing slice: they are rounding where both are frequent.
    """
    gaps = np.diff(values)
    wide = gaps > 0.5 * (gaps.min() + gaps.max())
    alike = float(np.mean(np.abs(gaps - np.median(gaps)) < _EXACT_MM))
    if np.ptp(gaps) > 1.5 * unit and alike > _MOST:
        return False
    if unit <= 0.5 * step_mm:
        return True
    rarer = min(int(wide.sum()), int((~wide).sum()))
    return unit <= step_mm * (1 + _FLOAT_SLACK) and rarer >= max(_MIN_ROUNDED, _MIN_ROUNDED_SHARE * gaps.size)


def _even_line(positions: Array, note: str) -> Line:
    """The line through the first and the last position where all others are on it, else that of least squares."""
    index = np.arange(len(positions))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    origin = positions[0]
    if np.abs(positions - (origin + index[:, None] * step)).max() > _EXACT_MM:
        origin, step = np.polynomial.polynomial.polyfit(index, positions, 1)
    return Line(origin, step, None, note)


def off_even(values: Array) -> float:
    """Largest distance of values from the evenly spaced numbers that are nearest to them (Chebyshev's line over the index)."""
    index = np.arange(len(values))
    gaps = np.diff(values)
    low, high = float(gaps.min()), float(gaps.max())
    for _ in range(80):  # the distance is convex in the step
        third = (high - low) / 3
        if np.ptp(values - (low + third) * index) <= np.ptp(values - (high - third) * index):
            high -= third
        else:
            low += third
    return float(np.ptp(values - 0.5 * (low + high) * index)) / 2


def _refuse_uneven(depth: Array, step: float, off_mm: float, max_jitter: float, where: str) -> NoReturn:
    """Raise the reason that fits distances which are not even."""
    gaps = np.diff(depth)
    wide = np.flatnonzero(gaps > GAP * step)
    uneven = not wide.size or wide.size > MAX_GAPS * gaps.size
    at = int(np.argmax(np.abs(gaps - step))) if uneven else _other_distance(gaps, wide)
    if at is not None:
        detail = (
            f"slice distances from {gaps.min():.3f} to {gaps.max():.3f} mm, after slice {at + 1} of {len(depth)} {gaps[at]:.3f} mm "
            f"where most are {step:.3f} mm; slices lie up to {off_mm:.3f} mm from even positions, the limit is "
            f"ingest.max_jitter = {max_jitter:g} of the distance"
        )
        refuse("inconsistent_spacing", where, detail)
    missing = int(np.rint(gaps[wide] / step).sum()) - wide.size
    detail = (
        f"about {counted(max(missing, 1), 'slice')} missing in {counted(wide.size, 'place')}, the first between slices "
        f"{wide[0] + 1} and {wide[0] + 2} of {len(depth)} ({gaps[wide[0]]:.2f} mm instead of {step:.2f} mm)"
    )
    refuse("missing_slices", where, detail)


def _other_distance(gaps: Array, wide: NDArray[np.intp]) -> int | None:
    """The first of `MIN_RUN` wide gaps in a row that are alike: there the slice distance changes. None without such a run."""
    for start in wide:
        run = gaps[start : start + MIN_RUN]
        in_a_row = len(run) == MIN_RUN and bool(np.isin(np.arange(start, start + MIN_RUN), wide).all())
        if in_a_row and np.ptp(run) <= _ALIKE * run.mean():
            return int(start)
    return None
