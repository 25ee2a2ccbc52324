"""Split: volume store -> volume ids per role, by patient and sticky."""

import fcntl
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.documents.split import Split
from storage.errors import InputError, StorageError, StoreFormatError
from storage.files import read_json, write_json_atomic
from storage.volume_store import VolumeStore
from tasks.split.config import SplitConfig

RECIPE = 2
LEDGER_VERSION = 1
ROLES = ("train", "val")


def split(store_path: Path, config: SplitConfig, directory: Path) -> None:
    """Give new patients a role, keep it in the store's ledger, and write the split into a directory.

    A patient's role never changes. New patients are ordered by a hash keyed with the seed, and the first of them go to
    validation until it has its share of all patients: at least one where there are two, and never all.

    Raises:
        InputError: the store has no committed volume.
        StoreFormatError: the file is not a ledger of roles of this version.
    """
    store = VolumeStore.open(store_path)
    patients = _patients(store)
    if not patients:
        raise InputError(f"The store {store_path} has no committed volume to split. Ingest scans first.")
    ledger_path = _ledger_path(store_path, config)
    with _lock(ledger_path):
        roles = _read_ledger(ledger_path)
        added = place_patients(sorted(set(patients) - set(roles)), [p for p in patients if p in roles], roles, config)
        if added or not ledger_path.exists():
            roles = {**roles, **added}
            ledger = {"format_version": LEDGER_VERSION, "name": config.name, "roles": dict(sorted(roles.items()))}
            write_json_atomic(ledger_path, ledger)
    _document(store, patients, roles, config).save(directory)


def ledger_agrees(store_path: Path, directory: Path, config: SplitConfig) -> bool:
    """Whether a split written earlier still agrees with store and ledger."""
    try:
        written = Split.load(directory)
        store = VolumeStore.open(store_path)
        roles = _read_ledger(_ledger_path(store_path, config))
    except StorageError:
        return False
    patients = _patients(store)
    if not patients or set(patients) - set(roles):
        return False
    return written == _document(store, patients, roles, config)


def place_patients(new: list[str], known: list[str], roles: dict[str, str], config: SplitConfig) -> dict[str, str]:
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


def _patients(store: VolumeStore) -> dict[str, list[str]]:
    """Committed volume ids by patient key; a volume without key counts as a patient of its own."""
    found: dict[str, list[str]] = {}
    for volume_id in store.volume_ids():
        attributes = store.commit_record(volume_id)["attributes"]
        found.setdefault(str(attributes.get("patient_key") or f"volume:{volume_id}"), []).append(volume_id)
    return dict(sorted(found.items()))


def _document(store: VolumeStore, patients: dict[str, list[str]], roles: dict[str, str], config: SplitConfig) -> Split:
    by_role = {role: [patient for patient in patients if roles[patient] == role] for role in ROLES}
    volumes = {role: sorted(v for patient in by_role[role] for v in patients[patient]) for role in ROLES}
    return Split(roles=volumes, patients=by_role, notes=_notes(store, by_role, config))


def _notes(store: VolumeStore, by_role: dict[str, list[str]], config: SplitConfig) -> list[str]:
    unknown = sum(not store.commit_record(v)["attributes"].get("patient_known", False) for v in store.volume_ids())
    notes = []
    if unknown:
        notes.append(
            f"{unknown} of {len(store.volume_ids())} volumes carry no PatientID: each counts as a patient of its own, so "
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


def _ledger_path(store_path: Path, config: SplitConfig) -> Path:
    return store_path / "roles" / f"{config.name}.json"


def _read_ledger(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        record = read_json(path)
        version, roles = record["format_version"], dict(record["roles"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreFormatError(f"{path} is not a ledger of roles ({error!r}). Restore it from a backup.") from error
    if version != LEDGER_VERSION or not set(roles.values()) <= set(ROLES):
        raise StoreFormatError(
            f"{path} has format_version {version!r} and roles {sorted(set(roles.values()))}; expected {LEDGER_VERSION} and "
            f"{list(ROLES)}. Restore it from a backup, or use the prdit that wrote it."
        )
    return roles


@contextmanager
def _lock(ledger_path: Path) -> Iterator[None]:
    """One split at a time: two could give one patient two roles."""
    ledger_path.parent.mkdir(parents=True, exist_ok=True)
    with (ledger_path.parent / f".{ledger_path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
