"""Networks of HA-GAN: generator, critic and two encoders (Sun et al., IEEE JBHI 26(8), 2022; public code of the authors).

A code becomes a feature volume A at a quarter of the edge S. Training decodes all of A to a volume of S/4 (low resolution), and
S/32 of its slices to a slab of S/8 slices at full resolution, so that the expensive layers see an eighth of the volume; drawing
decodes all of A at full resolution. Slabs are cut along D, the axial axis z of the store. 128 and 256 are the authors' sizes; 64
and 32 continue what the two differ in: half the edge is one doubling less in the generator and one first layer less in critic and
code encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

SIZES = (32, 64, 128, 256)
CODE = 1024  # numbers of a code
SLABS = 8  # disjoint slabs of a volume
REDUCTION = 4  # edge of the volume relative to that of A and of the low-resolution volume
_GROUPS = 8  # of group norms, fewer where the channels have fewer
_START = 4  # edge of the grid that the generator begins with, and the encoder and critic end with
_EPS = 1e-12


@dataclass(frozen=True)
class Shape:
    """What the networks of a volume size look like.

    Attributes:
        size: S, edge of the volumes in voxels.
        width_divisor: what all numbers of channels, but that of volumes, are divided by; published: 1.

    Raises: ValueError: at construction, for a size or a divisor that the layers do not divide.
    """

    size: int
    width_divisor: int = 1

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(
                f"The volumes have an edge of {self.size} voxels; HA-GAN has layers for {', '.join(map(str, SIZES))}: its "
                f"generator doubles a grid of {_START}³ up to a quarter of the edge, and works on slabs of an eighth of it. "
                "Set view.size to one of them."
            )
        if self.width_divisor not in (1, 2, 4, 8, 16):
            raise ValueError(
                f"width_divisor is {self.width_divisor}; expected 1 (published), 2, 4, 8 or 16: the narrowest layer has 16."
            )

    @property
    def code(self) -> int:
        """Numbers of a code."""
        return CODE // self.width_divisor

    @property
    def slab(self) -> int:
        """Slices of a slab."""
        return self.size // SLABS

    @property
    def last_start(self) -> int:
        """The last slice that a slab can start at."""
        return self.size - self.slab

    @property
    def doublings(self) -> int:
        """How often the generator's grid is doubled up to A."""
        return int(math.log2(self.size // (REDUCTION * _START)))

    def widths(self, *published: int) -> list[int]:
        """Channels of layers, divided."""
        return [width // self.width_divisor for width in published]

    def entry(self, *published: int) -> list[int]:
        """Channels of the four first layers at 256, divided; a layer less with each halving of the edge."""
        return self.widths(*published[4 - self.doublings :])


class Generator(nn.Module):
    """Codes to volumes; G^A, G^L and G^H of the paper.

    Args:
        shape: of the volumes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths(512, 512, 512, 256, 128, 64)
        last, middle, narrow = shape.widths(64, 32, 16)
        self.start = nn.Linear(shape.code, widths[0] * _START**3)
        self.trunk = nn.ModuleList(_block(i, o) for i, o in pairwise(widths))
        self.to_low = nn.Sequential(
            _block(last, middle), _block(middle, narrow), nn.Conv3d(narrow, 1, 3, padding=1), nn.Tanh()
        )
        self.to_high = nn.Sequential(
            nn.Upsample(scale_factor=2),
            _block(last, middle),
            nn.Upsample(scale_factor=2),
            nn.Conv3d(middle, 1, 3, padding=1),
            nn.Tanh(),
        )

    def features(self, code: Tensor) -> Tensor:
        """A, shape (B, 64, S/4, S/4, S/4), of codes (B, 1024)."""
        x = self.start(code).unflatten(1, (-1, _START, _START, _START))
        for number, block in enumerate(self.trunk):
            if 1 <= number <= self.shape.doublings:
                x = functional.interpolate(x, scale_factor=2)
            x = block(x)
        return x

    def views(self, code: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """What training sees of a code: a slab at full resolution and the whole at a quarter of the edge.

        Args:
            code: (B, 1024).
            start: slice that each slab starts at, (B,); one between the slices of A means that of A before it.
        Returns: (B, 1, S/8, S, S) and (B, 1, S/4, S/4, S/4), in [-1, 1].
        """
        features = self.features(code)
        cut = slices(features, start // REDUCTION, self.shape.slab // REDUCTION)
        return self.to_high(cut), self.to_low(features)

    def forward(self, code: Tensor) -> Tensor:
        """Whole volumes (B, 1, S, S, S) in [-1, 1] of codes (B, 1024)."""
        volume: Tensor = self.to_high(self.features(code))
        return volume


class Critic(nn.Module):
    """Judges a slab, its position and the whole at low resolution by one number; D^H and D^L, every layer spectrally normalised.

    Args:
        shape: of the volumes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        entry, (a, b, c, d) = shape.entry(16, 32, 64, 128), shape.widths(128, 256, 512, 128)
        flat, halved = (2, 4, 4), (1, 2, 2)
        layers = _halving([1, *entry[:-1]])
        layers += [nn.Conv3d([1, *entry[:-1]][-1], a, flat, 2, (0, 1, 1)), nn.Conv3d(a, b, flat, 2, (0, 1, 1))]
        layers += [nn.Conv3d(b, c, (1, 4, 4), halved, (0, 1, 1)), nn.Conv3d(c, d, (1, 4, 4))]
        self.of_slab = nn.Sequential(*_activated(layers), nn.Flatten())
        self.head = nn.Sequential(*_activated([nn.Linear(d + 1, d // 2)]), spectrally_normalised(nn.Linear(d // 2, 1)))
        low = [1, *shape.entry(32, 64, 128, 256)]
        self.of_low = nn.Sequential(
            *_activated(_halving(low)), spectrally_normalised(nn.Conv3d(low[-1], 1, _START)), nn.Flatten()
        )

    def forward(self, slab: Tensor, low: Tensor, start: Tensor) -> Tensor:
        """Logits of being real, (B,): the mean of both parts.

        Args:
            slab: (B, 1, S/8, S, S).
            low: (B, 1, S/4, S/4, S/4).
            start: slice of the volume that each slab starts at, (B,).
        """
        position = (start / self.shape.last_start).unsqueeze(1)
        seen = self.of_slab(slab)
        high: Tensor = self.head(torch.cat([seen, position.to(seen.dtype)], 1))
        return (0.5 * (high + self.of_low(low))).squeeze(1)


class SlabEncoder(nn.Sequential):
    """E^H: a slab (B, 1, S/8, S, S) to its part of A, (B, 64, S/32, S/4, S/4).

    Args:
        shape: of the volumes.
    """

    def __init__(self, shape: Shape) -> None:
        middle, last = shape.widths(32, 64)
        super().__init__(*_down_block(1, middle), _block(middle, middle), *_down_block(middle, last))


class CodeEncoder(nn.Sequential):
    """E^G: A, (B, 64, S/4, S/4, S/4), to a code (B, 1024).

    Args:
        shape: of the volumes.
    """

    def __init__(self, shape: Shape) -> None:
        widths = [*shape.widths(64), *shape.entry(32, 64, 128, 256)]
        blocks = [layer for i, o in pairwise(widths) for layer in _down_block(i, o)]
        super().__init__(*blocks, nn.Conv3d(widths[-1], shape.code, _START), nn.Flatten())


class HAGAN(nn.Module):
    """All networks of a training; called, it is the generator of whole volumes.

    Args:
        shape: of the volumes.
        encoders: also the two encoders, which the generator does not depend on.
    """

    def __init__(self, shape: Shape, *, encoders: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.generator = Generator(shape)
        self.critic = Critic(shape)
        self.slab_encoder = SlabEncoder(shape) if encoders else None
        self.code_encoder = CodeEncoder(shape) if encoders else None

    def forward(self, code: Tensor) -> Tensor:
        """Whole volumes (B, 1, S, S, S) in [-1, 1] of codes (B, 1024)."""
        volume: Tensor = self.generator(code)
        return volume


class SpectralNorm(nn.Module):
    """A weight divided by an estimate of its largest singular value (Miyato et al. 2018), as configured by HA-GAN's authors.

    The weight is viewed as a matrix (outputs, rest). Each evaluation in training mode makes one step of the power iteration from
    the left vector of the one before, which is kept as a buffer and starts as normal random numbers; gradients flow through the
    estimate, not through the vectors. In evaluation mode the step is made and not kept.

    Args:
        weight: that is normalised.
    """

    left: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        start = torch.randn(len(weight), device=weight.device)
        self.register_buffer("left", functional.normalize(start, dim=0, eps=_EPS))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, normalised."""
        matrix = weight.flatten(1)
        with torch.no_grad():
            right = functional.normalize(_across(matrix.T, self.left), dim=0, eps=_EPS)
            left = functional.normalize(_across(matrix, right), dim=0, eps=_EPS)
            if self.training:
                self.left.copy_(left)
        return weight / (left * _across(matrix, right)).sum()


def _across(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product of a matrix and a vector, in the matrix's type also where autocast would round `@` to bfloat16."""
    return (matrix * vector).sum(1)


def spectrally_normalised(layer: nn.Module) -> nn.Module:
    """The layer, its weight normalised at every evaluation."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight.")
    # unsafe: no trial evaluation, which would be a step of the iteration before the first one
    return parametrize.register_parametrization(layer, "weight", SpectralNorm(weight), unsafe=True)


def slices(volumes: Tensor, start: Tensor, number: int) -> Tensor:
    """Consecutive slices along D, of each volume its own.

    Args:
        volumes: (B, C, D, H, W).
        start: first of each volume, (B,).
        number: N, how many.
    Returns: (B, C, N, H, W).
    """
    wanted = start.unsqueeze(1) + torch.arange(number, device=start.device)
    return torch.take_along_dim(volumes, wanted.view(len(volumes), 1, number, 1, 1), 2)


def decimated(volumes: Tensor) -> Tensor:
    """Every fourth voxel along every axis, without a filter: (B, C, S, S, S) to (B, C, S/4, S/4, S/4)."""
    return volumes[..., ::REDUCTION, ::REDUCTION, ::REDUCTION]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), _norm(outputs), nn.ReLU())


def _down_block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv3d(inputs, outputs, 4, 2, 1), _norm(outputs), nn.ReLU()]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


def _halving(widths: Sequence[int]) -> list[nn.Module]:
    return [nn.Conv3d(i, o, 4, 2, 1) for i, o in pairwise(widths)]


def _activated(layers: Sequence[nn.Module]) -> list[nn.Module]:
    return [part for layer in layers for part in (spectrally_normalised(layer), nn.LeakyReLU(0.2))]
