"""Masks: volumes of which a part was not measured, to be filled in."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from prdit_models.inverse.booleans import booleans_of, text_of
from prdit_models.inverse.grid import Float3, per_axis, position
from prdit_models.inverse.linear import LinearOperator

# which settings a region has, and needs
REGIONS: dict[str, tuple[str, ...]] = {
    "box": ("size_mm", "centre_mm"),
    "half": ("side", "centre_mm"),
    "outside-box": ("size_mm", "centre_mm"),
    "outside-cylinder": ("size_mm", "centre_mm"),
    "array": ("kept",),
}
_OPTIONAL = ("centre_mm",)
_RESAMPLE = "resample the mask to the volume's grid (nearest neighbour)."
# (axis of (x, y, z), whether the side lies towards its end)
SIDES = {
    "left": (0, True),
    "right": (0, False),
    "posterior": (1, True),
    "anterior": (1, False),
    "superior": (2, True),
    "inferior": (2, False),
}


@dataclass(frozen=True, kw_only=True)
class Mask(LinearOperator):
    """The voxels outside of a missing region, in the order of the volume: where nothing is measured there is no value and no noise.

    `adjoint` puts a measurement back into its volume, with 0 where nothing was measured.

    Attributes:
        region: what is missing. `box`: a box. `half`: all on one side of a plane, such as one lung. `outside-box` and
            `outside-cylinder` (along z, as a scanner's field of view): all but that. `array`: where `kept` is false.
        size_mm: edges of the box (x, y, z), or of all; diameters (x, y) of the cylinder are its first two.
        centre_mm: centre of the box or cylinder, or a point of the plane, from the volume's centre (x, y, z); default 0, 0, 0.
        side: of `half`: left, right, posterior, anterior, superior or inferior (of the patient: axes grow towards left,
            posterior, superior).
        kept: of `array`: booleans of the grid's shape (array or tensor), or their text as `to_dict` writes it.

    Raises: ValueError: at construction, for an unknown region, a setting it does not have or lacks, a mask of another shape, or one
        that keeps nothing or everything.
    """

    region: str
    size_mm: float | Float3 | None = None
    centre_mm: Float3 | None = None
    side: str | None = None
    kept: Any = None
    name: ClassVar[str] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region not in list(REGIONS):  # a list is not hashable
            raise ValueError(f"region is {self.region!r}; expected one of {', '.join(REGIONS)}.")
        for setting in ("size_mm", "centre_mm", "side", "kept"):
            given, used = getattr(self, setting) is not None, setting in REGIONS[self.region]
            if given and not used:
                raise ValueError(f"{setting} is set, which the region {self.region!r} does not have; leave it out.")
            if used and not given and setting not in _OPTIONAL:
                raise ValueError(f"The region {self.region!r} needs {setting}.")
        if self.size_mm is not None:
            object.__setattr__(self, "size_mm", per_axis(self.size_mm, "size_mm", "mm"))
        if self.centre_mm is not None:
            object.__setattr__(self, "centre_mm", position(self.centre_mm, "centre_mm"))
        if self.side is not None and self.side not in list(SIDES):
            raise ValueError(f"side is {self.side!r}; expected one of {', '.join(SIDES)}.")
        if self.kept is not None:
            object.__setattr__(self, "kept", text_of(self.kept, self.grid.shape, "kept", _RESAMPLE))
        if not self.mask.any():
            raise ValueError(
                f"The mask keeps none of the {self.grid.shape} voxels; make the missing region smaller, or sample without operator."
            )
        if self.mask.all():
            raise ValueError(
                f"The mask keeps all of the {self.grid.shape} voxels, so that there is nothing to fill in: check the region's size "
                f"and place; the volume has {' × '.join(f'{mm:g}' for mm in self.grid.extent_mm)} mm (x, y, z)."
            )

    @cached_property
    def mask(self) -> Tensor:
        """Which voxels are measured: booleans (D, H, W)."""
        if self.region == "array":
            return booleans_of(self.kept, self.grid.shape, "kept")
        centre = self.centre_mm or (0.0, 0.0, 0.0)
        x, y, z = (
            (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * s - c
            for n, s, c in zip(reversed(self.grid.shape), self.grid.spacing_mm, centre, strict=True)
        )
        places = {0: x[None, None, :], 1: y[None, :, None], 2: z[:, None, None]}
        if self.side is not None:
            axis, towards_end = SIDES[self.side]
            kept = places[axis] <= 0 if towards_end else places[axis] >= 0
            return kept.expand(self.grid.shape).contiguous()
        size = per_axis(self.size_mm, "size_mm", "mm")
        if self.region == "outside-cylinder":
            inside = (places[0] / size[0]) ** 2 + (places[1] / size[1]) ** 2 <= 0.25
        else:
            inside = torch.stack([(2 * places[a].abs() <= size[a]).expand(self.grid.shape) for a in range(3)]).all(0)
        inside = inside.expand(self.grid.shape).contiguous()
        return ~inside if self.region == "box" else inside

    @cached_property
    def _moved(self) -> dict[torch.device, Tensor]:
        return {}

    def _places(self, device: torch.device) -> Tensor:
        """Positions of the measured voxels in a flat volume, on a device."""
        if device not in self._moved:
            self._moved[device] = self.mask.flatten().nonzero()[:, 0].to(device)
        return self._moved[device]

    def _shape(self) -> tuple[int, ...]:
        return (len(self._places(torch.device("cpu"))),)

    def _linear(self, volume: Tensor) -> Tensor:
        return volume.flatten(1)[:, self._places(volume.device)]

    def _transposed(self, measurement: Tensor) -> Tensor:
        volume = measurement.new_zeros(len(measurement), self.mask.numel())
        volume[:, self._places(measurement.device)] = measurement
        return volume.unflatten(1, (1, *self.grid.shape))
