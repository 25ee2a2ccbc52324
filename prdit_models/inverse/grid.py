"""The grid an operator is made for, and checks of numbers that settings share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Int3 = tuple[int, int, int]
Float3 = tuple[float, float, float]


@dataclass(frozen=True)
class Grid3:
    """Voxels of a volume.

    Attributes:
        shape: (D, H, W), along z, y, x: towards superior, posterior, left.
        spacing_mm: voxel distances (x, y, z).

    Raises: ValueError: at construction, for a shape or a spacing that no volume has.
    """

    shape: Int3
    spacing_mm: Float3

    def __post_init__(self) -> None:
        if not _is_list(self.shape) or any(type(n) is not int or n < 1 for n in self.shape) or len(self.shape) != 3:
            raise ValueError(f"Grid shape is {self.shape!r}; expected three whole numbers of at least 1, (D, H, W).")
        if self.spacing_mm is None:
            raise ValueError(
                "The grid's spacing is unknown; an operator in mm needs it. Give spacing_mm as three millimetres (x, y, z): those "
                "of the volume, or what the checkpoint's view has."
            )
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "spacing_mm", per_axis(self.spacing_mm, "Grid spacing_mm", "mm"))

    @property
    def extent_mm(self) -> Float3:
        """Edge lengths (x, y, z), from the outer face of the first voxel to that of the last."""
        x, y, z = (n * s for n, s in zip(reversed(self.shape), self.spacing_mm, strict=True))
        return x, y, z


def per_axis(value: Any, what: str, unit: str) -> Float3:
    """One positive number for all axes, or three (x, y, z), as three.

    Raises: ValueError: anything else, with the value.
    """
    values = list(value) if _is_list(value) else [value] * 3
    if len(values) != 3 or not all(is_number(v) and v > 0 for v in values):
        raise ValueError(f"{what} is {value!r}; expected a positive number of {unit}, or three (x, y, z).")
    x, y, z = (float(v) for v in values)
    return x, y, z


def position(value: Any, what: str) -> Float3:
    """Three finite millimetres (x, y, z).

    Raises: ValueError: anything else, with the value.
    """
    if not _is_list(value) or len(value) != 3 or not all(is_number(v) for v in value):
        raise ValueError(f"{what} is {value!r}; expected three finite millimetres (x, y, z).")
    x, y, z = (float(v) for v in value)
    return x, y, z


def positive(value: Any, what: str, unit: str) -> float:
    """A positive finite number.

    Raises: ValueError: anything else, with the value.
    """
    if not is_number(value) or not value > 0:
        raise ValueError(f"{what} is {value!r}; expected a positive number of {unit}.")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number (a boolean is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
