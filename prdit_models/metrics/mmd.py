"""MMD: maximum mean discrepancy with a Gaussian kernel and the published median bandwidth, as published and unbiased."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.intervals import Range
from prdit_models.metrics.kid import unbiased_mmd2
from prdit_models.metrics.metric import About
from prdit_models.metrics.pairs import Matrix, Pairs, feature_matrix, feature_sets, from_products, squared_distances

BLOCK_ROWS = 512


@dataclass(frozen=True)
class MMDResult:
    """Two estimates with one kernel.

    Attributes:
        mmd: √max(MMD², 0) of the biased estimate, the published value.
        mmd2: MMD² with the diagonals included: biased upward, above 0 for two halves of one set.
        unbiased: MMD² without the diagonals; below 0 where the sets are as near as two halves of one.
        gamma: kernel parameter, k(u, v) = exp(-γ|u - v|²).
    """

    mmd: float
    mmd2: float
    unbiased: float
    gamma: float


def _squared_distances(first: Matrix, second: Matrix, rows: int) -> Iterator[tuple[int, Matrix]]:
    """Blocks (start row, squared distances (<= rows, m)) of the distance matrix."""
    second_norms = np.einsum("ij,ij->i", second, second)
    for start in range(0, first.shape[0], rows):
        block = first[start : start + rows]
        yield start, from_products(block @ second.T, np.einsum("ij,ij->i", block, block), second_norms)


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
    return _median_with_zeros(pairs, num)


def _median_with_zeros(pairs: Matrix, num: int) -> float:
    """Lower median of n² squared distances from those of the n(n-1)/2 different pairs."""
    rank = (num * num - 1) // 2  # of the lower median in the sorted n² values
    if rank < num:
        return 0.0
    index = (rank - num) // 2
    return float(np.partition(pairs, index)[index])


def _bandwidth(median: float, num_real: int) -> float:
    """γ of the published kernel."""
    if median <= 0.0:
        raise ValueError(
            f"The median squared distance of {num_real} real volumes is 0 (two volumes, or duplicates): the "
            "bandwidth is undefined. Use more distinct volumes, or give gamma."
        )
    return 1.0 / (2.0 * median)


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
    """MMD between two feature sets, in blocks so that memory stays at block_rows x max(n, m).

    Args:
        real: features of the real volumes, shape (n, d), n >= 2; they alone set the bandwidth.
        generated: features of the generated volumes, shape (m, d), m >= 2.
        gamma: kernel parameter; by default 1 / (2·`median_squared_distance(real)`).
        block_rows: rows of a distance matrix made at a time.
    Raises: ValueError: for wrong shapes, n < 2, values that are not finite, or a median of 0 without a given gamma.
    Source: Gretton et al. 2012; SPEC §6.
    """
    first, second = feature_sets(real, generated)
    if gamma is None:
        gamma = _bandwidth(median_squared_distance(first, block_rows=block_rows), len(first))
    elif not gamma > 0.0:
        raise ValueError(f"gamma is {gamma}; expected a positive number.")
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    within_real = _kernel_mean(first, first, gamma, block_rows)
    within_generated = _kernel_mean(second, second, gamma, block_rows)
    across = _kernel_mean(first, second, gamma, block_rows)
    num_real, num_generated = len(first), len(second)
    unbiased = (
        (num_real * within_real - 1.0) / (num_real - 1.0)
        + (num_generated * within_generated - 1.0) / (num_generated - 1.0)
        - 2.0 * across
    )
    mmd2 = within_real + within_generated - 2.0 * across
    return MMDResult(mmd=float(np.sqrt(max(mmd2, 0.0))), mmd2=mmd2, unbiased=unbiased, gamma=gamma)


class MaximumMeanDiscrepancy(FeatureDistance):
    """Row `mmd`: the published figure, and MMD² of the same kernel without its bias."""

    name = "mmd"
    about: Mapping[str, About] = {
        "mmd": About(
            "MMD",
            "lower",
            "Gretton et al. 2012; Gaussian kernel, bandwidth from the median of the real volumes; biased as published",
            "Biased upward: above 0 for two halves of one set; compare only at the same n. The bandwidth follows the real volumes.",
        ),
        "mmd_unbiased": About(
            "MMD², unbiased",
            "lower",
            "Gretton et al. 2012, lemma 6; the same kernel",
            "A square, unlike MMD, and below 0 where both sides are alike. The bandwidth follows the real volumes.",
        ),
    }
    ranges: Mapping[str, Range] = {"mmd": "positive", "mmd_unbiased": "any"}
    unbiased = frozenset({"mmd_unbiased"})

    def values(self, real: Matrix, generated: Matrix, settings: object) -> dict[str, float]:
        """Of all volumes, without a matrix of all pairs."""
        result = maximum_mean_discrepancy(real, generated)
        return {"mmd": result.mmd, "mmd_unbiased": result.unbiased}

    def pairs(self, real: Matrix, generated: Matrix) -> Pairs:
        """Squared distances: every subset has a bandwidth of its own."""
        return squared_distances(real, generated)

    def of_pairs(self, pairs: Pairs, settings: object) -> dict[str, float]:
        """Of a subset."""
        num_real = len(pairs.real)
        median = _median_with_zeros(pairs.real[np.triu_indices(num_real, 1)], num_real)
        gamma = _bandwidth(median, num_real)
        kernel = Pairs(*(np.exp(-gamma * squared) for squared in (pairs.real, pairs.across, pairs.generated)))
        biased = float(kernel.real.mean() + kernel.generated.mean() - 2.0 * kernel.across.mean())
        return {"mmd": float(np.sqrt(max(biased, 0.0))), "mmd_unbiased": unbiased_mmd2(kernel)}


METRIC = MaximumMeanDiscrepancy()
