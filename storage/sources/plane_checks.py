"""Single planes of a scan that cannot be of it: nothing in them, or values that are impossible beside their neighbours'."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from storage.geometry import AIR_HU, FILL_HU
from storage.sources.plausible import AIR_TISSUE_HU, HIGHEST_TISSUE_HU, FillCounts
from storage.sources.source import refuse

# Air, or tissue, does not end between two planes of a patient where this share of the first is of it.
NEIGHBOUR_SHARE = 0.2
# Beside planes with less tissue one of air alone is no surprise: of a phantom, whose air has one value.
EMPTY_SHARE = 0.05
HOLE_SHARE = 0.25  # of the rows of a plane
GAP_HU = 500  # between all values of a plane and all of the next: no two planes of a patient differ so
# Mean difference of a plane's neighbouring voxels. Those of a chest with the sharpest kernel at 1 mm differ by about 100.
NOISE_HU = 500
# Mean difference of a plane from both beside it, and how often that which they have from each other: 0.5 to 0.8 in any chest, as
# distance grows, and above 3 where a plane of 8 mm is upside down, moved aside or another patient's.
FOREIGN_HU, FOREIGN_TIMES = 150, 2.0
_MAX_FOREIGN = 4  # planes in a row
_GRID = 64  # rows and columns of a plane that are compared, about
_NAMED = 8  # planes in a sentence

NameOf = Callable[[int], tuple[str, str | None]]
MayEnd = Callable[[int], bool]


def check_each_plane(
    hu: NDArray[Any], counts: Sequence[FillCounts], name_of: NameOf, may_end: MayEnd
) -> tuple[str, ...]:
    """Refuse a scan some of whose planes are not of it; where all are alike, `plausible.check_plausible` judges the whole.

    A plane is refused that has one value in all voxels, where others have several and there is tissue beside it (a copy with
    holes), unless it is of air at an end of the scan; or in `HOLE_SHARE` more of its last rows than both beside it (a copy that
    was cut short); most of which is above `limits.max_hu`; that has no value within `GAP_HU` of those of the next; that has no air
    beside one with `NEIGHBOUR_SHARE` of it; that has no tissue between planes with that much of it; that is noise alone (bytes in
    the wrong order, or decoded wrongly); or that is unlike both planes beside it, which are like each other.

    Args:
        hu: the scan (k, j, i); planes of air alone at its ends become FILL_HU: nothing was measured there, and it must not ring.
        counts: what `plausible.recognise_fill` found in each plane, in the order of k.
        name_of: plane -> how sentences call it, and the relative path in that, None where there is none.
        may_end: whether a plane of one value is fill, as the first and the last of a tilted scan that was resampled can be.

    Returns: sentences about planes of air at the ends.
    Raises: UnusableSeriesError: "no_content" or "impossible_hu".
    """
    air = _check_constant(counts, name_of, may_end)
    # In planes of air nothing was measured.
    counts = [replace(plane, num_air=0) if k in air else plane for k, plane in enumerate(counts)]
    _check_last_rows(counts, name_of)
    _check_metal(counts, name_of)
    for k, plane in enumerate(counts):
        num_high = plane.num_fill + plane.num_clamped
        if num_high > plane.num_voxels / 2 and plane.lowest_high != plane.highest:
            detail = f"from {plane.lowest:g} to {plane.highest:g}, {num_high} of {plane.num_voxels} voxels above ingest.max_hu"
            _refuse_plane("impossible_hu", k, name_of, detail)
    _check_gaps(counts, name_of)
    for first, last in _runs([plane.num_air == 0 < plane.num_tissue for plane in counts]):
        share = max(_air_share(counts, first - 1), _air_share(counts, last + 1))
        if share >= NEIGHBOUR_SHARE:
            detail = f"nothing below {AIR_TISSUE_HU}, beside a slice with {share:.0%} below it{_more(first, last)}"
            _refuse_plane("impossible_hu", first, name_of, detail)
    for first, last in _runs([plane.num_tissue == 0 < plane.num_air for plane in counts]):
        shares = [1 - _air_share(counts, k) if _measured(counts, k) else 0.0 for k in (first - 1, last + 1)]
        if min(shares) >= NEIGHBOUR_SHARE:
            detail = (
                f"nothing above {AIR_TISSUE_HU}, between slices with {min(shares):.0%} above it{_more(first, last)}"
            )
            _refuse_plane("impossible_hu", first, name_of, detail)
    _check_noise(hu, name_of)
    _check_foreign(hu, [plane.num_constant == 0 for plane in counts], name_of)
    hu[air] = FILL_HU
    return (f"nothing but air in {len(air)} of {len(counts)} slices, at the ends of the scan",) if air else ()


def _check_constant(counts: Sequence[FillCounts], name_of: NameOf, may_end: MayEnd) -> list[int]:
    """Planes of one value that is air, at the ends. Refuses others of one value."""
    constant = [plane.num_constant > 0 for plane in counts]
    whole = sum(counts, FillCounts())
    if all(constant) or not whole.num_air or not whole.num_tissue:  # a mask, say: no chest at all
        return []
    found = [k for k, is_constant in enumerate(constant) if is_constant]
    first, last = constant.index(False), len(constant) - 1 - constant[::-1].index(False)
    air = [k for k in found if not first < k < last and counts[k].num_air == counts[k].num_voxels]
    found = [k for k in found if first < k < last or not (may_end(k) or k in air)]
    for start, end in _runs(constant):
        tissue = max((1 - _air_share(counts, k) for k in (start - 1, end + 1) if _measured(counts, k)), default=1.0)
        if tissue < EMPTY_SHARE:
            found = [k for k in found if not start <= k <= end or counts[k].num_air < counts[k].num_voxels]
    if found:
        numbers = ", ".join(str(k + 1) for k in found[:_NAMED]) + (" …" if len(found) > _NAMED else "")
        detail = f"one value in all its voxels; so in {len(found)} of {len(counts)} slices: number {numbers}"
        _refuse_plane("no_content", found[0], name_of, detail)
    return air


def _check_last_rows(counts: Sequence[FillCounts], name_of: NameOf) -> None:
    """Rows by their number: all planes of a scan have as many."""
    rows = [plane.num_last_rows for plane in counts]
    for k in range(1, len(counts) - 1):
        more = rows[k] - max(rows[k - 1], rows[k + 1])
        if counts[k].num_constant or more <= 0:
            continue
        if more >= HOLE_SHARE * counts[k].num_rows:
            _refuse_plane("no_content", k, name_of, f"one value in its last {rows[k]} of {counts[k].num_rows} rows")


def _check_metal(counts: Sequence[FillCounts], name_of: NameOf) -> None:
    """A plane far denser than those beside it, as with its bytes in the wrong order."""
    shares = [plane.num_metal / plane.num_voxels for plane in counts]
    for k, share in enumerate(shares):
        if share - max(shares[max(k - 1, 0) : k] + shares[k + 1 : k + 2], default=share) >= NEIGHBOUR_SHARE:
            detail = f"{share:.0%} above {HIGHEST_TISSUE_HU}, slices beside it {NEIGHBOUR_SHARE:.0%} less"
            _refuse_plane("impossible_hu", k, name_of, detail)


def _check_gaps(counts: Sequence[FillCounts], name_of: NameOf) -> None:
    """Of the parts between planes of disjoint values the one is named that has the fewest planes like it."""
    varied = [k for k, plane in enumerate(counts) if plane.lowest < plane.highest]
    parts: list[list[int]] = []
    for k in varied:
        if parts and _gap(counts[parts[-1][-1]], counts[k]) <= GAP_HU:
            parts[-1].append(k)
        else:
            parts.append([k])
    if len(parts) < 2:
        return
    ranges = [sum((counts[k] for k in part), FillCounts()) for part in parts]
    like = [sum(len(part) for part, r in zip(parts, ranges, strict=True) if _gap(r, one) <= GAP_HU) for one in ranges]
    odd, plane, beside = parts[like.index(min(like))], ranges[like.index(min(like))], ranges[like.index(max(like))]
    detail = f"from {plane.lowest:g} to {plane.highest:g}, other slices from {beside.lowest:g} to {beside.highest:g}"
    _refuse_plane("impossible_hu", odd[0], name_of, detail + _more(odd[0], odd[-1]))


def _check_noise(hu: NDArray[Any], name_of: NameOf) -> None:
    rows, columns = _every(hu.shape[1]), _every(hu.shape[2])
    left = _as_tissue(hu[:, ::rows, :-1:columns])
    differences = np.abs(_as_tissue(hu[:, ::rows, 1::columns]) - left).mean(axis=(1, 2)) if left.size else np.zeros(1)
    limit = max(NOISE_HU, 2 * float(np.median(differences)))  # where most are like that, the whole is judged
    for first, last in _runs((differences > limit).tolist()):
        detail = f"neighbouring voxels differ by {differences[first]:.0f} HU on average{_more(first, last)}"
        _refuse_plane("impossible_hu", first, name_of, detail)


def _check_foreign(hu: NDArray[Any], varied: Sequence[bool], name_of: NameOf) -> None:
    """Planes between two that are `varied`: air on both sides of something is alike whatever that is."""
    planes = _as_tissue(hu[:, :: _every(hu.shape[1]), :: _every(hu.shape[2])])
    steps = _differences(planes, 1)
    for number in range(1, min(_MAX_FOREIGN, len(planes) - 2) + 1):
        off, alike = np.minimum(steps[:-number], steps[number:]), _differences(planes, number + 1)
        between = np.asarray(varied[: -number - 1]) & np.asarray(varied[number + 1 :])
        for k in np.flatnonzero(between & (off > FOREIGN_HU) & (off > FOREIGN_TIMES * alike)):
            detail = f"{off[k]:.0f} HU off both slices beside it on average, which are {alike[k]:.0f} HU off each other"
            _refuse_plane("impossible_hu", int(k) + 1, name_of, detail + _more(1, number))


def _differences(planes: NDArray[np.float32], distance: int) -> NDArray[np.float32]:
    """Mean differences of planes (k, j, i) so many apart, shape (k - distance,)."""
    found: NDArray[np.float32] = np.abs(planes[distance:] - planes[:-distance]).mean(axis=(1, 2))
    return found


def _as_tissue(hu: NDArray[Any]) -> NDArray[np.float32]:
    """HU with fill as air, and metal as the densest tissue."""
    return np.clip(hu, AIR_HU, HIGHEST_TISSUE_HU).astype(np.float32)


def _every(length: int) -> int:
    return max(1, length // _GRID)


def _gap(one: FillCounts, other: FillCounts) -> float:
    return max(one.lowest - other.highest, other.lowest - one.highest)


def _runs(marks: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First and last index of each row of True."""
    for mark, group in groupby(range(len(marks)), key=marks.__getitem__):
        if mark:
            run = list(group)
            yield run[0], run[-1]


def _measured(counts: Sequence[FillCounts], k: int) -> bool:
    """Whether there is such a plane, and half of it is no fill."""
    if not 0 <= k < len(counts):
        return False
    return counts[k].num_air + counts[k].num_tissue >= counts[k].num_voxels / 2


def _air_share(counts: Sequence[FillCounts], k: int) -> float:
    """Of what was measured in a plane; 0 where there is no such plane, or hardly anything was."""
    if not _measured(counts, k):
        return 0.0
    return counts[k].num_air / (counts[k].num_air + counts[k].num_tissue)


def _more(first: int, last: int) -> str:
    return f"; so in {last - first + 1} slices" if last > first else ""


def _refuse_plane(reason: str, k: int, name_of: NameOf, detail: str) -> NoReturn:
    where, file = name_of(k)
    refuse(reason, where, detail, file)
