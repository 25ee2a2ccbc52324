"""Means over random pairs of one side's volumes: what tells how much volumes differ from each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.spread import MIN_VOLUMES, Spread

Pairs = NDArray[np.int64]


def random_pairs(num_volumes: int, most: int, seed: int) -> Pairs:
    """Different unordered pairs i < j of volumes, all of them where there are no more than `most`; sorted, shape (p, 2).

    Args:
        num_volumes: at least 2.
        most: pairs.
        seed: of the draw.
    """
    total = num_volumes * (num_volumes - 1) // 2
    rng = np.random.default_rng(seed)
    drawn = np.arange(total) if total <= most else rng.choice(total, most, replace=False, shuffle=False)
    second = ((1 + np.sqrt(1 + 8 * drawn)) // 2).astype(np.int64)  # pair number j·(j - 1)/2 + i
    pairs = np.stack([drawn - second * (second - 1) // 2, second], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def pair_spread(values: Sequence[float], pairs: Pairs) -> Spread | None:
    """Variance of a mean over pairs; pairs that share a volume are not independent.

    Every volume is left out in turn, with its pairs; what a pair moves by itself is counted once, not for each of its volumes. The
    variance is at least that of independent pairs.

    Args:
        values: of the pairs.
        pairs: indices of their volumes, shape (p, 2).
    Returns: None with fewer than `MIN_VOLUMES` volumes or pairs.
    Source: Arvesen, Jackknifing U-statistics (1969); Aronow, Samii & Assenova, Cluster-robust variance estimation for dyadic data
        (2015).
    """
    names, places = np.unique(pairs, return_inverse=True)
    places, num_volumes, num_pairs = places.reshape(pairs.shape), len(names), len(pairs)
    if min(num_volumes, num_pairs) < MIN_VOLUMES:
        return None
    found = np.asarray(values, dtype=np.float64)
    deviations = found - found.mean()
    of_volume = sum(np.bincount(places[:, k], deviations, minlength=num_volumes) for k in range(2))
    without = num_pairs - np.bincount(places.ravel(), minlength=num_volumes)  # pairs that a volume is not in
    moved = np.divide(of_volume, without, where=without > 0, out=np.zeros(num_volumes))
    alone = float(np.square(deviations).sum()) / num_pairs**2  # counted by both volumes of a pair
    variance = max((num_volumes - 1) / num_volumes * float(np.square(moved).sum()) - alone, alone)
    return Spread(variance, min(num_volumes, num_pairs) - 1)
