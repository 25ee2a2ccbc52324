"""What the drift gate compares with: the volumes that a snapshot lists; without enough of them, the mean of phantoms."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import LIMITS
from storage.documents.snapshot import Snapshot
from storage.errors import StorageError
from storage.phantom.anatomy import Anatomy
from storage.volume_store import VolumeStore
from tasks.drift.measure import BOX_MM, SATURATED_HU, Cells, Measured, measure

_PHANTOMS = 8
logger = logging.getLogger("prdit.drift")


@dataclass
class Reference:
    """The listed volumes of a store, added up.

    Attributes:
        ids: of the volumes that could be read.
        figures: values by name, one per volume that has the figure.
        histograms: of the volumes, each of sum 1, shape (n, bins).
        mean: of their cells; None: there are none.
        unreadable: ids of the others.
    """

    ids: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    histograms: list[NDArray[np.float64]] = field(default_factory=list)
    mean: Cells | None = None
    unreadable: list[str] = field(default_factory=list)

    def add(self, volume_id: str, found: Measured) -> None:
        """Take one volume."""
        self.ids.append(volume_id)
        for name, value in found.figures.items():
            if value is not None:
                self.figures.setdefault(name, []).append(value)
        self.histograms.append(shares(found.histogram))
        number = len(self.ids)
        mean = found.cells if self.mean is None else self.mean + (found.cells - self.mean) / np.float32(number)
        self.mean = mean.astype(np.float32)

    def centre_and_spread(self, name: str) -> tuple[float, float]:
        """Median and robust standard deviation of a figure: 1.48 times the median distance from it, or a floor."""
        values = np.array(self.figures[name])
        middle = float(np.median(values))
        return middle, max(1.4826 * float(np.median(np.abs(values - middle))), FLOORS.get(name, 0.0))

    def passing(self, name: str) -> float:
        """Share of the volumes whose figure is within the limits of a chest; 1 where there are none."""
        values = self.figures.get(name, [])
        return float(np.mean([LIMITS[name].low <= value <= LIMITS[name].high for value in values])) if values else 1.0


# Standard deviations that a figure has in any mixed group of patients and scanners: a store of one scanner's scans is no reason to
# hold those of another one. Measured on nine real series and 40 phantoms, docs/decisions/0017-drift-gate.md.
FLOORS = {
    "body_share": 0.08, "lung_right_l": 0.5, "lung_left_l": 0.5, "lung_hu": 20.0, "tissue_hu": 15.0, "bone_share": 0.02,
    "outside_hu": 20.0, "grain_hu": 3.0, "air_hu": 12.0, "muscle_hu": 10.0,
}  # fmt: skip


def read_reference(store: VolumeStore, snapshot: Snapshot | None) -> Reference:
    """The volumes that a snapshot lists, each read once; a damaged one is left out."""
    found = Reference()
    for volume_id, one in measured(store, sorted(snapshot.volumes) if snapshot else [], found.unreadable):
        found.add(volume_id, one)
    return found


def measured(store: VolumeStore, volume_ids: list[str], unreadable: list[str]) -> Iterator[tuple[str, Measured]]:
    """Measures of volumes one by one; ids of those that cannot be read are added to `unreadable`."""
    for volume_id in volume_ids:
        try:
            yield volume_id, measure(store, volume_id)
        except StorageError as error:
            logger.warning("a volume is not compared with: %s", error)
            unreadable.append(volume_id)


def shares(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """A histogram of sum 1."""
    total = histogram.sum()
    return histogram / total if total else histogram.astype(np.float64)


@functools.cache
def phantom_chest(cells: int) -> Cells:
    """Mean of phantoms on `cells`³ cells over the box, saturated as `Measured.cells`."""
    place = ((np.arange(2 * cells) - cells + 0.5) * BOX_MM / (2 * cells)).astype(np.float32)
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    total = np.zeros((cells,) * 3, dtype=np.float32)
    for patient in range(_PHANTOMS):
        hu = Anatomy.draw(0, patient).hu(x, y, z).reshape(cells, 2, cells, 2, cells, 2).mean(axis=(1, 3, 5))
        total += np.clip(hu, *SATURATED_HU)
    return (total / np.float32(_PHANTOMS)).astype(np.float32)
