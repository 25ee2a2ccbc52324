"""The order test: real volumes must be nearer to real ones than blurred volumes are, and those nearer than noised ones."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy import ndimage

from prdit_models.metrics.metric import About, Figure, Hu

Degradation = Literal["real", "blurred", "noised"]
DEGRADATIONS: tuple[Degradation, ...] = ("real", "blurred", "noised")
BLUR_VOXELS = 1.0  # standard deviation of the Gaussian
NOISE_HU = 500.0  # standard deviation; half the distance of lung and tissue


def degraded(hu: Hu, how: Degradation, seed: int) -> Hu:
    """A volume (S, S, S) in HU, as it is, blurred, or with white noise; not saturated."""
    if how == "blurred":
        blurred: Hu = ndimage.gaussian_filter(hu, BLUR_VOXELS, mode="nearest")
        return blurred
    if how == "noised":
        return hu + np.random.default_rng(seed).normal(0.0, NOISE_HU, hu.shape).astype(np.float32)
    return hu


def blind(about: Mapping[str, About], references: Mapping[str, Mapping[str, Figure]]) -> dict[str, str]:
    """Figures that do not order the references as their `better` says, each with what was measured.

    Args:
        about: of all figures.
        references: figures of real volumes against others, by `DEGRADATIONS`.
    """
    found = {}
    for name, figure in about.items():
        values = [references[how][name].value if name in references[how] else None for how in DEGRADATIONS]
        known = [value for value in values if value is not None]
        if not figure.better or len(known) < len(values):
            continue
        ordered = known if figure.better == "lower" else known[::-1]
        if not ordered[0] < ordered[1] < ordered[2]:
            words = ", ".join(f"{how} {value:.4g}" for how, value in zip(DEGRADATIONS, known, strict=True))
            found[name] = f"Blind here: it does not order real, blurred and noised volumes ({words})."
    return found
