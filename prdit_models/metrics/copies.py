"""How far a volume is from the nearest one of a set: what tells a good sample from a copy of a training volume."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Volumes = NDArray[np.float32]


def nearest(volume: Volumes, references: Volumes, max_shift: int = 0) -> tuple[float, int]:
    """Root mean square difference to the nearest reference, and which one that is.

    A copy of a training volume may be moved, since trainings move their boxes: each reference is tried at every whole-voxel shift
    up to `max_shift` on every axis, compared where both overlap.

    Args:
        volume: shape (D, H, W).
        references: shape (n, D, H, W), n >= 1.
        max_shift: voxels.
    Returns: (distance in the volumes' unit, index of the reference).
    Raises: ValueError: shapes that do not fit, no references, or a shift that leaves no overlap.
    """
    if references.ndim != 4 or len(references) == 0 or references.shape[1:] != volume.shape:
        raise ValueError(
            f"nearest got a volume {volume.shape} and references {references.shape}; expected (D, H, W) and (n >= 1, D, H, W)."
        )
    if not 0 <= max_shift < min(volume.shape):
        raise ValueError(
            f"max_shift is {max_shift}; expected 0 to {min(volume.shape) - 1} for a volume {volume.shape}."
        )
    best = np.full(len(references), np.inf)
    for shift in itertools.product(range(-max_shift, max_shift + 1), repeat=3):
        here, there = _overlap(shift)
        squared = np.square(references[(slice(None), *there)] - volume[here])
        best = np.minimum(best, squared.mean(axis=(1, 2, 3), dtype=np.float64))
    index = int(best.argmin())
    return float(np.sqrt(best[index])), index


def _overlap(shift: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where an array and one moved by `shift` voxels overlap: slices of the first, slices of the second."""
    here = tuple(slice(max(s, 0), min(s, 0) or None) for s in shift)
    there = tuple(slice(max(-s, 0), min(-s, 0) or None) for s in shift)
    return here, there
