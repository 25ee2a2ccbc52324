"""Anatomy of the two sides: shares that could be a chest, distances of the figures, nearest training volumes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from prdit_models.metrics.anatomy import LIMITS, Figures, anatomy, failures, pooled
from prdit_models.metrics.copies import nearest, pairwise
from prdit_models.metrics.metric import LEVEL, Comparison, Figure, Hu, Setting, Side

SHIFT_MM = 16.0  # the shipped configurations shift training boxes by this much, so a copy may be shifted as far
COPY_RATIO = 0.5  # samples this much nearer to a training volume than held-out patients are may be copies
MIN_REAL_SHARE = 0.5  # below it, the real volumes show no chest in this view, so generated ones need not either


@dataclass(frozen=True)
class Anatomy:
    """What is measured of one volume.

    Attributes:
        figures: by the names of `LIMITS`.
        failed: names of those outside their limits.
        coarse: the volume on a grid of about 8 mm, HU.
    """

    figures: Figures
    failed: list[str]
    coarse: Hu

    @classmethod
    def of(cls, hu: Hu, voxel_mm: float) -> "Anatomy":
        """Measure one volume (S, S, S) in HU, saturated to the window of the checkpoint."""
        figures = anatomy(hu, voxel_mm)
        return cls(figures, failures(figures, voxel_mm), pooled(hu, voxel_mm))


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


def anatomy_figures(real: Sequence[Anatomy], generated: Sequence[Anatomy]) -> dict[str, Figure]:
    """Share of volumes inside all limits, and for every figure the Wasserstein-1 distance of its values on both sides."""
    sizes: dict[str, Any] = {"n_real": len(real), "n_generated": len(generated)}
    figures = {}
    for name, side in (("anatomy_pass_share", generated), ("anatomy_pass_share_real", real)):
        passed = sum(not volume.failed for volume in side)
        interval = stats.binomtest(passed, len(side)).proportion_ci(LEVEL, method="wilson")
        bounds = {"low": interval.low, "high": interval.high, "level": LEVEL, "method": "Wilson score"}
        note = f"{passed} of {len(side)} volumes are inside all {len(LIMITS)} limits."
        figures[name] = Figure(passed / len(side), **sizes, interval=bounds, note=note)
    for name, limit in LIMITS.items():
        values = [[v for volume in side if (v := volume.figures[name]) is not None] for side in (real, generated)]
        counts: dict[str, Any] = {"n_real": len(values[0]), "n_generated": len(values[1])}
        distance = float(stats.wasserstein_distance(*values)) if all(values) else None
        note = "" if distance is not None else "Not defined for any volume of a side."
        figures[f"anatomy_{name}_distance"] = Figure(distance, **counts, unit=limit.unit, note=note)
    return figures


@dataclass(frozen=True)
class Nearest:
    """The training volume a volume is nearest to, and how far that is (root mean square, HU, on a grid of about 8 mm)."""

    volume_id: str
    distance_hu: float


def nearest_training(volumes: Sequence[Anatomy], training: dict[str, Anatomy], box_mm: float) -> list[Nearest]:
    """For each volume the nearest training volume, boxes shifted by up to `SHIFT_MM`.

    Args:
        volumes: of one side.
        training: training volumes by id, at least one.
        box_mm: edge of the volumes.
    """
    if not volumes:
        return []
    references = np.stack([volume.coarse for volume in training.values()])
    shift = int(SHIFT_MM * references.shape[1] / box_mm)
    ids = list(training)
    distances, indices = nearest(np.stack([volume.coarse for volume in volumes]), references, shift)
    return [Nearest(ids[index], float(distance)) for distance, index in zip(distances, indices, strict=True)]


def nearest_figures(generated: Sequence[Nearest], held_out: Sequence[Nearest], num_training: int) -> dict[str, Figure]:
    """Median and smallest distance of the samples to their nearest training volume, beside the held-out volumes' median."""
    sizes: dict[str, Any] = {"n_real": num_training, "n_generated": len(generated)}
    distances = [volume.distance_hu for volume in generated]
    beside = [volume.distance_hu for volume in held_out]
    note = (
        "Root mean square on a grid of about 8 mm. Near 0: a copy. Samples of a good model are about as far from the training "
        "volumes as held-out patients are."
    )
    figures = {
        "nearest_training_distance": Figure(float(np.median(distances)), **sizes, unit="HU", note=note),
        "nearest_training_distance_min": Figure(float(np.min(distances)), **sizes, unit="HU", note=note),
    }
    if beside:
        value = float(np.median(beside))
        counts: dict[str, Any] = {"n_real": num_training, "n_generated": len(held_out)}
        held = "Held-out volumes in place of generated ones: the scale the two figures above are read by."
        figures["nearest_training_distance_held_out"] = Figure(value, **counts, unit="HU", note=held)
    return figures


