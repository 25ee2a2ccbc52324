"""Images of a DICOM series by matrix, orientation and pixel distance."""

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from storage.sources.dicom_planes import Plane

COSINE_TOLERANCE = 1e-3 * (1 + 1e-6)  # of the orientation: what rounding to three decimals gives
PIXEL_TOLERANCE_MM = 1e-3 * (1 + 1e-6)


def geometries(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes by matrix, orientation and pixel distance, within the tolerances; most first."""
    kinds: list[list[Plane]] = []
    exact = grouped(planes, lambda plane: (plane.shape, plane.orientation, plane.pixel_mm))
    for group in sorted(exact, key=len, reverse=True):
        for kind in kinds:
            if difference(group[0], kind[0]) is None:
                kind += group
                break
        else:
            kinds.append(group)
    return sorted(kinds, key=len, reverse=True)


def difference(plane: Plane, other: Plane) -> tuple[str, str] | None:
    """Reason and detail of the first property of their geometry in which planes differ."""
    if plane.shape != other.shape:
        return "inconsistent_shape", f"{_size(other.shape)} and {_size(plane.shape)}"
    off = float(np.abs(np.subtract(plane.orientation, other.orientation)).max())
    if off > COSINE_TOLERANCE:
        return "inconsistent_orientation", f"direction cosines differ by {off:.4f}, the limit is {COSINE_TOLERANCE:.3g}"
    off = float(np.abs(np.subtract(plane.pixel_mm, other.pixel_mm)).max())
    if off > PIXEL_TOLERANCE_MM:
        return (
            "inconsistent_spacing",
            f"pixel spacing differs by {off:.4f} mm, the limit is {PIXEL_TOLERANCE_MM:.3g} mm",
        )
    return None


def is_slice_without_place(plane: Plane, main: Plane) -> bool:
    """Whether an image could be a slice of a geometry but for its position, unlike pages and screen saves."""
    return (
        len(plane.position_mm) != 3 and bool(plane.orientation and plane.pixel_mm) and difference(plane, main) is None
    )


def grouped(planes: Iterable[Plane], key: Callable[[Plane], Hashable]) -> list[list[Plane]]:
    """Planes by what a function says of each, in the order of the first of each group."""
    groups: dict[Hashable, list[Plane]] = {}
    for plane in planes:
        groups.setdefault(key(plane), []).append(plane)
    return list(groups.values())


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
