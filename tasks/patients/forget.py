"""Forgetting a patient: the one operation that deletes from a store. Tombstone first, then everything that is left to do.

Killed anywhere and called again, it goes on: what is to be deleted is found by the tombstone, which names the scans until all is
done. Weights are not deleted, as a model cannot be made to forget: whatever learned from the patient is named, marked and refused.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.bucket_lock import locked_in_bucket
from storage.bucket_path import BucketPath
from storage.errors import LockedError
from storage.locks import locked
from storage.registry import CHAMPION, ModelVersion
from storage.snapshots import history, redact_snapshots, update
from storage.tombstones import FOLDER, add_tombstone, find_tombstone, finish_tombstone
from storage.volume_store import VolumeStore
from tasks.patients.arrivals import Arrivals, forget_arrivals, look_at_arrivals, remove_links
from tasks.patients.made import Affected, affected_by, by_digest, made_in, roles_of, unfinished_in, volumes_shown
from tasks.patients.patient import Patient
from tasks.patients.places import (
    clear_unfinished,
    forget_beside,
    forget_roles,
    forget_scratch,
    forget_verdicts,
    redact_directory,
    redact_rest,
)
from tasks.patients.reference import forget_reference
from tasks.patients.tracked import Tracked, names_of, refuse, versions
from tasks.prune.plan import is_busy

_LOCK = "forget.lock"
_WAIT_S = 5.0  # for another process that forgets
_STAGES = ("evaluate", "measure", "reconstruct", "sample")  # whose unfinished work may show the patient
logger = logging.getLogger("prdit.patients")


@dataclass(frozen=True)
class Places:
    """Where something of a patient may be.

    Attributes:
        store: the volume store.
        workdirs: working folders.
        tracked: MLflow, server and files; empty where nothing was recorded.
        inbox, arrivals: of new scans; they may be missing.
        complete: whether that is all; otherwise the patient counts as not wholly forgotten, and the same call goes on later.
    """

    store: VolumeStore
    workdirs: tuple[Path, ...]
    tracked: tuple[Tracked, ...]
    inbox: Path
    arrivals: Path
    complete: bool = True


@dataclass(frozen=True)
class Plan:
    """What forgetting a patient means; nothing of it is done yet.

    Attributes:
        patient: who.
        affected: artifacts that the volumes went into, in the order of their making.
        unfinished: directories of trainings and evaluations that the volumes went into, which have no artifact.
        busy: those of them on which a process works now.
        versions: registered versions that learned from the volumes.
        arrivals: what the inbox and the batches have of the patient.
        earlier: when the patient was forgotten before, so that this goes on or adds to it; empty where that is not so.
    """

    patient: Patient
    affected: list[Affected]
    unfinished: list[Path]
    busy: list[Path]
    versions: list[ModelVersion]
    arrivals: Arrivals
    earlier: str

    @property
    def learned(self) -> list[Affected]:
        """The models and sample sets that learned from the volumes."""
        return [one for one in self.affected if one.learned]

    @property
    def champion(self) -> ModelVersion | None:
        """The champion, where it learned from the volumes."""
        return next((version for version in self.versions if CHAMPION in version.aliases), None)

    def to_json(self) -> dict[str, Any]:
        """For people and programs, by opaque ids."""
        return {
            "patient_key": self.patient.key,
            "volumes": sorted(self.patient.volume_ids),
            "num_scans": len(self.patient.scans),
            "affected": [
                {
                    "kind": one.made.kind,
                    "stage": one.made.stage,
                    "digest": one.made.digest,
                    "uri": one.made.uri,
                    "how": one.how,
                }
                for one in self.affected
            ],
            "refused": [one.made.digest for one in self.learned],
            "unfinished": [str(path) for path in self.unfinished],
            "busy": [str(path) for path in self.busy],
            "versions": [names_of(version) for version in self.versions],
            "champion_learned_from_the_patient": self.champion is not None,
            "files_in_inbox": self.arrivals.num_inbox,
            "links_in_batches": len(self.arrivals.links),
            "forgotten_before": self.earlier,
        }


def plan(patient: Patient, places: Places, secret: bytes | None) -> Plan:
    """Look at everything that has something of a patient.

    Args:
        patient: who.
        places: where to look.
        secret: of the patient keys; None: files in the inbox are known by their scans alone.
    Raises: StorageError: a list of the store cannot be read; TrackingUnavailableError: MLflow does not answer.
    """
    store = places.store.path
    here = [one for workdir in places.workdirs for one in made_in(workdir)]
    known = {one.digest for one in here}
    records = [*here, *(one for tracked in places.tracked for one in tracked.made(known))]
    affected = affected_by(patient.volume_ids, records, store)
    unfinished = _unfinished(patient, places.workdirs, affected, by_digest(records))
    digests = {one.made.digest for one in affected if one.learned}
    grave = find_tombstone(store, patient.key)
    return Plan(
        patient,
        affected,
        unfinished,
        [path for path in unfinished if is_busy(path)],
        [version for tracked in places.tracked for version in versions(tracked.uri, digests)],
        look_at_arrivals(patient, places.inbox, places.arrivals, store, secret),
        grave.created if grave else "",
    )


def _unfinished(
    patient: Patient, workdirs: Sequence[Path], affected: list[Affected], made: dict[str, Any]
) -> list[Path]:
    touched = {one.made.digest for one in affected if one.learned}
    found = []
    for workdir in workdirs:
        for directory, pending in unfinished_in(workdir):
            roles = roles_of(pending.inputs, made) or {}
            names = {name for each in roles.values() for name in each} | volumes_shown(pending)
            if names & patient.volume_ids or any(ref.digest in touched for ref in pending.inputs.values()):
                found.append(directory)
    return found


def forget(found: Plan, places: Places) -> dict[str, Any]:
    """Do what a plan says; returns what was done, counted.

    Raises:
        LockedError: a process works on something that was made from the volumes, or forgets another patient; nothing was changed.
        StorageError, TrackingUnavailableError: it could not be finished; the same call goes on.
    """
    if found.busy:
        raise LockedError(
            f"A process works on volumes of the patient in {', '.join(map(str, found.busy))}. End it (cancel its run) and forget "
            "the patient again; nothing was changed."
        )
    store, patient = places.store, found.patient
    with _alone(store.path / FOLDER / _LOCK):
        grave = add_tombstone(
            store.path,
            patient.key,
            patient.volume_ids,
            scan_keys=patient.scan_keys,
            pixels=patient.pixels,
            scans=patient.scans,
        )
        sentence = f"a patient was forgotten on {grave.created[:10]}"
        if history(store.path).numbers():
            update(store, lambda old: old, "forgotten")
        done: dict[str, Any] = {"marked_runs": _mark(found, places, sentence)}
        done["deleted_volumes"] = sum(store.delete(name) for name in sorted(patient.volume_ids))
        store.clean()
        done["snapshots_that_say_so"] = len(redact_snapshots(store.path, patient.volume_ids))
        forget_roles(store, patient)
        done["verdicts_removed"] = forget_verdicts(store, patient)
        done["redacted_files"] = _redact_work(found, places, sentence)
        done["redacted_in_mlflow"] = [
            name
            for tracked in places.tracked
            for name in tracked.redact(patient.words, patient.volume_ids, patient.text)
        ]
        done["references"] = [forget_reference(workdir, store, patient.volume_ids) for workdir in places.workdirs]
        done["links_removed"] = remove_links(found.arrivals)
        done["scans_kept_in_the_ledger"] = forget_arrivals(patient, places.inbox, places.arrivals)
        forget_beside(store, patient)
        if places.complete:
            finish_tombstone(store.path, patient.key)
    return done


def _alone(lock: Path) -> AbstractContextManager[None]:
    """One process at a time forgets somebody of a store."""
    if isinstance(lock, BucketPath):
        return locked_in_bucket(lock, timeout_s=_WAIT_S)
    return locked(lock, timeout_s=_WAIT_S)


def _mark(found: Plan, places: Places, sentence: str) -> int:
    """Mark in MLflow whatever learned from the patient, before anything is deleted."""
    digests = {one.made.digest for one in found.learned}
    for tracked in places.tracked:
        refuse(tracked.uri, versions(tracked.uri, digests), sentence)
    return sum(tracked.mark(digests, sentence) for tracked in places.tracked)


def _redact_work(found: Plan, places: Places, sentence: str) -> int:
    """Redact every artifact of the working folders, and mark those that learned from the patient; how many files are redacted."""
    marked = {one.made.digest for one in found.learned}
    shown = {one.made.digest for one in found.affected if one.shows}
    count = 0
    for workdir in places.workdirs:
        for one in (each for each in made_in(workdir) if each.uri):
            of_it = sentence if one.digest in marked else ""
            names = redact_directory(Path(one.uri), found.patient, forgotten=of_it, shows=one.digest in shown)
            count += len(names)
        for directory, _ in unfinished_in(workdir):
            forget_scratch(directory, found.patient)
            if directory in found.unfinished and directory.parent.name in _STAGES:
                clear_unfinished(directory)
        redact_rest(workdir, found.patient)
    return count
