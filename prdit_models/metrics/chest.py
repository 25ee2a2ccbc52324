"""Anatomy of the two sides: shares that could be a chest, distances of the figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # whose modules are imported when they are used

from prdit_models.metrics.anatomy import LIMITS, Figures, anatomy, failures
from prdit_models.metrics.metric import About, Comparison, Figure, Hu, NoSettings, Setting, Side
from prdit_models.metrics.spread import jackknife_interval, share_interval

MIN_REAL_SHARE = 0.5  # below it, the real volumes show no chest in this view, so generated ones need not either


@dataclass(frozen=True)
class Anatomy:
    """What is measured of one volume.

    Attributes:
        figures: by the names of `LIMITS`.
        failed: names of those outside their limits.
    """

    figures: Figures
    failed: list[str]

    @classmethod
    def of(cls, hu: Hu, voxel_mm: float) -> "Anatomy":
        """Measure one volume (S, S, S) in HU, saturated to the window of the checkpoint."""
        figures = anatomy(hu, voxel_mm)
        return cls(figures, failures(figures, voxel_mm))


def why_left_out(real: Sequence[Anatomy]) -> str:
    """Why anatomy is not measured in this view, or an empty text: the real volumes must look like a chest themselves."""
    passed = sum(not volume.failed for volume in real)
    if passed >= MIN_REAL_SHARE * len(real):
        return ""
    worst, count = Counter(name for volume in real for name in volume.failed).most_common(1)[0]
    return (
        f"Anatomy figures are left out: {passed} of {len(real)} real volumes look like a chest in this view (most often outside "
        f"its limits: {LIMITS[worst].title}, in {count}), so generated ones are not judged by it. The figures are made for views "
        "of a whole chest (docs/anatomy.md)."
    )


def anatomy_figures(
    real: Sequence[Anatomy], generated: Sequence[Anatomy], *, intervals: bool = False
) -> dict[str, Figure]:
    """Share of volumes inside all limits, and for every figure the Wasserstein-1 distance of its values on both sides.

    Args:
        real, generated: of the volumes.
        intervals: whether to say how far the distances would vary; the shares always have one.
    """
    sizes: dict[str, Any] = {"n_real": len(real), "n_generated": len(generated)}
    figures = {}
    for name, side in (("anatomy_pass_share", generated), ("anatomy_pass_share_real", real)):
        passed = sum(not volume.failed for volume in side)
        note = f"{passed} of {len(side)} volumes are inside all {len(LIMITS)} limits."
        figures[name] = Figure(passed / len(side), **sizes, interval=share_interval(passed, len(side)), note=note)
    for name, limit in LIMITS.items():
        values = [
            np.array([v for volume in side if (v := volume.figures[name]) is not None]) for side in (real, generated)
        ]
        counts: dict[str, Any] = {"n_real": len(values[0]), "n_generated": len(values[1]), "unit": limit.unit}
        if min(map(len, values)) == 0:
            figures[f"anatomy_{name}_distance"] = Figure(None, **counts, note="Not defined for any volume of a side.")
            continue
        interval = jackknife_interval(scipy.stats.wasserstein_distance, *values, low=0.0) if intervals else None
        figures[f"anatomy_{name}_distance"] = Figure(
            float(scipy.stats.wasserstein_distance(*values)), **counts, interval=interval
        )
    return figures


class AnatomyMetric:
    """Shares of plausible volumes, where the real ones look like a chest."""

    settings = NoSettings
    figures: Mapping[str, About] = {
        "anatomy_pass_share": About(
            "Samples that could be a chest",
            source="Limits fixed on scans and phantoms (docs/anatomy.md)",
            caveat="Plausible is not good, and copies of training volumes pass.",
        ),
        "anatomy_pass_share_real": About("Real volumes that could be a chest"),
    } | {
        f"anatomy_{name}_distance": About(
            f"Distance of {limit.title}",
            source="Wasserstein-1 of the values of both sides, in their unit",
            caveat="Gross anatomy on a grid of 8 mm: fine detail does not move it.",
        )
        for name, limit in LIMITS.items()
    }

    def of_volume(self, hu: Hu, setting: Setting) -> Anatomy:
        """Its figures, and which are outside their limits."""
        return Anatomy.of(hu, setting.voxel_mm)

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """See `anatomy_figures`; `details` hold the figures by volume."""
        sides = {"real": real.seen["anatomy"], "generated": generated.seen["anatomy"]}
        if left_out := why_left_out(sides["real"]):
            return Comparison({}, (left_out,), {"left_out": left_out})
        details: dict[str, Any] = {
            "left_out": "",
            "limits": {name: asdict(limit) for name, limit in LIMITS.items()},
        }
        for name, side in (("real", real), ("generated", generated)):
            rows = zip(side.ids, sides[name], strict=True)
            details[name] = {volume: {"figures": seen.figures, "failed": seen.failed} for volume, seen in rows}
        return Comparison(anatomy_figures(**sides, intervals=setting.num_subsamples > 0), details=details)


ANATOMY = AnatomyMetric()
