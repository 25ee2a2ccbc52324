"""Maximum mean discrepancy with a Gaussian kernel and the published median bandwidth."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prdit_models.metrics.fid import Matrix, check_same_width, feature_matrix

BLOCK_ROWS = 512


@dataclass(frozen=True)
class MMDResult:
    """A biased MMD estimate.

    Attributes:
        mmd: √max(MMD², 0), the reported value.
        mmd2: MMD² with the diagonals included.
        gamma: kernel parameter, k(u, v) = exp(-γ|u - v|²).
    """

    mmd: float
    mmd2: float
    gamma: float


def _squared_distances(first: Matrix, second: Matrix, rows: int) -> Iterator[tuple[int, Matrix]]:
    """Blocks (start row, squared distances (<= rows, m)) of the distance matrix."""
    second_norms = np.einsum("ij,ij->i", second, second)
    for start in range(0, first.shape[0], rows):
        block = first[start : start + rows]
        distances = block @ second.T
        distances *= -2.0
        distances += np.einsum("ij,ij->i", block, block)[:, None]
        distances += second_norms
        yield start, np.maximum(distances, 0.0, out=distances)


def median_squared_distance(features: ArrayLike, *, block_rows: int = BLOCK_ROWS) -> float:
    """Lower median of all n² squared distances within one set, the n zeros of a volume to itself included.

    Only the n(n-1)/2 different pairs are kept; each stands for two entries of the matrix.

    Args:
        features: shape (n, d), n >= 2.
        block_rows: rows of the distance matrix made at a time.
    Raises: ValueError: for wrong shapes, n < 2 or values that are not finite.
    Source: SPEC §6 (published bandwidth).
    """
    matrix = feature_matrix(features, "real")
    matrix = matrix - matrix.mean(axis=0)  # distances do not change, cancellation in |u|² + |v|² - 2uv shrinks
    num = matrix.shape[0]
    pairs = np.empty(num * (num - 1) // 2)
    filled = 0
    for start, distances in _squared_distances(matrix, matrix, block_rows):
        for row, values in enumerate(distances, start=start):
            piece = values[row + 1 :]
            pairs[filled : filled + piece.size] = piece
            filled += piece.size
    rank = (num * num - 1) // 2  # of the lower median in the sorted n² values
    if rank < num:
        return 0.0
    index = (rank - num) // 2
    return float(np.partition(pairs, index)[index])


def _kernel_mean(first: Matrix, second: Matrix, gamma: float, rows: int) -> float:
    total = 0.0
    for start, distances in _squared_distances(first, second, rows):
        if first is second:  # rounding must not touch the exact k(u, u) = 1
            local = np.arange(distances.shape[0])
            distances[local, start + local] = 0.0
        distances *= -gamma
        total += float(np.exp(distances, out=distances).sum())
    return total / (first.shape[0] * second.shape[0])


def maximum_mean_discrepancy(
    real: ArrayLike, generated: ArrayLike, *, gamma: float | None = None, block_rows: int = BLOCK_ROWS
) -> MMDResult:
    """Biased MMD between two feature sets, in blocks so that memory stays at block_rows x max(n, m).

    Args:
        real: features of the real volumes, shape (n, d), n >= 2; they alone set the bandwidth.
        generated: features of the generated volumes, shape (m, d), m >= 2.
        gamma: kernel parameter; by default 1 / (2·`median_squared_distance(real)`).
        block_rows: rows of a distance matrix made at a time.
    Raises: ValueError: for wrong shapes, n < 2, values that are not finite, or a median of 0 without a given gamma.
    Source: Gretton et al. 2012; SPEC §6.
    """
    first, second = feature_matrix(real, "real"), feature_matrix(generated, "generated")
    check_same_width(first, second)
    if gamma is None:
        median = median_squared_distance(first, block_rows=block_rows)
        if median <= 0.0:
            raise ValueError(
                f"The median squared distance of {first.shape[0]} real volumes is 0 (two volumes, or duplicates): the "
                "bandwidth is undefined. Use more distinct volumes, or give gamma."
            )
        gamma = 1.0 / (2.0 * median)
    elif not gamma > 0.0:
        raise ValueError(f"gamma is {gamma}; expected a positive number.")
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    within_real = _kernel_mean(first, first, gamma, block_rows)
    within_generated = _kernel_mean(second, second, gamma, block_rows)
    across = _kernel_mean(first, second, gamma, block_rows)
    mmd2 = within_real + within_generated - 2.0 * across
    return MMDResult(mmd=float(np.sqrt(max(mmd2, 0.0))), mmd2=mmd2, gamma=gamma)
