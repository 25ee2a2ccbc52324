"""Planes of one geometry -> one stack in the order of its slices, each position once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.geometry import Float3
from storage.sources.dicom_planes import Plane, is_hu
from storage.sources.dicom_positions import SAME_MM, fit_line
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, pixel_digest, refuse, tilt_deg

SamePixels = Callable[[Plane, Plane], bool]


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

    Raises: UnusableSeriesError: too_few_slices, duplicate_slices, or as `storage.sources.dicom_positions.fit_line`.
    """
    row, column, normal = axes(planes)
    positions = np.asarray([plane.position_mm for plane in planes])
    order = sorted(range(len(planes)), key=lambda k: (float(positions[k] @ normal), planes[k].name))
    kept: list[int] = []
    num_duplicates, taken = 0, []
    for k in order:
        depth = float(positions[k] @ normal)
        here = [other for other in kept[-1:] if depth - float(positions[other] @ normal) < SAME_MM]
        if not here:
            kept.append(k)
        elif is_repeat(planes[k], planes[here[0]], same_pixels):
            num_duplicates += 1
        else:
            taken.append(depth)
    if taken:
        detail = f"{len(taken)} at places that are taken, the first near {taken[0]:.1f} mm along the normal"
        refuse("duplicate_slices", where, detail)
    least = max(2, request.limits.min_slices)
    if len(kept) < least:
        refuse("too_few_slices", where, f"{len(kept)} slice(s), at least {least} are needed (ingest.min_slices)")
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
        notes=(*([line.note] if line.note else []), *_rescale_note(chosen)),
    )


def axes(planes: Sequence[Plane]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, along a column and their normal: of the orientation, the mean where rounding made it differ."""
    orientations = np.asarray([plane.orientation for plane in planes])
    mean = orientations[0] if np.ptp(orientations, axis=0).max() == 0 else orientations.mean(axis=0)
    row, column = mean[:3] / np.linalg.norm(mean[:3]), mean[3:] / np.linalg.norm(mean[3:])
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def is_repeat(one: Plane, other: Plane, same_pixels: SamePixels) -> bool:
    """Whether two planes of one geometry are the same image: place, rescale values, pixels."""
    off = np.subtract(one.position_mm, other.position_mm)
    if float(np.linalg.norm(off)) >= SAME_MM or (one.slope, one.intercept) != (other.slope, other.intercept):
        return False
    return same_pixels(one, other)


def _rescale_note(planes: Sequence[Plane]) -> list[str]:
    num = sum(not is_hu(plane.rescale_type) for plane in planes)
    which = "" if num == len(planes) else f" in {num} of {len(planes)} images"
    return [f"no RescaleType{which}: values are taken as HU"] if num else []
