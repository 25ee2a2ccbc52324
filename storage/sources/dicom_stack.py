"""Planes of one geometry -> one stack in the order of its slices, each position once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.geometry import Float3
from storage.sources.dicom_geometries import grouped
from storage.sources.dicom_mixed import differing_tags
from storage.sources.dicom_planes import Plane, is_hu
from storage.sources.dicom_positions import SAME_MM, fit_line, off_even
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, pixel_digest, refuse, tilt_deg
from storage.verdicts import counted

_SAME_PLACE = 0.25  # of the slice distance
_MOVED = 0.1  # of the slice distance: so far may a copy of an image be written beside it
SamePixels = Callable[[Plane, Plane], bool]  # whether two planes have the same HU


@dataclass(frozen=True)
class Stack:
    """The images of one volume.

    Attributes:
        planes: in the order of k.
        spacing_mm, origin_mm, direction, part, num_parts, slice_mm, left_out, num_duplicates, completeness, notes: as in
            `storage.sources.source.SourceVolume`.
    """

    planes: tuple[Plane, ...]
    spacing_mm: Float3
    origin_mm: Float3
    direction: NDArray[np.float64]
    part: str = ""
    num_parts: int = 1
    slice_mm: tuple[float, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    num_duplicates: int = 0
    completeness: Literal["complete", "unknown"] = "unknown"
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return (len(self.planes), *self.planes[0].shape)

    def contains(self, plane: Plane) -> bool:
        """Whether a plane of the same orientation lies between the first and the last slice."""
        normal = np.cross(self.direction[:, 0], self.direction[:, 1])
        first, here, last = (float(np.dot(one.position_mm, normal)) for one in (self.planes[0], plane, self.planes[-1]))
        return first - SAME_MM < here < last + SAME_MM

    def volume(self, hu: NDArray[Any], attributes: dict[str, Any], notes: Sequence[str] = ()) -> SourceVolume:
        """The stack with its pixels: HU of its planes in their order; `notes` are those about the pixels."""
        return SourceVolume(
            hu=hu,
            spacing_mm=self.spacing_mm,
            origin_mm=self.origin_mm,
            direction=self.direction,
            attributes=attributes,
            pixel_digest=pixel_digest(hu),
            part=self.part,
            num_parts=self.num_parts,
            slice_mm=self.slice_mm,
            left_out=self.left_out,
            num_duplicates=self.num_duplicates,
            tilt_deg=tilt_deg(self.direction),
            completeness=self.completeness,
            notes=(*self.notes, *notes),
        )


def lay_out(planes: Sequence[Plane], request: ScanRequest, same_pixels: SamePixels, where: str) -> Stack:
    """Sort planes of one shape, orientation and pixel distance along their normal; repeats of a plane count once.

    Raises: UnusableSeriesError: too_few_slices, duplicate_slices, inconsistent_position of two copies of the images, or as
            `storage.sources.dicom_positions.fit_line`.
    """
    row, column, normal = axes(planes)
    num_all = len(planes)
    planes, copies_note = _without_moved_copies(planes, normal, same_pixels, where)
    positions = np.asarray([plane.position_mm for plane in planes])
    order = sorted(range(len(planes)), key=lambda k: (float(positions[k] @ normal), planes[k].name))
    kept: list[int] = []
    num_duplicates = num_all - len(planes)
    taken: list[tuple[float, Plane, Plane]] = []
    for k in order:
        depth = float(positions[k] @ normal)
        here = [other for other in kept[-1:] if depth - float(positions[other] @ normal) < SAME_MM]
        if not here:
            kept.append(k)
        elif is_repeat(planes[k], planes[here[0]], same_pixels):
            num_duplicates += 1
        else:
            taken.append((depth, planes[k], planes[here[0]]))
    if taken:
        depth, one, other = taken[0]
        detail = f"{counted(len(taken), 'slice')} where another is, the first near {depth:.1f} mm along the normal"
        if one.instance_uid and one.instance_uid == other.instance_uid:
            detail += ", with one SOPInstanceUID: one of two copies is damaged"
        elif names := differing_tags(one.values, other.values):
            detail += f", differing in {', '.join(names)}"
        refuse("duplicate_slices", where, detail)
    least = max(2, request.limits.min_slices)
    if len(kept) < least:
        refuse(
            "too_few_slices", where, f"{counted(len(kept), 'slice')}, at least {least} are needed (ingest.min_slices)"
        )
    chosen = tuple(planes[k] for k in kept)
    units = [plane.position_unit_mm for plane in chosen]
    line = fit_line(positions[kept], normal, units, request.limits.max_jitter, where)
    step_mm = float(np.linalg.norm(line.step_mm))
    rows_mm, columns_mm = planes[0].pixel_mm
    origin = tuple(float(v) for v in line.origin_mm)
    return Stack(
        planes=chosen,
        spacing_mm=(columns_mm, rows_mm, step_mm),
        origin_mm=(origin[0], origin[1], origin[2]),
        direction=np.stack([row, column, line.step_mm / step_mm], axis=1),
        slice_mm=line.slice_mm,
        num_duplicates=num_duplicates,
        notes=(*filter(None, (line.note, copies_note)), *_rescale_note(chosen)),
    )


def _without_moved_copies(
    planes: Sequence[Plane], normal: NDArray[np.float64], same_pixels: SamePixels, where: str
) -> tuple[Sequence[Plane], str]:
    """Planes without second copies of the same images (SOPInstanceUID, HU) that were written at other places, and a sentence.

    Tools round or shift positions. What stays is most even, or has more digits.

    Raises: UnusableSeriesError: inconsistent_position, where most images have a copy farther away.
    """
    by_uid = [
        sorted(group, key=lambda plane: plane.name) for group in grouped(planes, lambda plane: plane.instance_uid)
    ]
    most = max(map(len, by_uid))
    if most == 1 or len(by_uid) < 2 or not all(plane.instance_uid for plane in planes):
        return planes, ""
    choices = [[group[min(rank, len(group) - 1)] for group in by_uid] for rank in range(most)]
    kept = min(choices, key=lambda choice: (_unevenness(choice, normal), _unit_mm(choice)))
    first = {plane.instance_uid: plane for plane in kept}
    step_mm = float(np.median(np.diff(depths(kept, normal))))
    off_mm: dict[str, float] = {}
    for plane in planes:
        distance = float(np.linalg.norm(np.subtract(plane.position_mm, first[plane.instance_uid].position_mm)))
        if distance >= SAME_MM and same_pixels(plane, first[plane.instance_uid]):
            off_mm[plane.name] = distance
    if not off_mm:
        return planes, ""
    farthest = max(off_mm.values())
    found = f"{len(off_mm)} images are there again (SOPInstanceUID), up to {farthest:.3f} mm away"
    if farthest <= _MOVED * step_mm:
        return [plane for plane in planes if plane.name not in off_mm], f"{found}: they count once"
    if len(off_mm) >= 0.5 * len(first):
        refuse("inconsistent_position", where, f"{found}: two copies of the series")
    return planes, ""


def _unevenness(planes: Sequence[Plane], normal: NDArray[np.float64]) -> float:
    """How far planes are from even places, mm to three decimals."""
    return round(off_even(depths(planes, normal)), 3)


def _unit_mm(planes: Sequence[Plane]) -> float:
    """The last digit in which positions are written."""
    return min(max(plane.position_unit_mm, default=0.0) for plane in planes)


def depths(planes: Sequence[Plane], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions of planes along a normal, sorted."""
    return np.sort(np.asarray([plane.position_mm for plane in planes]) @ normal)


