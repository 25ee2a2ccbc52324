"""A measurement operator: the mean of every slice, as a profile of attenuation along the patient."""

from dataclasses import dataclass
from typing import ClassVar

from prdit_models.inverse.linear import LinearOperator


@dataclass(frozen=True, kw_only=True)
class Profile(LinearOperator):
    """One mean for each `thickness` voxels along z.

    Attributes:
        thickness: voxels along z that share a mean; it divides their number.
    """

    thickness: int = 1
    name: ClassVar[str] = "toy-profile"

    def __post_init__(self):
        super().__post_init__()
        if self.thickness < 1 or self.grid.shape[0] % self.thickness:
            raise ValueError(f"thickness is {self.thickness}; expected a divisor of the {self.grid.shape[0]} slices.")

    def _shape(self):
        return (self.grid.shape[0] // self.thickness,)

    def _linear(self, volume):
        return volume.mean(dim=(1, 3, 4)).unflatten(1, (-1, self.thickness)).mean(2)

    def _transposed(self, measurement):
        depth, height, width = self.grid.shape
        spread = measurement.repeat_interleave(self.thickness, 1) / (self.thickness * height * width)
        return spread[:, None, :, None, None].expand(-1, 1, depth, height, width)
