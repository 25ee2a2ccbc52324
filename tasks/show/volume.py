"""One volume of a store: its commit record, where it is listed, and the roles of its patient."""

from dataclasses import dataclass
from typing import Any

from storage.documents.snapshot import SnapshotVolume
from storage.errors import InputError
from storage.snapshots import history, load_snapshot, role_ledgers, snapshot_ref
from storage.volume_store import VolumeStore

_LEAST_DIGITS = 4


@dataclass(frozen=True)
class _Listed:
    """Where a volume is listed: numbers of the snapshots in the history, and its entry in the newest of them."""

    snapshots: tuple[int, ...]
    newest: SnapshotVolume | None


def find_volume(store: VolumeStore, name: str) -> str:
    """The id of a volume, given whole or by its beginning (4 characters or more).

    Raises: InputError: there is no such volume, or more than one.
    """
    ids = store.volume_ids()
    found = [name] if name in ids else [volume_id for volume_id in ids if volume_id.startswith(name)]
    if len(found) != 1 or (len(name) < _LEAST_DIGITS and name not in ids):
        short = len(name) < _LEAST_DIGITS and found
        why = (
            f"expected {_LEAST_DIGITS} characters or more" if short else f"{len(found)} volumes begin so, expected one"
        )
        raise InputError(
            f"Volume {name!r} of {store.path}: {why}. `prdit ls {store.path} --volumes` lists the {len(ids)} volumes."
        )
    return found[0]


def volume_facts(store: VolumeStore, volume_id: str) -> dict[str, Any]:
    """What the records of a store say of one volume; no pixel is read.

    Args:
        store: opened store.
        volume_id: of a committed volume.
    Returns: JSON values: geometry (shape z, y, x; spacing and origin x, y, z in mm, LPS), attributes, scan, digests, snapshots
        (numbers in the history that list it), listed and withdrawn (whether the newest one does), patient, labels, roles by ledger.
    Raises: StorageError: a record is missing or damaged.
    """
    record = store.commit_record(volume_id)
    listed = _listed(store, volume_id)
    newest = history(store.path).newest()
    entry = listed.newest
    roles = {}
    if entry is not None:
        for ledger in role_ledgers(store.path):
            version = ledger.newest()
            if version is not None and entry.patient_key in version.roles:
                roles[ledger.folder.name] = version.roles[entry.patient_key]
    numbers = history(store.path).numbers()
    return {
        "volume_id": volume_id,
        "store": str(store.path),
        "shape": list(record.shape),
        "spacing_mm": list(record.spacing_mm),
        "origin_mm": list(record.origin_mm),
        "size_mm": [n * s for n, s in zip(reversed(record.shape), record.spacing_mm, strict=True)],
        "num_bytes": sum(file.size for file in record.files.values()),
        "folder": str(store.folder(volume_id)),
        "attributes": record.attributes,
        "scan": record.scan.model_dump(mode="json") if record.scan else None,
        "arrays": {level: array.model_dump(mode="json") for level, array in record.arrays.items()},
        "snapshots": list(listed.snapshots),
        "listed": bool(numbers) and numbers[-1] in listed.snapshots,
        "withdrawn": newest is not None and volume_id in newest.withdrawn,
        "patient_key": entry.patient_key if entry else None,
        "patient_known": entry.patient_known if entry else None,
        "labels": dict(entry.labels) if entry else {},
        "roles": roles,
    }


def _listed(store: VolumeStore, volume_id: str) -> _Listed:
    """Snapshots of the history that list a volume."""
    steps = history(store.path)
    entries: dict[str, SnapshotVolume | None] = {}
    numbers, newest = [], None
    for number in steps.numbers():
        digest = steps.read(number).snapshot
        if digest not in entries:
            entries[digest] = load_snapshot(snapshot_ref(store.path, digest)).volumes.get(volume_id)
        if (entry := entries[digest]) is not None:
            numbers.append(number)
            newest = entry
    return _Listed(tuple(numbers), newest)
