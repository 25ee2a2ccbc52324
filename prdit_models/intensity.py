"""Hounsfield units to and from the range a model works in."""

import math
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = TypeVar("Array", np.ndarray, Tensor)

# quantile of a scan's own view that becomes the upper end, of each published mapping
PUBLISHED_QUANTILES = {"published-lidc": 0.999, "published-rad": 0.995}
MAPPINGS = ("window", *PUBLISHED_QUANTILES)


@dataclass(frozen=True)
class HounsfieldWindow:
    """How HU map to the model's range, and back.

    `window` is a fixed linear map of [lower_hu, upper_hu], the same for every scan. The published mappings scale each scan by its
    own quantile and minimum (`of_scan`), so HU cannot be recovered from them: for those, `to_hu` and `to_model` are the linear map
    through the nominal window, and HU of samples are nominal too.

    Attributes:
        lower_hu: value that becomes `model_lower`; published mappings clip a scan there.
        upper_hu: value that becomes `model_upper`; `published-rad` clips a scan there, to `published-lidc` it is nominal.
        model_lower, model_upper: the model's range; published RAD-ChestCT models work in [0, 1], all others in [-1, 1].
        mapping: one of `MAPPINGS`.

    Raises: ValueError: at construction, for an empty window or range, or an unknown mapping.
    """

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0
    model_lower: float = -1.0
    model_upper: float = 1.0
    mapping: str = "window"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower_hu) and math.isfinite(self.upper_hu) and self.lower_hu < self.upper_hu):
            raise ValueError(f"Window [{self.lower_hu}, {self.upper_hu}] HU: the lower end must lie below the upper.")
        if not self.model_lower < self.model_upper:
            raise ValueError(
                f"Model range [{self.model_lower}, {self.model_upper}]: the lower end must lie below the upper."
            )
        if self.mapping not in MAPPINGS:
            raise ValueError(f"Intensity mapping {self.mapping!r} is unknown; expected one of {list(MAPPINGS)}.")

    @classmethod
    def of_mapping(cls, lower_hu: float, upper_hu: float, mapping: str) -> Self:
        """A mapping by name, with the range its models work in: [0, 1] for `published-rad`, else [-1, 1].

        Raises: ValueError: as at construction.
        """
        return cls(lower_hu, upper_hu, 0.0 if mapping == "published-rad" else -1.0, 1.0, mapping)

    @property
    def follows_scan(self) -> bool:
        """Whether each scan is scaled by itself: then a view is mapped at full resolution by `of_scan`, and pooled after."""
        return self.mapping != "window"

    def to_model(self, hu: Array) -> Array:
        """HU of any shape and dtype to float32 in the model's range by the (nominal) window; values outside saturate."""
        values = hu.to(torch.float32) if isinstance(hu, Tensor) else hu.astype(np.float32)
        scaled = (values - self.lower_hu) * ((self.model_upper - self.model_lower) / (self.upper_hu - self.lower_hu))
        return (scaled + self.model_lower).clip(self.model_lower, self.model_upper)

    def to_hu(self, x: Array) -> Array:
        """Model range to HU by the (nominal) window, same shape and dtype, not clipped: samples may leave the range."""
        return (x - self.model_lower) * (
            (self.upper_hu - self.lower_hu) / (self.model_upper - self.model_lower)
        ) + self.lower_hu

    def of_scan(self, hu: Tensor, size: int) -> Tensor:
        """A scan's view in full resolution to what a model sees of it.

        * `window`: means of blocks, then the window.
        * `published-lidc`: floor at lower_hu, cap at the view's own 0.999 quantile (linear interpolation), scaled by its own
          minimum and maximum, then means of blocks.
        * `published-rad`: clipped to the window, brought to `size` by linear interpolation with the corner voxels kept, cap at that
          view's own 0.995 quantile, scaled by its own minimum and maximum.

        A constant view becomes model_lower (the published code divides 0 by 0 there).

        Args:
            hu: cubic view of edge E, shape (E, E, E).
            size: edge of the result; divides E.
        Returns: float32 in [model_lower, model_upper], shape (size, size, size).
        Raises: ValueError: if the view is not a cube or size does not divide its edge.
        Source: SPEC §5.1, §5.2, §5.3.
        """
        edge = hu.shape[-1]
        if hu.dim() != 3 or len(set(hu.shape)) != 1 or size < 1 or edge % size:
            raise ValueError(
                f"A view of shape {tuple(hu.shape)} cannot be brought to size {size}; expected a cube (E, E, E) whose edge "
                "is a multiple of the size."
            )
        values = hu.to(torch.float32)
        if self.mapping == "window":
            return self.to_model(_block_means(values, edge // size))
        if self.mapping == "published-lidc":
            return _block_means(self._scaled_by_itself(values.clamp(min=self.lower_hu)), edge // size)
        values = values.clamp(self.lower_hu, self.upper_hu)
        if size != edge:
            values = F.interpolate(values[None, None], size=(size,) * 3, mode="trilinear", align_corners=True)[0, 0]
        return self._scaled_by_itself(values)

    def _scaled_by_itself(self, values: Tensor) -> Tensor:
        low = float(values.min())
        # numpy: torch.quantile refuses more than 16 million values, fewer than a view of 256³ has
        high = float(np.quantile(values.numpy(), PUBLISHED_QUANTILES[self.mapping]))
        if not low < high:
            return torch.full_like(values, self.model_lower)
        unit = (values.clamp(max=high) - low) / (high - low)
        return unit * (self.model_upper - self.model_lower) + self.model_lower


def _block_means(values: Tensor, factor: int) -> Tensor:
    return values if factor == 1 else F.avg_pool3d(values[None, None], factor)[0, 0]
