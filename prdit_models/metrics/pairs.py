"""Two sets of features, and what is computed once of every pair of volumes so that a subset costs only its own rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]


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


def feature_sets(real: ArrayLike, generated: ArrayLike) -> tuple[Matrix, Matrix]:
    """Both sets as float64 matrices (n, d) and (m, d).

    Raises: ValueError: as `feature_matrix`, or the sets have features of two widths.
    """
    first, second = feature_matrix(real, "real"), feature_matrix(generated, "generated")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of width {first.shape[1]} and {second.shape[1]} cannot be compared; use one extractor for both."
        )
    return first, second


@dataclass(frozen=True)
class Pairs:
    """A number for every pair of volumes.

    Attributes:
        real: within the real set, shape (n, n), symmetric.
        across: of a real and a generated volume, shape (n, m).
        generated: within the generated set, shape (m, m), symmetric.
    """

    real: Matrix
    across: Matrix
    generated: Matrix

    def part(self, rows: Places, columns: Places) -> "Pairs":
        """The pairs of some real and some generated volumes."""
        return Pairs(
            self.real[np.ix_(rows, rows)],
            self.across[np.ix_(rows, columns)],
            self.generated[np.ix_(columns, columns)],
        )


def inner_products(first: Matrix, second: Matrix) -> Pairs:
    """Inner products of the features of every pair."""
    return Pairs(first @ first.T, first @ second.T, second @ second.T)


def from_products(products: Matrix, first: NDArray[np.float64], second: NDArray[np.float64]) -> Matrix:
    """Squared Euclidean distances |u|² + |v|² - 2u·v, in place of the products.

    Args:
        products: of every pair, shape (n, m).
        first, second: squared norms, shapes (n,) and (m,).
    """
    products *= -2.0
    products += first[:, None]
    products += second
    return np.maximum(products, 0.0, out=products)


def squared_distances(first: Matrix, second: Matrix) -> Pairs:
    """Squared Euclidean distances of every pair; exactly 0 from a volume to itself."""
    centre = first.mean(axis=0)  # distances do not change, cancellation in |u|² + |v|² - 2uv shrinks
    pairs = inner_products(first - centre, second - centre)
    norms = np.diag(pairs.real).copy(), np.diag(pairs.generated).copy()
    from_products(pairs.real, norms[0], norms[0])
    from_products(pairs.across, norms[0], norms[1])
    from_products(pairs.generated, norms[1], norms[1])
    np.fill_diagonal(pairs.real, 0.0)
    np.fill_diagonal(pairs.generated, 0.0)
    return pairs
