"""A patient as a store knows one: the volumes, the scans, and every word by which something about the patient is found."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from storage.documents.snapshot import Snapshot
from storage.errors import ConfigError, StorageError
from storage.files import entries
from storage.patient_key import load_patient_key, patient_key
from storage.snapshots import history, load_snapshot, role_ledgers, snapshot_files, snapshot_ref
from storage.sources.index import scans_of_patient
from storage.tombstones import FOLDER, find_tombstone, tombstone_path, tombstones
from storage.volume_store import VolumeStore
from tasks.ingest.scan import file_cache
from tasks.ingest.series import scan_and_part


@dataclass(frozen=True)
class Patient:
    """Everything that is known of one patient.

    Attributes:
        key: patient key.
        volume_ids: of the volumes, those that are forgotten already among them.
        scans: ids of the scans, those that are no volume among them.
        scan_keys: patient keys that the scans have where they come without a PatientID.
        pixels: hashes of the volumes' HU.
        text: the PatientID, where a person gave it; it is only looked for, never written.
    """

    key: str
    volume_ids: frozenset[str]
    scans: frozenset[str]
    scan_keys: frozenset[str] = frozenset()
    pixels: frozenset[str] = frozenset()
    text: str = ""

    @cached_property
    def words(self) -> frozenset[str]:
        """Keys and ids of the patient and the scans, which may stay nowhere but in the tombstone; the PatientID is no such word."""
        return frozenset({self.key, *self.scan_keys, *self.scans})


def key_of(patient_id: str, key_file: Path, store: Path) -> str:
    """The patient key of a PatientID. Raises: ConfigError: there is no id, or no key file; SourceError: it cannot be read."""
    if not patient_id.strip():
        raise ConfigError(
            "The PatientID is empty. Give it, or --patient-key, or --volume with the id of a volume of the patient."
        )
    if not key_file.is_file():
        raise ConfigError(
            f"The secret that the patient keys of {store} were made with is not at {key_file}, so a PatientID cannot be looked up. "
            "Restore the file, or give --patient-key or --volume (`prdit ls STORE --volumes`)."
        )
    return patient_key(load_patient_key(key_file), patient_id, "")[0]


def key_of_volume(store: VolumeStore, volume_id: str) -> str:
    """The patient key of a volume, as it was listed last. Raises: ConfigError: no snapshot lists it."""
    for grave in tombstones(store.path):
        if volume_id in grave.volume_ids:
            return grave.patient_key
    owner = _listed(store.path)[0].get(volume_id)
    if owner is None:
        raise ConfigError(
            f"No snapshot of {store.path} lists volume {volume_id}. `prdit ls {store.path} --volumes` shows those."
        )
    return owner


def find_patient(store: VolumeStore, key: str, key_file: Path, text: str = "") -> Patient:
    """Everything that a store and what lies beside it know of a patient.

    Args:
        store: opened store.
        key: patient key; the beginning of it, 8 digits or more, is enough.
        key_file: secret of the patient keys; without it copies under another PatientID are known by their pixels alone.
        text: the PatientID, where it is known.
    Raises: ConfigError: nobody knows such a patient.
    """
    owners, series = _listed(store.path)
    key = _whole_key(store.path, key, {*owners.values(), *_ledger(store.path)})
    grave = find_tombstone(store.path, key)
    scans = scans_of_patient(file_cache(store.path), key) | set(grave.scans if grave else ())
    volumes = {name for name, owner in owners.items() if owner == key}
    pixels, of_volumes = set(grave.pixels if grave else ()), set()
    for volume_id in store.volume_ids():
        with suppress(StorageError):
            facts = store.commit_record(volume_id).scan
            if facts is None:
                continue
            scan = scan_and_part(facts.scan)[0]
            if volume_id in volumes or (volume_id not in owners and scan in scans):  # held: committed, not listed
                volumes.add(volume_id)
                of_volumes.add(scan)
                pixels.add(facts.pixels)
    of_volumes |= {series[name] for name in volumes if name in series}
    known = key in owners.values() or grave is not None or key in _ledger(store.path)
    if not (volumes or scans or known):
        raise ConfigError(
            f"Nobody knows this patient in {store.path}: no volume, scan or role is of patient {key[:8]}…. Nothing was changed."
        )
    scans |= of_volumes
    secret = load_patient_key(key_file) if key_file.is_file() else None
    keys = {patient_key(secret, "", scan)[0] for scan in scans} if secret else set()
    return Patient(
        key,
        frozenset(volumes | set(grave.volume_ids if grave else ())),
        frozenset(scans),
        frozenset(keys | set(grave.scan_keys if grave else ())) - {key},
        frozenset(pixels - {""}),
        text.strip(),
    )


def _whole_key(store: Path, key: str, known: set[str]) -> str:
    tombstone_path(store, key)
    found = sorted(
        one for one in known | {path.stem for path in entries(store / FOLDER, "*.json")} if one.startswith(key)
    )
    if len(found) > 1:
        raise ConfigError(f"{len(found)} patients of {store} have keys that begin with {key}: give more digits.")
    return found[0] if found else key


def _snapshots(store: Path) -> Iterator[Snapshot]:
    """Every snapshot, the newest first. Raises: StorageError: one cannot be read, so that it is not known what it lists."""
    steps = history(store)
    digests = [steps.read(number).snapshot for number in reversed(steps.numbers())]
    digests += [f"sha256:{path.stem}" for path in snapshot_files(store)]
    for digest in dict.fromkeys(digests):
        yield load_snapshot(snapshot_ref(store, digest))


def _listed(store: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Patient key, and SeriesInstanceUID where there is one, by volume id: as a volume was listed last."""
    owners: dict[str, str] = {}
    series: dict[str, str] = {}
    for snapshot in _snapshots(store):
        for name in snapshot.volumes.keys() - owners.keys():
            volume = snapshot.volumes[name]
            owners[name] = volume.patient_key
            if uid := volume.attributes.get("SeriesInstanceUID"):
                series[name] = str(uid)
    return owners, series


def _ledger(store: Path) -> set[str]:
    """Every patient with a role."""
    found: set[str] = set()
    for versions in role_ledgers(store):
        if roles := versions.newest():
            found |= set(roles.roles)
    return found
