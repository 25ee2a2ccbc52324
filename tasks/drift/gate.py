"""Whether new volumes look like those that the store lists already."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot, SnapshotVolume
from storage.errors import UserError
from storage.snapshots import load_snapshot
from storage.volume_store import VolumeStore
from tasks.drift.checks import Batch, absolute_checks, relative_checks, without_consequences
from tasks.drift.config import DriftConfig
from tasks.drift.copies import copy_checks
from tasks.drift.finding import Finding
from tasks.drift.measure import measure
from tasks.drift.picture import draw
from tasks.drift.reference import read_reference

__all__ = ["DriftVerdict", "Finding", "HeldError", "check_drift", "gate"]

New = Mapping[str, SnapshotVolume] | Sequence[str]
logger = logging.getLogger("prdit.drift")


@dataclass(frozen=True)
class DriftVerdict:
    """What the gate found of a batch.

    Attributes:
        findings: reasons to hold it; empty: it passes.
        notes: what could not be checked and why, such as a store with too few volumes to compare with.
        picture: PNG: slices and histograms of the batch beside those of the store; no names in it; empty where nothing was found.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    picture: bytes

    @property
    def held(self) -> bool:
        """Whether a person has to look."""
        return bool(self.findings)


class HeldError(UserError, RuntimeError):
    """A batch was held by the drift gate: its volumes are committed, none is listed."""

    def __init__(self, verdict: DriftVerdict, volumes: tuple[str, ...]) -> None:
        super().__init__(" ".join(finding.sentence for finding in verdict.findings))
        self.verdict = verdict
        self.volumes = volumes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.verdict, self.volumes)


def gate(config: DriftConfig) -> Callable[[VolumeStore, New, Ref | None], None]:
    """What `tasks.ingest` asks before it lists volumes (`admit`): raises `HeldError` where `check_drift` has findings."""

    def admit(store: VolumeStore, new: New, snapshot: Ref | None) -> None:
        if not config.enabled:
            return
        verdict = check_drift(store, new, snapshot, config)
        for note in verdict.notes:
            logger.info("drift gate: %s", note)
        if verdict.held:
            raise HeldError(verdict, tuple(new))

    return admit


def check_drift(store: VolumeStore, new: New, snapshot: Ref | None, config: DriftConfig) -> DriftVerdict:
    """Compare new volumes with those of a snapshot.

    Volumes are measured one by one, and the measures kept beside the store: a store of n volumes is read once, not at every batch.

    Args:
        store: has all of them committed.
        new: the volumes that are not listed yet, as they would be listed; of ids alone the patients are not known.
        snapshot: what the store lists now; None: nothing, so that only absolute limits are checked.
        config: limits.
    Raises: StorageError: a new volume, or the snapshot, cannot be read.
    """
    listed: Snapshot | None = load_snapshot(snapshot) if snapshot else None
    patients = {name: one.patient_key for name, one in new.items()} if isinstance(new, Mapping) else {}
    batch = Batch({name: measure(store, name) for name in new}, patients)
    reference = read_reference(store, listed)
    enough = len(reference.ids) >= config.min_reference
    notes = []
    if not enough:
        notes.append(
            f"The store lists {len(reference.ids)} volumes; figures are compared with its own from {config.min_reference} on. "
            "Until then limits of any chest CT count, and flips are looked for with the mean of phantoms."
        )
    if not patients:
        notes.append("Patients of the batch are not known: copies count as those of different patients.")
    if reference.unreadable:
        notes.append(
            f"{len(reference.unreadable)} listed volumes could not be read: `prdit verify` says what is damaged."
        )
    findings = absolute_checks(batch, reference, config, alone=not enough)
    if enough:
        findings += relative_checks(batch, reference, config)
    findings = without_consequences([*findings, *copy_checks(store, batch, listed, config)])
    picture = draw(store, batch, reference, findings) if findings else b""
    return DriftVerdict(tuple(findings), tuple(notes), picture)
