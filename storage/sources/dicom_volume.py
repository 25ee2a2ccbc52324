"""Images of one DICOM series -> the volumes they make, from their headers alone, or the reason why they make none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.geometry import Float3
from storage.sources.dicom_planes import Plane
from storage.sources.source import LeftOut, ScanRequest, SourceVolume

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

    def volume(self, hu: NDArray[Any], attributes: dict[str, Any], notes: Sequence[str] = ()) -> SourceVolume:
        """The stack with its pixels: HU of its planes in their order; `notes` are those about the pixels."""
        raise NotImplementedError


def check_planes(planes: Sequence[Plane], request: ScanRequest, same_pixels: SamePixels) -> list[Stack]:
    """The volumes that the images of a series make, sorted by part.

    Args:
        planes: all images of the series.
        request: the series, with the limits and the expected number of its images.
        same_pixels: whether two images have the same stored pixels; asked only of images at one position.
    Returns: at least one stack; images that are left out are on the first.
    Raises: UnusableSeriesError: they make none, or one that is broken.
    """
    raise NotImplementedError
