"""Tiny operators on HU, written down literally: identity, mask, means of blocks, sums along an axis."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Operator:
    """y = A x + b of volumes (B, 1, D, H, W) in HU, with the adjoint of A."""

    name: str
    unit: str
    noise_std: float
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def identity(noise_std: float) -> Operator:
    return Operator("identity", "HU", noise_std, lambda x: x, lambda y: y)


def mask(kept: Tensor, noise_std: float) -> Operator:
    """The voxels of a mask (D, H, W), one after the other."""

    def adjoint(y: Tensor) -> Tensor:
        found = y.new_zeros(len(y), 1, *kept.shape)
        found[:, :, kept] = y
        return found

    return Operator("mask", "HU", noise_std, lambda x: x[:, :, kept], adjoint)


def block_means(noise_std: float) -> Operator:
    """Means of blocks of 2³."""

    def adjoint(y: Tensor) -> Tensor:
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4) / 8

    return Operator("means of blocks", "HU", noise_std, lambda x: F.avg_pool3d(x, 2), adjoint)


def ray_sums(noise_std_mm: float) -> Operator:
    """Two parallel views along y and x: water-equivalent path in mm, voxels of 1 mm."""

    def forward(x: Tensor) -> Tensor:
        water = 1 + x / 1000
        return torch.stack([water.sum(3), water.sum(4)], 1)

    def adjoint(y: Tensor) -> Tensor:
        along_y, along_x = y[:, 0].unsqueeze(3), y[:, 1].unsqueeze(4)
        size = y.shape[-1]
        return (along_y.expand(-1, -1, -1, size, -1) + along_x.expand(-1, -1, -1, -1, size)) / 1000

    return Operator("two views", "mm", noise_std_mm, forward, adjoint)
