"""Split: snapshot -> volume ids per role, by patient and sticky."""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from storage.artifacts import Ref
from storage.documents.snapshot import Role, Roles, Snapshot
from storage.documents.split import Split
from storage.errors import InputError, StorageError
from storage.snapshots import load_snapshot, open_snapshot, role_ledger
from tasks.split.config import SplitConfig

RECIPE = 2
ROLES: tuple[Role, ...] = ("train", "val")


def split(snapshot: Ref, config: SplitConfig, directory: Path) -> None:
    """Give new patients a role, keep it in the store's ledger, and write the split into a directory.

    A patient's role never changes. New patients are ordered by a hash keyed with the seed, and the first of them go to
    validation until it has its share of all patients: at least one where there are two, and never all.

    Raises:
        InputError: the snapshot lists no volume.
        StorageError: snapshot or ledger cannot be read.
    """
    store, listed = open_snapshot(snapshot)
    patients = listed.patients
    if not patients:
        raise InputError(f"The newest snapshot of {store.path} lists no volume to split. Ingest scans first.")

    def with_new_patients(ledger: Roles | None) -> Roles:
        roles = ledger.roles if ledger else {}
        added = place_patients(sorted(set(patients) - set(roles)), [p for p in patients if p in roles], roles, config)
        return ledger if ledger and not added else Roles(roles=dict(sorted({**roles, **added}.items())))

    ledger = role_ledger(store.path, config.name).update(with_new_patients)
    _document(listed, ledger, config).save(directory)


def ledger_agrees(snapshot: Ref, directory: Path, config: SplitConfig) -> bool:
    """Whether a split of a snapshot, written earlier, still agrees with the ledger."""
    try:
        listed, ledger = load_snapshot(snapshot), role_ledger(snapshot.path, config.name).newest()
        if ledger is None or set(listed.patients) - set(ledger.roles):
            return False
        return Split.load(directory) == _document(listed, ledger, config)
    except StorageError:
        return False


def place_patients(new: list[str], known: list[str], roles: Mapping[str, Role], config: SplitConfig) -> dict[str, Role]:
    """Roles of new patients.

    Args:
        new: patient keys without a role.
        known: patient keys of the store that have one.
        roles: the ledger.
        config: fraction and seed.
    """
    total = len(new) + len(known)
    if not new:
        return {}
    wanted = 0 if total < 2 else min(max(1, round(config.val_fraction * total)), total - 1)
    held = sum(roles[patient] == "val" for patient in known)
    count = min(max(0, wanted - held), len(new))
    if count == len(new) and held == len(known):
        count -= 1  # at least one patient must be in training
    ordered = sorted(new, key=lambda patient: _rank(config.seed, patient))
    return {patient: "val" if index < count else "train" for index, patient in enumerate(ordered)}


def _rank(seed: int, patient: str) -> str:
    return hmac.new(str(seed).encode(), patient.encode(), hashlib.sha256).hexdigest()


def _document(snapshot: Snapshot, ledger: Roles, config: SplitConfig) -> Split:
    patients = snapshot.patients
    by_role = {role: [patient for patient in patients if ledger.roles[patient] == role] for role in ROLES}
    volumes = {role: sorted(v for patient in by_role[role] for v in patients[patient]) for role in ROLES}
    return Split(roles=volumes, patients=by_role, notes=_notes(snapshot, by_role, config))


def _notes(snapshot: Snapshot, by_role: Mapping[Role, list[str]], config: SplitConfig) -> list[str]:
    unknown = sum(not volume.patient_known for volume in snapshot.volumes.values())
    notes = []
    if unknown:
        notes.append(
            f"{unknown} of {len(snapshot.volumes)} volumes carry no PatientID: each counts as a patient of its own, so "
            "scans of one person may be in both roles."
        )
    count, total = len(by_role["val"]), len(by_role["val"]) + len(by_role["train"])
    if not count:
        notes.append("The store has one patient only: nobody is held out, so nothing can be said about generalisation.")
    elif abs(count / total - config.val_fraction) > 1 / total:
        notes.append(
            f"{count} of {total} patients are held out, asked for {config.val_fraction:.0%}: roles given earlier stay."
        )
    return notes
