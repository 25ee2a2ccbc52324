"""Hounsfield units to and from the range a model works in."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class HounsfieldWindow:
    """A fixed linear map of [lower_hu, upper_hu] to [-1, 1], the same for every scan.

    The published mapping scales each scan by its own quantile, so HU cannot be recovered; this one can be inverted.

    Attributes:
        lower_hu: value that becomes -1.
        upper_hu: value that becomes 1.
    """

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower_hu) and math.isfinite(self.upper_hu) and self.lower_hu < self.upper_hu):
            raise ValueError(f"Window [{self.lower_hu}, {self.upper_hu}] HU: the lower end must lie below the upper.")

    def to_model(self, hu: Array) -> Array:
        """HU of any shape and dtype to float32 in [-1, 1]; values outside the window saturate."""
        values = hu.to(torch.float32) if isinstance(hu, Tensor) else hu.astype(np.float32)
        return ((values - self.lower_hu) * (2.0 / (self.upper_hu - self.lower_hu)) - 1.0).clip(-1.0, 1.0)

    def to_hu(self, x: Array) -> Array:
        """Model range to HU, same shape and dtype, not clipped: samples may leave [-1, 1]."""
        return (x + 1.0) * ((self.upper_hu - self.lower_hu) / 2.0) + self.lower_hu
