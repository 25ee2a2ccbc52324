"""FID: Fréchet distance between two sets of features."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike

from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.intervals import Range
from prdit_models.metrics.metric import About
from prdit_models.metrics.pairs import Matrix, Pairs, feature_sets, inner_products
from prdit_models.metrics.threads import one_thread


def _factor(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Mean, and a factor F with FᵀF = the covariance (ddof 1), of at most d rows."""
    mean = matrix.mean(axis=0)
    factor = (matrix - mean) / np.sqrt(matrix.shape[0] - 1)
    if factor.shape[0] > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")  # same FᵀF, d rows instead of n
    return mean, factor


def _nuclear_norm(matrix: Matrix) -> float:
    """Sum of the singular values, in one thread: two take longer, and NumPy's cannot be told."""
    with one_thread():
        return float(torch.linalg.svdvals(torch.from_numpy(matrix)).sum())


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
    first, second = feature_sets(real, generated)
    mean1, factor1 = _factor(first)
    mean2, factor2 = _factor(second)
    cross = _nuclear_norm(factor1 @ factor2.T)
    return float(np.square(mean1 - mean2).sum() + np.square(factor1).sum() + np.square(factor2).sum() - 2.0 * cross)


def frechet_of_products(pairs: Pairs) -> float:
    """`frechet_distance` from inner products of features (any origin): what one subsample of a thousand costs.

    |μ₁-μ₂|² and the traces are means of the products, and A·Bᵀ is the doubly centred block of real with generated.
    """
    num_real, num_generated = pairs.across.shape
    within = [(products.mean(), np.trace(products)) for products in (pairs.real, pairs.generated)]
    means = within[0][0] + within[1][0] - 2.0 * pairs.across.mean()
    traces = [
        (trace - num * mean) / (num - 1) for (mean, trace), num in zip(within, (num_real, num_generated), strict=True)
    ]
    centred = pairs.across - pairs.across.mean(axis=0)
    centred -= centred.mean(axis=1)[:, None]
    cross = _nuclear_norm(centred) / np.sqrt((num_real - 1.0) * (num_generated - 1.0))
    return float(means + sum(traces) - 2.0 * cross)


class FrechetInceptionDistance(FeatureDistance):
    """Row `fid`: the published figure. The name is the field's, though no Inception network is in it."""

    name = "fid"
    about: Mapping[str, About] = {
        "fid": About(
            "FID",
            "lower",
            "Heusel et al. 2017; not multiplied by 10³",
            "Sees mean and covariance of features only, and is biased upward: compare only at the same n.",
        )
    }
    ranges: Mapping[str, Range] = {"fid": "positive"}

    def values(self, real: Matrix, generated: Matrix, settings: object) -> dict[str, float]:
        """Of all volumes, in the form that is fast for any n and d."""
        return {"fid": frechet_distance(real, generated)}

    def pairs(self, real: Matrix, generated: Matrix) -> Pairs:
        """Inner products; the origin is the real mean, as products of large means would round away their differences."""
        centre = real.mean(axis=0)
        return inner_products(real - centre, generated - centre)

    def of_pairs(self, pairs: Pairs, settings: object) -> dict[str, float]:
        """Of a subset."""
        return {"fid": frechet_of_products(pairs)}


METRIC = FrechetInceptionDistance()
