"""One scan under several ids: new volumes that are nearly the same as others of the batch, or as listed ones."""

from collections.abc import Iterator

import numpy as np

from prdit_models.metrics.neighbours import ShiftSearch, coarser
from storage.documents.snapshot import Snapshot
from storage.volume_store import VolumeStore
from tasks.drift.checks import Batch
from tasks.drift.config import DriftConfig
from tasks.drift.finding import Finding, named
from tasks.drift.measure import Cells
from tasks.drift.reference import measured

_MAX_SHIFT = 2  # cells of 8 mm
_FAR = 4.0  # times the limit, on the coarse grid: such volumes are not compared further


def copy_checks(store: VolumeStore, batch: Batch, listed: Snapshot | None, config: DriftConfig) -> list[Finding]:
    """Copies under the names of several patients, and more copies of one patient than are allowed.

    A volume of the same scan (a longer copy of a listed one, which it is to replace) is no copy in this sense.
    """
    patients = dict(batch.patients)
    patients |= {name: one.patient_key for name, one in listed.volumes.items()} if listed else {}
    groups = _Groups(list(batch.measured))
    nearest: dict[str, float] = {}
    for new, other, distance in _pairs(store, batch, listed, config.duplicate_hu):
        groups.join(new, other)
        nearest[new] = min(distance, nearest.get(new, np.inf))
    findings = []
    for members in groups.of_several():
        fresh = [name for name in members if name in batch.measured]
        keys = {patients.get(name, name) for name in members}
        if len(keys) == 1 and len(members) <= config.copies_per_patient:
            continue
        distance = min(nearest[name] for name in fresh if name in nearest)
        whose = f"{len(keys)} patients" if len(keys) > 1 else "one patient"
        allowed = "none may have two patients" if len(keys) > 1 else f"{config.copies_per_patient} are allowed"
        known = f" {len(members) - len(fresh)} of them are listed already." if len(members) > len(fresh) else ""
        sentence = (
            f"Copies: {len(members)} volumes of {whose} show one scan ({named(fresh)}): they differ by {distance:.3g} HU, "
            f"different scans by more than {config.duplicate_hu:g}; {allowed}.{known} Copies in training and validation make "
            "figures meaningless."
        )
        findings.append(
            Finding("copies", float(len(members)), float(config.copies_per_patient), sentence, tuple(fresh))
        )
    return findings


def _pairs(
    store: VolumeStore, batch: Batch, listed: Snapshot | None, limit_hu: float
) -> Iterator[tuple[str, str, float]]:
    """(new volume, another one, their distance) of all that are nearer than the limit at some shift."""
    new = {name: one.cells for name, one in batch.measured.items()}
    coarse = {name: coarser(cells) for name, cells in new.items()}
    scans = {name: _scan(store, name) for name in new}
    for place, (other, cells) in enumerate(new.items()):
        for name in list(new)[:place]:
            if (distance := _near(coarse[name], new[name], coarse[other], cells, limit_hu)) is not None:
                yield name, other, distance
    for other, one in measured(store, sorted(listed.volumes) if listed else [], []):
        small = coarser(one.cells)
        for name in new:
            distance = _near(coarse[name], new[name], small, one.cells, limit_hu)
            if distance is not None and (not scans[name] or scans[name] != _scan(store, other)):
                yield name, other, distance


def _near(coarse: Cells, cells: Cells, other_coarse: Cells, other: Cells, limit_hu: float) -> float | None:
    """Distance of two volumes at the best shift; None where it is not below the limit."""
    if float(np.sqrt(np.square(coarse - other_coarse).mean())) > _FAR * max(limit_hu, 1.0):
        return None
    distance, _ = ShiftSearch(cells, min(_MAX_SHIFT, len(cells) - 1))(other)
    return distance if distance < limit_hu else None


def _scan(store: VolumeStore, volume_id: str) -> str:
    facts = store.commit_record(volume_id).scan
    return facts.scan if facts else ""


class _Groups:
    """Volumes that are copies of each other, also by way of a third one."""

    def __init__(self, names: list[str]) -> None:
        self._group: dict[str, set[str]] = {name: {name} for name in names}

    def join(self, first: str, second: str) -> None:
        merged = self._group.get(first, {first}) | self._group.get(second, {second})
        for name in merged:
            self._group[name] = merged

    def of_several(self) -> list[list[str]]:
        found = {id(group): sorted(group) for group in self._group.values() if len(group) > 1}
        return sorted(found.values())
