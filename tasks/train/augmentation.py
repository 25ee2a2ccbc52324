"""What a training changes of the volumes it is shown: shifted boxes, flips, intensities, small turns and sizes."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from storage.geometry import AIR_HU, VIEW_ALIGNMENT
from tasks.model.view import Shift
from tasks.run.config import StageConfig

_JITTER_ZERO_HU = -1000.0  # air keeps its value when intensities are scaled

Matrix = tuple[tuple[float, float, float], ...]
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class AugmentationConfig(StageConfig):
    """Random changes of training volumes, each drawn anew every time a volume is shown. Published: none."""

    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of a flip of the last axis (published code: 0.5, off in its configurations)",
    )
    offset_hu: float = Field(0.0, ge=0, description="a value of up to this many HU is added or subtracted")
    gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="HU above air (-1000) are multiplied by 1 - gain to 1 + gain: attenuation scales with it",
    )
    rotation_deg: float = Field(0.0, ge=0, le=45, description="turned by up to this angle about each axis")
    scale: float = Field(0.0, ge=0, le=0.5, description="magnified by 1 - scale to 1 + scale")


@dataclass(frozen=True)
class Change:
    """What is done to one volume; as made without arguments: nothing.

    Attributes:
        shift: of the box (z, y, x), level-0 voxels.
        flip: whether the model's last axis is reversed.
        offset_hu, gain: HU become (HU + 1000) · gain - 1000 + offset_hu.
        matrix: a position (z, y, x) of the content relative to the box's centre is moved to matrix · position.
        edge: which of the view's edges the box has, by its place among them.
    """

    shift: Shift = (0, 0, 0)
    flip: bool = False
    offset_hu: float = 0.0
    gain: float = 1.0
    matrix: Matrix = IDENTITY
    edge: int = 0

    @property
    def changes_hu(self) -> bool:
        """Whether the view has other values than that of the store, flipped or not."""
        return replace(self, flip=False) != Change()

    def margin(self, size: int) -> int:
        """Voxels beside a box of `size` voxels that `apply` needs on every side."""
        if self.matrix == IDENTITY:
            return 0
        reach = np.abs(np.linalg.inv(np.array(self.matrix))).sum(axis=1).max() * (size - 1) / 2
        return max(0, math.ceil(reach - (size - 1) / 2)) + 1

    def apply(self, hu: Tensor, size: int) -> Tensor:
        """Turned, scaled and with changed intensities; the shift is where the box was cut, the flip is done by `flipped`.

        Args:
            hu: float32 HU of the box and its margin, shape (size + 2 · margin,) * 3, axes (z, y, x).
            size: edge of the result.
        Returns: float32 HU, shape (size,) * 3; linear interpolation, AIR_HU outside of what was given.
        """
        if self.matrix != IDENTITY:
            hu = _moved(hu, np.linalg.inv(np.array(self.matrix)), size)
        if self.gain != 1.0 or self.offset_hu:
            hu = (hu - _JITTER_ZERO_HU) * self.gain + (_JITTER_ZERO_HU + self.offset_hu)
        return hu

    def flipped(self, volume: Tensor) -> Tensor:
        """A volume in the model's axes, its last axis reversed where `flip` is set."""
        return volume.flip(-1) if self.flip else volume


def _moved(hu: Tensor, inverse: np.ndarray, size: int) -> Tensor:
    """The middle size³ of what is seen when the content is moved; `inverse` maps a position of the result to one of `hu`."""
    # grid_sample counts in (x, y, z) and in halves of an edge
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = torch.from_numpy(inverse[::-1, ::-1] * (size / hu.shape[-1]))
    grid = F.affine_grid(theta, [1, 1, size, size, size], align_corners=False)
    above = (hu - AIR_HU)[None, None]  # what grid_sample finds outside is 0
    return F.grid_sample(above, grid, align_corners=False)[0, 0] + AIR_HU


@dataclass(frozen=True)
class Augmentation:
    """Draws the changes of volumes.

    Attributes:
        config: how far each goes.
        max_shift: boxes are shifted by up to this many level-0 voxels on every axis, in multiples of 4.
        num_edges: edges that the view has; each is as likely.
    """

    config: AugmentationConfig = field(default_factory=AugmentationConfig)
    max_shift: int = 0
    num_edges: int = 1

    def draw(self, seed: int) -> Change:
        """The change of a volume: a pure function of seed and settings. A setting does not move what the others draw."""
        generator = np.random.default_rng(seed)
        config = self.config
        reach = self.max_shift // VIEW_ALIGNMENT
        z, y, x = ((int(n * (2 * reach + 1)) - reach) * VIEW_ALIGNMENT for n in generator.random(3))
        flip = bool(generator.random() < config.flip)
        offset, gain, scale, *angles = generator.uniform(-1.0, 1.0, 6)
        matrix = IDENTITY
        if config.rotation_deg or config.scale:
            turned = rotation([angle * config.rotation_deg for angle in angles]) * (1.0 + scale * config.scale)
            matrix = tuple((float(a), float(b), float(c)) for a, b, c in turned)
        edge = int(generator.integers(self.num_edges))
        return Change((z, y, x), flip, float(offset * config.offset_hu), float(1.0 + gain * config.gain), matrix, edge)


def rotation(degrees: list[float]) -> np.ndarray:
    """Rotation matrix over (z, y, x): about x, then y, then z; about z, a positive angle turns +y towards +x."""
    total = np.eye(3)
    for axis, angle in reversed(list(enumerate(degrees))):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = cos
        turn[other, one], turn[one, other] = sin, -sin
        total = turn @ total
    return total
