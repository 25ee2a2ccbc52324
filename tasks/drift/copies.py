"""One scan under several ids: new volumes that are nearly the same as others of the batch, or as listed ones."""

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
    groups, found = _Groups(list(batch.measured)), _near_pairs(store, batch, listed, config)
    nearest: dict[str, tuple[float, float]] = {}
    for new, other, distance, limit in found:
        groups.join(new, other)
        nearest[new] = min((distance, limit), nearest.get(new, (np.inf, limit)))
    findings = []
    for members in groups.of_several():
        fresh = [name for name in members if name in batch.measured]
        keys = {patients.get(name, name) for name in members}
        if len(keys) == 1 and len(members) <= config.copies_per_patient:
            continue
        distance, limit = min(nearest[name] for name in fresh if name in nearest)
        whose = f"{len(keys)} patients" if len(keys) > 1 else "one patient"
        allowed = "none may have two patients" if len(keys) > 1 else f"{config.copies_per_patient} are allowed"
        known = f" {len(members) - len(fresh)} of them are listed already." if len(members) > len(fresh) else ""
        sentence = (
            f"Copies: {len(members)} volumes of {whose} show one scan ({named(fresh)}): they differ by {distance:.3g} HU, "
            f"different scans by more than {limit:.3g}; {allowed}.{known} Copies in training and validation make "
            "figures meaningless."
        )
        findings.append(
            Finding("copies", float(len(members)), float(config.copies_per_patient), sentence, tuple(fresh))
        )
    return findings


def _near_pairs(
    store: VolumeStore, batch: Batch, listed: Snapshot | None, config: DriftConfig
) -> list[tuple[str, str, float, float]]:
    """(new volume, another one, their distance, the limit) of all that are copies at some shift of a few cells."""
    compared = {name: _Compared(one.cells) for name, one in batch.measured.items()}
    scans = {name: _scan(store, name) for name in compared}
    pairs = []
    for place, (other, one) in enumerate(compared.items()):
        for name in list(compared)[:place]:
            pairs.append((name, other, compared[name].distance(one.cells, one.coarse, config.duplicate_hu)))
    usual: dict[str, list[float]] = {name: [] for name in compared}
    for other, found in measured(store, sorted(listed.volumes) if listed else [], []):
        coarse, scan = coarser(found.cells), _scan(store, other)
        for name, one in compared.items():
            usual[name].append(one.coarse_distance(coarse))
            if not scan or scans[name] != scan:
                pairs.append((name, other, one.distance(found.cells, coarse, config.duplicate_hu)))
    limits = {name: _limit(values, config) for name, values in usual.items()}
    return [(*pair, limits[pair[0]]) for pair in pairs if pair[2] < limits[pair[0]]]


def _limit(usual: list[float], config: DriftConfig) -> float:
    """The distance below which another volume is a copy; smaller where the store's volumes are much alike (phantoms)."""
    if len(usual) < config.min_reference:
        return config.duplicate_hu
    return min(config.duplicate_hu, config.copy_ratio * float(np.median(usual)))


class _Compared:
    """A new volume, to be compared with others; what that needs of it is computed once, when a first one comes near."""

    def __init__(self, cells: Cells) -> None:
        self.cells, self.coarse = cells, coarser(cells)
        self._search: ShiftSearch | None = None

    def coarse_distance(self, coarse: Cells) -> float:
        """Root mean square difference on few cells, without a shift."""
        return float(np.sqrt(np.square(self.coarse - coarse).mean()))

    def distance(self, cells: Cells, coarse: Cells, limit_hu: float) -> float:
        """Root mean square difference at the best shift; infinite where the coarse one is far from the limit."""
        if self.coarse_distance(coarse) > _FAR * max(limit_hu, 1.0):
            return np.inf
        if self._search is None:
            self._search = ShiftSearch(self.cells, min(_MAX_SHIFT, len(self.cells) - 1))
        return self._search(cells)[0]


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
