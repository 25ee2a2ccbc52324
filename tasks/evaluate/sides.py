"""The two sides of an evaluation, and the references that the order test compares: what is read, measured and kept of volumes."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import METRICS, Hu, Setting, Side
from prdit_models.metrics.order import Degradation, degraded
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig, read_as_seen
from tasks.run.fanout import Pool

_CHUNK = 8  # volumes that a worker measures before it answers
Done = Callable[[int], None]


@dataclass(frozen=True)
class Volumes:
    """Volumes of one side, as it is sent to workers.

    Attributes:
        store: where they are; its path is absolute.
        window: to which both sides are saturated.
        view: what a model sees of them; None: they are generated, and what it saw.
        how: as they are, or degraded for the order test.
    """

    store: VolumeStore
    window: HounsfieldWindow
    view: ViewConfig | None
    how: Degradation = "real"

    def hu(self, name: str) -> Hu:
        """One volume in HU, shape (D, H, W), not saturated."""
        return degraded(self._as_it_is(name), self.how, seed=zlib.crc32(name.encode()))

    def saturated(self, name: str) -> Hu:
        """One volume in HU, shape (D, H, W), saturated to the window."""
        return np.clip(self.hu(name), self.window.lower_hu, self.window.upper_hu)

    def _as_it_is(self, name: str) -> Hu:
        view = self.view
        if view is None:
            return self.store.read_level(name).hu.astype(np.float32)
        if self.window.follows_scan:  # HU of the samples are nominal, and so must these be
            return self.window.to_hu(read_as_seen(self.store, name, view, self.window).numpy())
        return self.store.read_view(name, view.size, view.edge, view.centre)


def measured(
    volumes: Volumes,
    ids: Sequence[str],
    features: NDArray[np.float32],
    roles: tuple[str, ...],
    setting: Setting,
    pool: Pool,
    done: Done,
) -> Side:
    """One side: the features of its volumes, and what every metric keeps of each, from values saturated to the window."""
    chunks = [tuple(ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
    kept: dict[str, Mapping[str, Any]] = {}
    for chunk, rows in pool.each(partial(measure, volumes, setting), chunks, lambda chunk: ", ".join(chunk)):
        kept |= dict(zip(chunk, rows, strict=True))
        done(len(chunk))
    seen = {name: [kept[volume][name] for volume in ids] for name in setting.settings}
    return Side(tuple(ids), features, seen, roles, volumes.saturated)


def measure(volumes: Volumes, setting: Setting, names: Sequence[str]) -> list[dict[str, Any]]:
    """What every metric keeps of some volumes, in this process or in a worker's."""
    return [
        {metric: METRICS[metric].of_volume(hu, setting) for metric in setting.settings}
        for hu in map(volumes.saturated, names)
    ]


def halves(patients: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Two lists of volumes that share no patient; patients alternate in the order of their keys.

    Args:
        patients: patient key by volume id.
    """
    of_patient: dict[str, list[str]] = {}
    for name in sorted(patients):
        of_patient.setdefault(patients[name], []).append(name)
    sides: tuple[list[str], list[str]] = [], []
    for patient in sorted(of_patient):
        min(sides, key=len).extend(of_patient[patient])
    return sides
