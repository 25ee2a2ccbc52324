"""Precision, recall, density and coverage: nearest neighbours in feature space."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.intervals import Range
from prdit_models.metrics.metric import About
from prdit_models.metrics.pairs import Matrix, Pairs, feature_sets, squared_distances

_IMPROVED = "Kynkäänniemi et al. 2019"
_NAEEM = "Naeem et al. 2020"


@dataclass(frozen=True)
class NeighbourSettings:
    """Settings of the metric.

    Attributes:
        nearest: the ball of a volume reaches to its so-manieth nearest neighbour of the same set (Naeem et al. 2020: 5).
    """

    nearest: int = 5

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise ValueError(f"nearest is {self.nearest}; expected 1 or more.")


def precision_recall_density_coverage(real: ArrayLike, generated: ArrayLike, nearest: int = 5) -> dict[str, float]:
    """Shares and counts of volumes in the balls that reach to the k-th nearest neighbour of the same set.

    Precision is the share of generated volumes in a real ball, recall of real volumes in a generated ball, coverage of real balls
    with a generated volume, and density the number of real balls around a generated volume, divided by k (near 1 for two halves
    of one set). A volume on the edge of a ball is inside, as in Kynkäänniemi et al.

    Args:
        real: features of the real volumes, shape (n, d), n > k.
        generated: features of the generated volumes, shape (m, d), m > k.
        nearest: k.
    Returns: by name; density may exceed 1.
    Raises: ValueError: for wrong shapes, values that are not finite, or k or fewer volumes on a side.
    Source: Kynkäänniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage).
    """
    return of_distances(squared_distances(*feature_sets(real, generated)), nearest)


def of_distances(pairs: Pairs, nearest: int) -> dict[str, float]:
    """`precision_recall_density_coverage` from squared distances."""
    smallest = min(pairs.across.shape)
    if smallest <= nearest:
        raise ValueError(
            f"A side has {smallest} volumes; the distance to neighbour {nearest} needs at least {nearest + 1}. Use more "
            "volumes, or fewer neighbours (nearest)."
        )
    # the volume itself is at place 0
    reach_real, reach_generated = (
        np.partition(within, nearest, axis=1)[:, nearest] for within in (pairs.real, pairs.generated)
    )
    in_real = pairs.across <= reach_real[:, None]
    in_generated = pairs.across <= reach_generated
    return {
        "precision": float(in_real.any(axis=0).mean()),
        "recall": float(in_generated.any(axis=1).mean()),
        "density": float(in_real.sum() / (nearest * pairs.across.shape[1])),
        "coverage": float(in_real.any(axis=1).mean()),
    }


class NearestNeighbours(FeatureDistance):
    """Row `prdc`."""

    name = "prdc"
    settings = NeighbourSettings
    about: Mapping[str, About] = {
        "precision": About(
            "Precision",
            "higher",
            _IMPROVED,
            "One outlier among the real volumes has a large ball, which counts as real.",
        ),
        "recall": About(
            "Recall", "higher", _IMPROVED, "Generated outliers have large balls, so noise can have a high recall."
        ),
        "density": About("Density", "higher", _NAEEM, "Exceeds 1 where the samples crowd in the densest part."),
        "coverage": About(
            "Coverage", "higher", _NAEEM, "Grows with the number of generated volumes: compare only at the same n."
        ),
    }
    ranges: Mapping[str, Range] = {
        "precision": "share of generated",
        "recall": "share of real",
        "density": "positive",
        "coverage": "share of real",
    }

    left_out = 0.25

    def min_for_interval(self, settings: NeighbourSettings) -> int:
        """Twice as many as the figures need: below that, the spread of density is too small (tests/bench/coverage.py)."""
        return 2 * (settings.nearest + 1)

    def pairs(self, real: Matrix, generated: Matrix) -> Pairs:
        """Squared distances."""
        return squared_distances(real, generated)

    def of_pairs(self, pairs: Pairs, settings: NeighbourSettings) -> dict[str, float]:
        """Of a subset, or of all."""
        return of_distances(pairs, settings.nearest)


METRIC = NearestNeighbours()
