"""Are samples copies of training volumes? Their nearest ones, beside those of held-out volumes; and how alike samples are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import pooled
from prdit_models.metrics.metric import About, Comparison, Figure, Hu, Setting, Side, rounded
from prdit_models.metrics.neighbours import Known, Neighbour, coarser, median_distance, nearest, pairwise
from prdit_models.metrics.spread import MIN_VOLUMES, jackknife_interval, median_interval, share_interval

NOT_TRAINED = (
    "Training volumes are not searched for copies: the model was not trained on this split, so which volumes it has seen is not "
    "known."
)
_SOURCE = "Nearest training volume by voxels, as Meehan et al. (2020) and Akbar et al. (2023) compare it with that of held-out data"


@dataclass(frozen=True)
class MemorisationSettings:
    """Settings of the memorisation report.

    Attributes:
        num_candidates: training volumes whose voxels are compared with a sample's: so many nearest by features, and as many on a
            coarse grid.
        shift_mm: boxes are compared at every shift up to this; the shipped configurations shift training boxes by 16 mm.
        copy_ratio: a sample is called a copy when it is nearer to a training volume than this times the median distance of
            held-out volumes. An image without any detail of its own (the mean of all patients) is at 0.71 times the distance of two
            patients.
        num_closest: pairs listed for pictures.
        mirrored: whether training volumes are compared mirrored, too; needed where the training flips them.
    """

    num_candidates: int = 3
    shift_mm: float = 16.0
    copy_ratio: float = 0.5
    num_closest: int = 8
    mirrored: bool = False

    def __post_init__(self) -> None:
        if min(self.num_candidates, self.num_closest) < 1 or not self.shift_mm >= 0 or not 0 < self.copy_ratio < 1:
            raise ValueError(
                f"num_candidates is {self.num_candidates}, num_closest {self.num_closest}, shift_mm {self.shift_mm} and copy_ratio "
                f"{self.copy_ratio}; expected at least 1, at least 1, at least 0, and a share between 0 and 1."
            )


@dataclass(frozen=True)
class Found:
    """What the search has found.

    Attributes:
        generated: nearest training volume of every sample.
        held_out: of every held-out volume; empty where there are none.
        num_training: volumes that were searched.
        copy_ratio: of the settings.
    """

    generated: list[Neighbour]
    held_out: list[Neighbour]
    num_training: int
    copy_ratio: float

    @cached_property
    def threshold_hu(self) -> float | None:
        """Distance below which a volume is called a copy; None without held-out volumes."""
        if not self.held_out:
            return None
        return self.copy_ratio * float(np.median([each.distance_hu for each in self.held_out]))

    def is_copy(self, neighbour: Neighbour) -> bool:
        """Whether a volume is called a copy of its nearest training volume."""
        return self.threshold_hu is not None and neighbour.distance_hu < self.threshold_hu

    def num_copies(self, side: Sequence[Neighbour]) -> int:
        """Volumes of a side that are called copies."""
        return sum(map(self.is_copy, side))

    @property
    def warning(self) -> str:
        """A sentence where samples are called copies more often than held-out volumes are, else an empty text."""
        copies = [each for each in self.generated if self.is_copy(each)]
        if self.threshold_hu is None or len(copies) * len(self.held_out) <= self.num_copies(self.held_out) * len(
            self.generated
        ):
            return ""
        repeated = len({each.volume_id for each in copies})
        return (
            f"Samples may be copies: {len(copies)} of {len(self.generated)} are nearer than {self.threshold_hu:.0f} HU to a "
            f"training volume ({self.copy_ratio:g} times the median distance of held-out volumes), and {repeated} of "
            f"{self.num_training} training volumes are repeated so. A share of plausible volumes says little then; train on more "
            "patients."
        )


def nearest_figures(found: Found) -> dict[str, Figure]:
    """Distances of samples and held-out volumes to their nearest training volume, and the share that is called copies."""
    distances = {
        side: np.array([each.distance_hu for each in neighbours])
        for side, neighbours in (("generated", found.generated), ("held_out", found.held_out))
    }
    sizes: dict[str, Any] = {"n_real": found.num_training, "n_generated": len(found.generated)}
    held: dict[str, Any] = {"n_real": found.num_training, "n_generated": len(found.held_out)}
    note = (
        "Root mean square over all voxels at the best shift. Near 0: a copy. Samples of a good model are about as far from the "
        "training volumes as held-out patients are."
    )
    middle = {side: float(np.median(each)) for side, each in distances.items() if len(each)}
    interval = median_interval(distances["generated"])
    figures = {
        "nearest_training_distance": Figure(middle["generated"], **sizes, unit="HU", interval=interval, note=note),
        "nearest_training_distance_min": Figure(float(np.min(distances["generated"])), **sizes, unit="HU", note=note),
    }
    if found.threshold_hu is None:
        return figures | {"copy_rate": Figure(None, **sizes, note="No held-out volumes to say what is near.")}
    beside = "Held-out volumes in place of generated ones: the scale the distances of samples are read by."
    if len(found.held_out) < MIN_VOLUMES:
        beside += f" Only {len(found.held_out)}: a rough scale."
    interval = median_interval(distances["held_out"])
    figures["nearest_training_distance_held_out"] = Figure(
        middle["held_out"], **held, unit="HU", interval=interval, note=beside
    )
    limit = (
        f"nearer than {found.threshold_hu:.4g} HU, {found.copy_ratio:g} times the median distance of held-out volumes"
    )
    for name, side, counts in (("copy_rate", found.generated, sizes), ("copy_rate_held_out", found.held_out, held)):
        copies = found.num_copies(side)
        interval = share_interval(copies, len(side))
        figures[name] = Figure(
            copies / len(side), **counts, interval=interval, note=f"{copies} of {len(side)} are {limit}."
        )
    return figures


Kept = NDArray[np.float16]


def spread_figures(real: Sequence[Kept], generated: Sequence[Kept], *, intervals: bool = False) -> dict[str, Figure]:
    """Median distance between two volumes of a side: samples of a model that has collapsed are all alike.

    Args:
        real, generated: volumes on a grid of about 8 mm, HU, each (g, g, g).
        intervals: whether to say how far the figures would vary.
    """
    sizes: dict[str, Any] = {"n_real": len(real), "n_generated": len(generated), "unit": "HU"}
    note = "Median over pairs, root mean square on a grid of about 8 mm. Far below the real volumes': the samples are all alike."
    figures = {}
    for name, side in (("pairwise_distance", generated), ("pairwise_distance_real", real)):
        median = partial(median_distance, pairwise(np.stack(side).astype(np.float32)))
        places = np.arange(len(side))
        interval = jackknife_interval(median, places, low=0.0) if intervals else None
        figures[name] = Figure(median(places), **sizes, interval=interval, note=note)
    return figures


class Memorisation:
    """Distances of the samples to training volumes and to each other: what distinguishes samples from copies."""

    settings = MemorisationSettings
    figures: Mapping[str, About] = {
        "copy_rate": About("Samples that are called copies", "", _SOURCE, "Blur brings a volume nearer to all others."),
        "copy_rate_held_out": About("Held-out volumes that would be called copies", "", _SOURCE),
        "nearest_training_distance": About(
            "Samples to nearest training volume, median",
            "",
            _SOURCE,
            "Candidates are chosen by features and on a coarse grid.",
        ),
        "nearest_training_distance_min": About("Samples to nearest training volume, smallest", "", _SOURCE),
        "nearest_training_distance_held_out": About("Held-out volumes to nearest training volume", "", _SOURCE),
        "pairwise_distance": About("Between two samples", "", "", "Noise keeps samples apart."),
        "pairwise_distance_real": About("Between two real volumes"),
    }

    def of_volume(self, hu: Hu, setting: Setting) -> Kept:
        """The volume on a grid of about 8 mm; whole HU are enough."""
        return pooled(hu, setting.voxel_mm).astype(np.float16)

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """See `nearest_figures` and `spread_figures`; training volumes only where the model was trained on this split.

        `details`: `left_out` (why there is no search), `threshold_hu`, `copy_ratio`, `max_shift` (voxels), `distances_hu` of both
        sides, `closest` pairs for pictures, `nearest_training` of every sample, `repeated`: copies of every training volume.
        """
        settings: MemorisationSettings = setting.settings["memorisation"]
        spread = spread_figures(
            real.seen["memorisation"], generated.seen["memorisation"], intervals=setting.num_subsamples > 0
        )
        if not setting.trained_on_split:
            left_out = "" if setting.reference else NOT_TRAINED
            return Comparison(spread, details={"left_out": left_out, "nearest_training": {}, "closest": []})
        known = _known(real)
        training = known.part(real.of_role("train"))
        max_shift = min(int(settings.shift_mm / setting.voxel_mm), setting.size // 2)
        near, beside = (
            nearest(side, training, max_shift, settings.num_candidates, mirrored=settings.mirrored) if side.ids else []
            for side in (_known(generated), known.part(real.of_role("val")))
        )
        found = Found(near, beside, len(training.ids), settings.copy_ratio)
        details = {"left_out": "", "max_shift": max_shift} | _details(found, generated.ids, settings)
        return Comparison(nearest_figures(found) | spread, tuple(filter(None, (found.warning,))), details)


def _known(side: Side) -> Known:
    return Known(side.ids, side.features, np.stack([coarser(kept) for kept in side.seen["memorisation"]]), side.read)


def _details(found: Found, ids: Sequence[str], settings: MemorisationSettings) -> dict[str, Any]:
    pairs = dict(zip(ids, found.generated, strict=True))
    closest = sorted(pairs, key=lambda name: pairs[name].distance_hu)[: settings.num_closest]
    copies = Counter(each.volume_id for each in found.generated if found.is_copy(each))
    return {
        "threshold_hu": found.threshold_hu,
        "copy_ratio": found.copy_ratio,
        "distances_hu": {
            "generated": rounded([each.distance_hu for each in found.generated]),
            "held_out": rounded([each.distance_hu for each in found.held_out]),
        },
        "closest": [
            {
                "generated": name,
                "training": pairs[name].volume_id,
                "distance_hu": pairs[name].distance_hu,
                "shift": list(pairs[name].shift),
                "mirrored": pairs[name].mirrored,
                "copy": found.is_copy(pairs[name]),
            }
            for name in closest
        ],
        "nearest_training": {name: asdict(each) | {"shift": list(each.shift)} for name, each in pairs.items()},
        "repeated": dict(copies.most_common()),
    }


METRIC = Memorisation()
