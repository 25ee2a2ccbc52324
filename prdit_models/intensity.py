"""Hounsfield units to and from the range a model works in."""

import math
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class HounsfieldWindow:
    """A fixed linear map of [lower_hu, upper_hu] to the model's range, the same for every scan.

    The published mapping scales each scan by its own quantile, so HU cannot be recovered; this one can be inverted.

    Attributes:
        lower_hu: value that becomes `model_lower`.
        upper_hu: value that becomes `model_upper`.
        model_lower, model_upper: the model's range; published RAD-ChestCT models work in [0, 1], all others in [-1, 1].
    """

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0
    model_lower: float = -1.0
    model_upper: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower_hu) and math.isfinite(self.upper_hu) and self.lower_hu < self.upper_hu):
            raise ValueError(f"Window [{self.lower_hu}, {self.upper_hu}] HU: the lower end must lie below the upper.")
        if not self.model_lower < self.model_upper:
            raise ValueError(
                f"Model range [{self.model_lower}, {self.model_upper}]: the lower end must lie below the upper."
            )

    @classmethod
    def of_mapping(cls, lower_hu: float, upper_hu: float, mapping: str) -> Self:
        """The window of a named mapping; the published ones follow each scan's own range, see `tasks.train.data`."""
        return cls(lower_hu, upper_hu)

    def to_model(self, hu: Array) -> Array:
        """HU of any shape and dtype to float32 in the model's range; values outside the window saturate."""
        values = hu.to(torch.float32) if isinstance(hu, Tensor) else hu.astype(np.float32)
        scaled = (values - self.lower_hu) * ((self.model_upper - self.model_lower) / (self.upper_hu - self.lower_hu))
        return (scaled + self.model_lower).clip(self.model_lower, self.model_upper)

    def to_hu(self, x: Array) -> Array:
        """Model range to HU, same shape and dtype, not clipped: samples may leave the range."""
        return (x - self.model_lower) * (
            (self.upper_hu - self.lower_hu) / (self.model_upper - self.model_lower)
        ) + self.lower_hu
