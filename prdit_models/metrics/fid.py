"""Fréchet distance between two sets of features."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def feature_matrix(features: ArrayLike, name: str) -> Matrix:
    """Features as a float64 matrix (n, d).

    Raises: ValueError: if it is not a finite matrix, or n < 2.
    """
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name} features have shape {matrix.shape}; expected (n, d).")
    if matrix.shape[0] < 2:
        raise ValueError(f"{name} features hold {matrix.shape[0]} volume(s); a distance between sets needs at least 2.")
    bad = int((~np.isfinite(matrix)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{name} features of {bad} volume(s) are not finite; look at those volumes before comparing sets."
        )
    return matrix


def check_same_width(first: Matrix, second: Matrix) -> None:
    """Raise ValueError unless both sets have features of one width."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of width {first.shape[1]} and {second.shape[1]} cannot be compared; use one extractor for both."
        )


def _factor(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Mean, and a factor F with FᵀF = the covariance (ddof 1), of at most d rows."""
    mean = matrix.mean(axis=0)
    factor = (matrix - mean) / np.sqrt(matrix.shape[0] - 1)
    if factor.shape[0] > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")  # same FᵀF, d rows instead of n
    return mean, factor


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Fréchet distance of Gaussians fitted to two feature sets: |μ₁-μ₂|² + tr S₁ + tr S₂ - 2·tr √(S₁S₂).

    With S₁ = AᵀA and S₂ = BᵀB, tr √(S₁S₂) is the nuclear norm of A·Bᵀ: singular values of a matrix of at most n₁ x n₂, exact
    where the product is singular (n < d), without the d x d matrix root of the published code.

    Args:
        real: features of the real volumes, shape (n, d), n >= 2.
        generated: features of the generated volumes, shape (m, d), m >= 2.
    Returns: the distance, float64 (not scaled by 10³), >= 0 up to rounding.
    Raises: ValueError: for wrong shapes, n < 2 or values that are not finite.
    Source: Heusel et al. 2017; SPEC §6.
    """
    first, second = feature_matrix(real, "real"), feature_matrix(generated, "generated")
    check_same_width(first, second)
    mean1, factor1 = _factor(first)
    mean2, factor2 = _factor(second)
    cross = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    return float(np.square(mean1 - mean2).sum() + np.square(factor1).sum() + np.square(factor2).sum() - 2.0 * cross)
