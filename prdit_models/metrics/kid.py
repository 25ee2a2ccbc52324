"""KID: unbiased squared maximum mean discrepancy with a polynomial kernel."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.intervals import Range
from prdit_models.metrics.metric import About
from prdit_models.metrics.pairs import Matrix, Pairs, feature_sets, inner_products


def kernel_inception_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Unbiased MMD² with the kernel k(u, v) = (u·v/d + 1)³, of all volumes at once.

    The published code averages it over random subsets of 1000 to save memory; the expectation is the same, the spread here is
    smaller.

    Args:
        real: features of the real volumes, shape (n, d), n >= 2.
        generated: features of the generated volumes, shape (m, d), m >= 2.
    Returns: the distance; below 0 where the sets are as near as two halves of one.
    Raises: ValueError: for wrong shapes, n < 2 or values that are not finite.
    Source: Bińkowski et al. 2018, equation 4 and §4.
    """
    return unbiased_mmd2(polynomial_kernel(*feature_sets(real, generated)))


def polynomial_kernel(first: Matrix, second: Matrix) -> Pairs:
    """k(u, v) = (u·v/d + 1)³ of every pair."""
    pairs = inner_products(first, second)
    for kernel in (pairs.real, pairs.across, pairs.generated):
        kernel /= first.shape[1]
        kernel += 1.0
        kernel *= kernel * kernel
    return pairs


def unbiased_mmd2(kernel: Pairs) -> float:
    """MMD² without the pairs of a volume with itself, from the kernel of every pair.

    Source: Gretton et al. 2012, lemma 6.
    """
    within = [
        (block.sum() - np.trace(block)) / (len(block) * (len(block) - 1.0)) for block in (kernel.real, kernel.generated)
    ]
    return float(within[0] + within[1] - 2.0 * kernel.across.mean())


class KernelInceptionDistance(FeatureDistance):
    """Row `kid`."""

    name = "kid"
    about: Mapping[str, About] = {
        "kid": About(
            "KID",
            "lower",
            "Bińkowski et al. 2018; all volumes at once, not multiplied by 10³",
            "Sees moments of features up to the third; depends on their scale, so on the extractor.",
        )
    }
    ranges: Mapping[str, Range] = {"kid": "any"}
    unbiased = frozenset({"kid"})

    def pairs(self, real: Matrix, generated: Matrix) -> Pairs:
        """The polynomial kernel."""
        return polynomial_kernel(real, generated)

    def of_pairs(self, pairs: Pairs, settings: object) -> dict[str, float]:
        """Of a subset, or of all."""
        return {"kid": unbiased_mmd2(pairs)}


METRIC = KernelInceptionDistance()
