"""A measurement as a guide sees it: of volumes in model range, with the residual and its adjoint."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from prdit_models.intensity import HounsfieldWindow

# HU of a unit step of the measurement: of projections in mm of water, 1000 HU per mm along the ray
HU_PER_UNIT: Mapping[str, float] = {"HU": 1.0, "mm": 1000.0}


class Measures(Protocol):
    """What of a `MeasurementOperator` a guide uses; see there."""

    @property
    def noise_std(self) -> float: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    def forward(self, volume: Tensor) -> Tensor: ...  # noqa: D102
    def adjoint(self, measurement: Tensor) -> Tensor: ...  # noqa: D102


class InModelRange:
    """An operator and its measurement y for volumes in model range: HU = centre + scale·x, so A there is A·scale.

    Args:
        operator: from HU, shape (B, 1, D, H, W), to a measurement, shape (B, …).
        window: how HU map to the model's range; linear, also where mapped volumes saturate.
        measurement: y, shape (B, …), or (1, …) for one that all volumes share.
    Raises: ValueError: the measurement has values that are not finite, or the operator a unit that is not known.
    """

    def __init__(self, operator: Measures, window: HounsfieldWindow, measurement: Tensor) -> None:
        if not bool(torch.isfinite(measurement).all()):
            count = int((~torch.isfinite(measurement)).sum())
            raise ValueError(
                f"{count} of {measurement.numel()} values of the measurement are not finite; leave them out by a mask, or repair "
                "them."
            )
        if operator.unit not in HU_PER_UNIT:
            raise ValueError(f"The operator's unit is {operator.unit!r}; expected one of {list(HU_PER_UNIT)}.")
        self.operator = operator
        self.window = window
        self.measurement = measurement
        self.scale = (window.upper_hu - window.lower_hu) / (window.model_upper - window.model_lower)
        self._zero: Tensor | None = None

    @property
    def noise_std(self) -> float:
        """Of the measurement, in its unit."""
        return self.operator.noise_std

    @property
    def unit_scale(self) -> float:
        """How much of the measurement's unit one unit of the model's range is: divided by it, A has the unit of volumes."""
        return self.scale / HU_PER_UNIT[self.operator.unit]

    def forward(self, image: Tensor) -> Tensor:
        """The measurement of volumes in model range, (B, 1, D, H, W) to (B, …)."""
        return self.operator.forward(self.window.to_hu(image))

    def residual(self, image: Tensor) -> Tensor:
        """y - A x - b in the measurement's unit, (B, …).

        Raises: ValueError: the measurement is not of such volumes.
        """
        found = self.forward(image)
        shape = tuple(self.measurement.shape)
        if shape[1:] != tuple(found.shape[1:]) or shape[0] not in (1, len(image)):
            raise ValueError(
                f"The measurement has shape {shape}; the operator makes {tuple(found.shape)} of volumes "
                f"{tuple(image.shape)}. Measure with the operator's own grid, one measurement per volume or one for all."
            )
        self.measurement = self.measurement.to(found)  # where it is compared from now on
        return self.measurement - found

    def adjoint(self, residual: Tensor) -> Tensor:
        """Aᵀ of the linear part in model range, (B, …) to (B, 1, D, H, W), the scale included."""
        return self.scale * self.operator.adjoint(residual)

    def linear(self, step: Tensor) -> Tensor:
        """A of the linear part in model range, (B, 1, D, H, W) to (B, …): what a step of the image adds to its measurement."""
        return self.operator.forward(self.scale * step) - self._offset(step)

    def _offset(self, like: Tensor) -> Tensor:
        """b, the measurement of 0 HU, (1, …), computed once."""
        if self._zero is None or (self._zero.device, self._zero.dtype) != (like.device, like.dtype):
            self._zero = self.operator.forward(torch.zeros_like(like[:1])).to(like.dtype)
        return self._zero