def axes(planes: Sequence[Plane]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, along a column and their normal: of the orientation, the mean where rounding made it differ."""
    orientations = np.asarray([plane.orientation for plane in planes])
    mean = orientations[0] if np.ptp(orientations, axis=0).max() == 0 else orientations.mean(axis=0)
    row, column = mean[:3] / np.linalg.norm(mean[:3]), mean[3:] / np.linalg.norm(mean[3:])
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def continues(stack: Stack, plane: Plane) -> bool:
    """Whether a plane, of whichever geometry, lies where the slice before the first or after the last of a stack would be."""
    return is_next(stack, plane) or _is_near(stack, plane, stack.planes[0], -1)


def is_next(stack: Stack, plane: Plane) -> bool:
    """Whether a plane lies where the slice after the last of a stack would be."""
    return _is_near(stack, plane, stack.planes[-1], 1)


def _is_near(stack: Stack, plane: Plane, end: Plane, num_steps: int) -> bool:
    """Whether a plane lies so many slice distances from another of the stack."""
    if len(plane.position_mm) != 3:
        return False
    place = end.position_mm + num_steps * stack.direction[:, 2] * stack.spacing_mm[2]
    return bool(np.linalg.norm(place - plane.position_mm) < _SAME_PLACE * stack.spacing_mm[2])


def counts_on(stack: Stack, plane: Plane) -> bool:
    """Whether a plane lies beyond the end of a stack as far as its InstanceNumber is from the numbers there, gap included."""
    step = stack.direction[:, 2] * stack.spacing_mm[2]
    for end, inner, outwards in ((stack.planes[0], stack.planes[1], -step), (stack.planes[-1], stack.planes[-2], step)):
        if plane.number is None or end.number is None or inner.number is None:
            return False
        distance = float(np.subtract(plane.position_mm, end.position_mm) @ outwards) / stack.spacing_mm[2] ** 2
        if distance > _SAME_PLACE and abs((plane.number - end.number) * (end.number - inner.number) - distance) < 0.5:
            return True
    return False


def is_same_place(one: Plane, other: Plane) -> bool:
    """Whether two planes have a position, and the same."""
    placed = len(one.position_mm) == len(other.position_mm) == 3
    return placed and float(np.linalg.norm(np.subtract(one.position_mm, other.position_mm))) < SAME_MM


def is_repeat(one: Plane, other: Plane, same_pixels: SamePixels) -> bool:
    """Whether two planes of one geometry are the same image: place and HU."""
    return is_same_place(one, other) and same_pixels(one, other)


def _rescale_note(planes: Sequence[Plane]) -> list[str]:
    num = sum(not is_hu(plane.rescale_type) for plane in planes)
    which = "" if num == len(planes) else f" in {num} of {len(planes)} images"
    return [f"no RescaleType{which}: values are taken as HU"] if num else []
