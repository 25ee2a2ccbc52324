"""The nearest volume of a set: candidates by features and on a coarse grid, then voxels at every shift up to a few."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import nn

from prdit_models.metrics.metric import Hu
from prdit_models.metrics.pairs import from_products
from prdit_models.metrics.reading import Recent

Volumes = NDArray[np.float32]
Distances = NDArray[np.float64]
Indices = NDArray[np.int64]
Shift = tuple[int, int, int]

_MOST_CELLS = 16  # of an edge of the coarse grid, which needs a matrix product of all pairs per shift


@dataclass(frozen=True)
class Known:
    """Volumes between which neighbours are searched.

    Attributes:
        ids: of the volumes.
        features: shape (n, d).
        coarse: on a grid of few cells (`coarser`), HU, shape (n, g, g, g).
        read: a volume by its id, HU, shape (S, S, S).
    """

    ids: tuple[str, ...]
    features: NDArray[np.float32]
    coarse: Volumes
    read: Callable[[str], Hu]

    def part(self, places: Sequence[int]) -> Self:
        """Some of them, by their indices."""
        chosen = list(places)
        return type(self)(tuple(self.ids[k] for k in chosen), self.features[chosen], self.coarse[chosen], self.read)


@dataclass(frozen=True)
class Neighbour:
    """The volume that another is nearest to.

    Attributes:
        volume_id: of it.
        distance_hu: root mean square difference where both overlap.
        shift: voxels (z, y, x) by which it is moved to lie on the other.
        mirrored: whether its last axis is reversed before.
    """

    volume_id: str
    distance_hu: float
    shift: Shift
    mirrored: bool = False


def nearest(
    volumes: Known, references: Known, max_shift: int, num_candidates: int, *, mirrored: bool = False
) -> list[Neighbour]:
    """For every volume its nearest reference, boxes moved by up to `max_shift` voxels on every axis.

    Candidates are the nearest references by features and the nearest ones on a coarse grid at every shift; of these, the voxels
    decide. Two kinds, since features of a network say little where its weights are random, and a coarse grid nothing about texture.

    Args:
        volumes: at least one.
        references: at least one, of the same grids.
        max_shift: voxels of what `read` gives.
        num_candidates: of each kind.
        mirrored: whether references with their last axis reversed are compared, too.
    Raises: ValueError: no references, grids that differ, or a shift that leaves no overlap.
    """
    if not references.ids or references.coarse.shape[1:] != volumes.coarse.shape[1:]:
        raise ValueError(
            f"nearest got volumes {volumes.coarse.shape} and references {references.coarse.shape}; expected two sets on one grid, "
            "(n, g, g, g) and (m >= 1, g, g, g)."
        )
    read, found = Recent(references.read), []
    by_features = _first(_squared(volumes.features, references.features), num_candidates)
    by_grid = _first(_coarse_distances(volumes, references, max_shift, mirrored=mirrored), num_candidates)
    for name, candidates in zip(volumes.ids, np.concatenate([by_features, by_grid], axis=1), strict=True):
        search = ShiftSearch(volumes.read(name), max_shift)
        tried = []
        for candidate in np.unique(candidates):
            other = read(references.ids[candidate])
            tried.append(Neighbour(references.ids[candidate], *search(other)))
            if mirrored:
                tried.append(Neighbour(references.ids[candidate], *search(other[..., ::-1]), mirrored=True))
        found.append(min(tried, key=lambda each: each.distance_hu))
    return found


class ShiftSearch:
    """Distances of other volumes to one, at the shift where they are smallest.

    The sum of squared differences at every shift is that of the squares of both where they overlap, minus twice their correlation,
    which is a product of Fourier transforms of the volumes with zeros around them.

    Args:
        volume: shape (D, H, W), float32.
        max_shift: voxels on every axis, both ways.
    Raises: ValueError: a shift that leaves no overlap.
    """

    def __init__(self, volume: Hu, max_shift: int) -> None:
        if volume.ndim != 3 or not 0 <= max_shift < min(volume.shape):
            raise ValueError(
                f"max_shift is {max_shift} for a volume {volume.shape}; expected (D, H, W) and 0 to its smallest edge less one."
            )
        self._volume, self._max_shift = volume, max_shift
        self._padded = [fft.next_fast_len(edge + max_shift, real=True) for edge in volume.shape]
        self._middle = volume.mean()  # near it, squares are small and float32 keeps their differences
        self._transform, self._squares = self._prepared(volume)
        self._counts = _overlap_sums(np.ones_like(volume), max_shift)

    def __call__(self, other: Hu) -> tuple[float, Shift]:
        """Root mean square difference of the other volume, moved by the shift, where both overlap.

        Raises: ValueError: another shape.
        """
        if other.shape != self._volume.shape:
            raise ValueError(f"Volumes of shapes {self._volume.shape} and {other.shape} have no distance.")
        transform, squares = self._prepared(other)
        correlation = fft.irfftn(self._transform * transform.conj(), self._padded, overwrite_x=True)
        wrapped = np.arange(-self._max_shift, self._max_shift + 1)
        correlation = correlation[np.ix_(wrapped, wrapped, wrapped)]
        squared = (self._squares + squares[::-1, ::-1, ::-1] - 2.0 * correlation) / self._counts
        z, y, x = (int(place) - self._max_shift for place in np.unravel_index(squared.argmin(), squared.shape))
        here, there = overlap((z, y, x))
        difference = self._volume[here] - other[there]
        return float(np.sqrt(np.square(difference, out=difference).mean(dtype=np.float64))), (z, y, x)

    def _prepared(self, volume: Hu) -> tuple[NDArray[np.complex64], Distances]:
        near_zero = volume - self._middle
        transform: NDArray[np.complex64] = fft.rfftn(near_zero, self._padded)
        return transform, _overlap_sums(np.square(near_zero, out=near_zero), self._max_shift)


def coarser(volume: Hu) -> Hu:
    """Means of blocks of a volume (S, S, S), such that at most 16 cells remain on an edge."""
    factor = -(-len(volume) // _MOST_CELLS)
    means: Hu = nn.functional.avg_pool3d(torch.from_numpy(volume.astype(np.float32))[None], factor)[0].numpy()
    return means


def pairwise(volumes: Volumes) -> Distances:
    """Root mean square difference of every volume (n, …) to every one, shape (n, n)."""
    rows = volumes.reshape(len(volumes), -1)
    rows = rows - rows.mean(axis=0)  # near it, squares are small and float32 keeps their differences
    products = (rows @ rows.T).astype(np.float64)
    squares = np.diag(products).copy()
    return np.sqrt(from_products(products, squares, squares) / rows.shape[1])


def median_distance(distances: Distances, places: Indices) -> float:
    """Median distance of two different ones of some volumes, given by their indices, from the distances of all (`pairwise`)."""
    return float(np.median(distances[np.ix_(places, places)][np.triu_indices(len(places), 1)]))


def _coarse_distances(volumes: Known, references: Known, max_shift: int, *, mirrored: bool) -> Distances:
    """Mean squared difference of every volume to every reference on their coarse grid, smallest of all shifts, (n, m)."""
    first, cells = volumes.coarse, references.coarse.shape[1]
    most = min(-(-max_shift * cells // len(volumes.read(volumes.ids[0]))), cells - 1)
    smallest = np.full((len(first), len(references.ids)), np.inf)
    for second in (references.coarse, references.coarse[..., ::-1]) if mirrored else (references.coarse,):
        for shift in itertools.product(range(-most, most + 1), repeat=3):
            here, there = overlap(shift)
            a, b = first[(slice(None), *here)], second[(slice(None), *there)]
            rows = a.reshape(len(a), -1), b.reshape(len(b), -1)
            np.minimum(smallest, _squared(*rows) / rows[0].shape[1], out=smallest)
    return smallest


def _squared(first: NDArray[np.float32], second: NDArray[np.float32]) -> Distances:
    """Squared Euclidean distance of every row of one set to every one of the other, shape (n, m)."""
    middle = second.mean(axis=0)  # near it, squares are small and float32 keeps their differences
    a, b = first - middle, second - middle
    squares = [np.einsum("ij,ij->i", x, x, dtype=np.float64) for x in (a, b)]
    return from_products((a @ b.T).astype(np.float64), *squares)


def _first(distances: Distances, count: int) -> Indices:
    """Indices of the smallest entries of every row, at most `count`."""
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def _overlap_sums(values: Hu, max_shift: int) -> Distances:
    """Sums over the part of a volume that lies on another one, at every shift of -m to m, shape (2m + 1,)³."""
    sums: Distances = values.astype(np.float64, copy=False)
    for axis in range(3):
        planes = np.moveaxis(sums, axis, 0)
        total = planes.sum(0, keepdims=True)
        first = np.cumsum(planes[:max_shift], 0)
        last = np.cumsum(planes[::-1][:max_shift], 0)
        sums = np.moveaxis(np.concatenate([total - last[::-1], total, total - first]), 0, axis)
    return sums


def overlap(shift: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where an array and one moved by `shift` voxels overlap: slices of the first, slices of the second."""
    here = tuple(slice(max(s, 0), min(s, 0) or None) for s in shift)
    there = tuple(slice(max(-s, 0), min(-s, 0) or None) for s in shift)
    return here, there
