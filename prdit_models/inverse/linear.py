"""What our operators share: checks of what they are given, and gradients by the adjoint."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prdit_models.inverse.grid import Grid3, is_number

AIR_HU = -1000.0
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LinearOperator:
    """A measurement y = A·(x - reference) + offset; an operator of ours defines A, Aᵀ and the measurement's shape.

    Attributes:
        grid: of the volumes.
        noise_std: of a measurement's noise, in its unit.
        reference_hu: value at which A·x vanishes. A class or property of the operator, like `offset`, not a setting.
        offset: measurement of a volume that has the reference value everywhere.

    Raises: ValueError: at construction, for a setting that makes no sense, with its value.
    """

    grid: Grid3
    noise_std: float = 0.0

    name: ClassVar[str]
    unit: ClassVar[str] = "HU"

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid3):
            raise ValueError(f"The grid of {self.name!r} is {self.grid!r}; expected Grid3(shape, spacing_mm).")
        if not is_number(self.noise_std) or self.noise_std < 0:
            raise ValueError(
                f"noise_std is {self.noise_std!r}; expected a number of at least 0 (0: no noise), in {self.unit}."
            )

    @property
    def reference_hu(self) -> float:
        """Value at which the linear part vanishes."""
        return 0.0

    @property
    def offset(self) -> float:
        """Measurement of a volume that has the reference value everywhere."""
        return self.reference_hu if self.unit == "HU" else 0.0

    def measurement_shape(self, volume_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """See `MeasurementOperator`."""
        if volume_shape is not None and tuple(volume_shape) != self.grid.shape:
            raise ValueError(
                f"{self.name!r} is made for volumes of shape {self.grid.shape}; got {tuple(volume_shape)}. Make it for that grid."
            )
        return self._shape()

    def forward(self, volume: Tensor) -> Tensor:
        """See `MeasurementOperator`.

        Raises: ValueError: a volume of another shape or type.
        """
        self._check("volume", volume, (1, *self.grid.shape))
        out: Tensor = _ByAdjoint.apply(volume - self.reference_hu, self._linear, self._transposed)
        return out + self.offset

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `MeasurementOperator`.

        Raises: ValueError: a measurement of another shape or type.
        """
        self._check("measurement", measurement, self._shape())
        out: Tensor = _ByAdjoint.apply(measurement, self._transposed, self._linear)
        return out

    def to_dict(self) -> dict[str, Any]:
        """See `MeasurementOperator`."""
        settings = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.name != "grid"}
        return {"name": self.name, **settings}

    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _linear(self, volume: Tensor) -> Tensor:
        """A·x, (B, 1, D, H, W) to (B, ...)."""
        raise NotImplementedError

    def _transposed(self, measurement: Tensor) -> Tensor:
        """Aᵀ·y, (B, ...) to (B, 1, D, H, W)."""
        raise NotImplementedError

    def _check(self, what: str, values: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(values.shape[1:]) != shape or values.dim() != len(shape) + 1:
            raise ValueError(
                f"The {what} of {self.name!r} has shape {tuple(values.shape)}; expected (B, {', '.join(map(str, shape))}) for "
                f"the grid {self.grid.shape}. Make the operator for the {what}'s grid, or bring the {what} to this one."
            )
        if values.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The {what} of {self.name!r} is {values.dtype}; expected float32 or float64: call .float()."
            )


class _ByAdjoint(torch.autograd.Function):
    """A linear map whose gradient is its adjoint: nothing is kept of the way there, and gradients can be differentiated again."""

    @staticmethod
    def forward(values: Tensor, there: Map, back: Map) -> Tensor:
        # a sampler may compute its network in half precision; a measurement is not
        with torch.autocast(values.device.type, enabled=False):
            return there(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], output: Tensor) -> None:
        ctx.maps = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.maps
        return _ByAdjoint.apply(gradient, back, there), None, None


def _plain(value: Any) -> Any:
    """A setting as JSON values."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value
