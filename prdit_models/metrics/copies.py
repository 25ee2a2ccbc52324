"""How far volumes are from the nearest one of a set, and from each other: what distinguishes samples from copies."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Volumes = NDArray[np.float32]
Distances = NDArray[np.float64]


def nearest(volumes: Volumes, references: Volumes, max_shift: int = 0) -> tuple[Distances, NDArray[np.int64]]:
    """Root mean square difference of every volume to its nearest reference, and which one that is.

    A copy of a training volume may be shifted, because training boxes are: references are compared at every whole-voxel shift up
    to `max_shift` on every axis, where both overlap. The search is one matrix product per shift; the distance of the pair
    it finds is then computed exactly.

    Args:
        volumes: shape (n, D, H, W).
        references: shape (m, D, H, W), m >= 1.
        max_shift: voxels.
    Returns: distances in the volumes' unit, shape (n,), and indices of references, shape (n,).
    Raises: ValueError: shapes that do not fit, no references, or a shift that leaves no overlap.
    """
    if volumes.ndim != 4 or references.ndim != 4 or len(references) == 0 or references.shape[1:] != volumes.shape[1:]:
        raise ValueError(
            f"nearest got volumes {volumes.shape} and references {references.shape}; expected (n, D, H, W) and (m >= 1, D, H, W)."
        )
    if not 0 <= max_shift < min(volumes.shape[1:]):
        raise ValueError(
            f"max_shift is {max_shift}; expected 0 to {min(volumes.shape[1:]) - 1} for volumes {volumes.shape[1:]}."
        )
    shifts = list(itertools.product(range(-max_shift, max_shift + 1), repeat=3))
    middle = references.mean()  # near it, squares are small and float32 keeps their differences
    best = np.full(len(volumes), np.inf)
    found = np.zeros((2, len(volumes)), dtype=np.int64)  # reference and shift
    for place, shift in enumerate(shifts):
        here, there = _overlap(shift)
        squared = _mean_squared(volumes[(slice(None), *here)] - middle, references[(slice(None), *there)] - middle)
        index = squared.argmin(axis=1)
        value = squared[np.arange(len(volumes)), index]
        found[:, value < best] = np.stack([index, np.full_like(index, place)])[:, value < best]
        best = np.minimum(best, value)
    exact = [
        _rms(volume[here], references[index][there])
        for volume, index, (here, there) in zip(volumes, found[0], (_overlap(shifts[k]) for k in found[1]), strict=True)
    ]
    return np.array(exact), found[0]


def pairwise(volumes: Volumes) -> Distances:
    """Root mean square difference of every pair of volumes (n, D, H, W), shape (n·(n - 1)/2,)."""
    squared = _mean_squared(volumes - volumes.mean(), volumes - volumes.mean())
    return np.sqrt(np.maximum(squared[np.triu_indices(len(volumes), 1)], 0.0))


def _mean_squared(first: Volumes, second: Volumes) -> Distances:
    """Mean squared difference of every volume of one set to every one of the other, shape (n, m)."""
    a, b = first.reshape(len(first), -1), second.reshape(len(second), -1)
    squares = [np.einsum("ij,ij->i", x, x, dtype=np.float64) for x in (a, b)]
    return (squares[0][:, None] + squares[1][None] - 2.0 * (a @ b.T)) / a.shape[1]


def _rms(first: Volumes, second: Volumes) -> float:
    return float(np.sqrt(np.square(first - second).mean(dtype=np.float64)))


def _overlap(shift: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where an array and one shifted by `shift` voxels overlap: slices of the first, slices of the second."""
    here = tuple(slice(max(s, 0), min(s, 0) or None) for s in shift)
    there = tuple(slice(max(-s, 0), min(-s, 0) or None) for s in shift)
    return here, there
