"""The difference of two models' losses on the same volumes, with an interval over patients."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import scipy  # whose modules are imported when they are used

from prdit_models.metrics.metric import LEVEL

_MOST = 1_000_000  # patients; more are not worth a number


class MeanDifference(TypedDict):
    """A mean difference and where its expectation lies.

    Attributes:
        value: mean over patients of their mean difference, second minus first.
        low, high: of the interval.
        level: nominal coverage.
        num_patients, num_volumes: behind it.
        num_needed: patients by which a difference of this size, with this spread, would lie beyond noise; None where the spread or
            the difference is 0.
        method: one sentence.
    """

    value: float
    low: float
    high: float
    level: float
    num_patients: int
    num_volumes: int
    num_needed: int | None
    method: str


def mean_difference(
    first: Mapping[str, float], second: Mapping[str, float], patients: Mapping[str, str], *, level: float = LEVEL
) -> MeanDifference:
    """Mean difference of paired numbers, with Student's interval over patients: volumes of one patient are not independent.

    Every patient counts once, however many volumes there are of them. Coverage by simulation, also of skewed differences: the
    module's test.

    Args:
        first, second: numbers by volume id, of the same volumes.
        patients: patient by volume id.
        level: of the interval.
    Raises: ValueError: other volumes on both sides, numbers that are not finite, or fewer than two patients.
    """
    if first.keys() != second.keys() or not first.keys() <= patients.keys():
        raise ValueError(
            f"{len(first)} and {len(second)} volumes, of {len(patients)} the patient is known; a paired difference needs the same "
            "volumes, and each one's patient."
        )
    by_patient: dict[str, list[float]] = {}
    for name in sorted(first):
        by_patient.setdefault(patients[name], []).append(second[name] - first[name])
    means = np.array([np.mean(each) for each in by_patient.values()], dtype=np.float64)
    if len(means) < 2 or not np.isfinite(means).all():
        raise ValueError(f"{len(means)} patient(s); an interval needs two or more, and finite numbers.")
    value, spread = float(means.mean()), float(means.std(ddof=1))
    half = _half_width(spread, len(means), level)
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "level": level,
        "num_patients": len(means),
        "num_volumes": len(first),
        "num_needed": _needed(abs(value), spread, level),
        "method": "Student's t over the patients' mean differences",
    }


def _half_width(spread: float, patients: int, level: float) -> float:
    return float(scipy.stats.t.ppf((1 + level) / 2, patients - 1)) * spread / float(np.sqrt(patients))


def _needed(distance: float, spread: float, level: float) -> int | None:
    """Fewest patients with which an interval of half-width t·spread/√n is narrower than the distance."""
    if not distance > 0 or not spread > 0:
        return None
    low, high = 1, 2
    while _half_width(spread, high, level) >= distance:
        if high >= _MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _half_width(spread, middle, level) >= distance:
            low = middle
        else:
            high = middle
    return high