def spread_figures(real: Sequence[Anatomy], generated: Sequence[Anatomy]) -> dict[str, Figure]:
    """Median distance between two volumes of a side: samples of a model that has collapsed are all alike."""
    sizes: dict[str, Any] = {"n_real": len(real), "n_generated": len(generated), "unit": "HU"}
    note = "Median over pairs, root mean square on a grid of about 8 mm. Far below the real volumes': the samples are all alike."
    figures = {}
    for name, side in (("pairwise_distance", generated), ("pairwise_distance_real", real)):
        distances = pairwise(np.stack([volume.coarse for volume in side]))
        figures[name] = Figure(float(np.median(distances)), **sizes, note=note)
    return figures


def copies_warning(figures: dict[str, Figure]) -> str:
    """A sentence where the samples are much nearer to training volumes than held-out patients are, else an empty text."""
    generated, held_out = (
        figures[name].value if name in figures else None
        for name in ("nearest_training_distance", "nearest_training_distance_held_out")
    )
    if generated is None or held_out is None or generated >= COPY_RATIO * held_out:
        return ""
    return (
        f"Samples may be copies: they are {generated:.0f} HU from their nearest training volume, held-out volumes "
        f"{held_out:.0f} HU. A share of plausible volumes says little then; train on more patients."
    )


class AnatomyMetric:
    """Shares of plausible volumes, where the real ones look like a chest."""

    titles: Mapping[str, str] = {
        "anatomy_pass_share": "Samples that could be a chest",
        "anatomy_pass_share_real": "Real volumes that could be",
    }

    def of_volume(self, hu: Hu, setting: Setting) -> Anatomy:
        """Its figures, and the volume on a coarse grid."""
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
        return Comparison(anatomy_figures(**sides), details=details)


class CopiesMetric:
    """Distances of the samples to training volumes and to each other: what distinguishes samples from copies."""

    titles: Mapping[str, str] = {
        "nearest_training_distance": "Samples to nearest training volume, median",
        "nearest_training_distance_min": "Samples to nearest training volume, smallest",
        "nearest_training_distance_held_out": "Held-out volumes to nearest training volume",
        "pairwise_distance": "Between two samples",
        "pairwise_distance_real": "Between two real volumes",
    }

    def of_volume(self, hu: Hu, setting: Setting) -> None:
        """Nothing of its own: it works on what `anatomy` keeps."""

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Nearest training volumes only where the model was trained on this split; `details` hold them by generated volume."""
        seen, drawn = real.seen["anatomy"], generated.seen["anatomy"]
        figures: dict[str, Figure] = {}
        details: dict[str, Any] = {"copies": "", "nearest_training": {}}
        if setting.trained_on_split:
            training = {real.ids[place]: seen[place] for place in real.of_role("train")}
            held_out = [seen[place] for place in real.of_role("val")]
            box_mm = setting.voxel_mm * setting.size
            near = nearest_training(drawn, training, box_mm)
            figures = nearest_figures(near, nearest_training(held_out, training, box_mm), len(training))
            details["copies"] = copies_warning(figures)
            details["nearest_training"] = {name: asdict(found) for name, found in zip(generated.ids, near, strict=True)}
        figures |= spread_figures(seen, drawn)
        return Comparison(figures, tuple(filter(None, (details["copies"],))), details)


ANATOMY = AnatomyMetric()
COPIES = CopiesMetric()
