"""Tombstones of forgotten patients: what an ingest must not bring back.

A tombstone names a patient by the store's patient key (an HMAC; nobody reads a PatientID out of it) and the forgotten volumes by
their ids (hashes of pixels and geometry), so that a scan without a PatientID does not come back either. It is written before
anything is deleted. A writer of a volume looks at the tombstones again *after* its commit, and whoever forgets looks at the commits
after the tombstone is written: of the two, at least one sees the other, so no lock is needed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.documents.tombstone import Tombstone
from storage.errors import ConfigError, MissingArtifactError
from storage.files import entries

FOLDER = "tombstones"


@dataclass(frozen=True)
class Forgotten:
    """What all tombstones of a store name.

    Attributes:
        patients: keys of patients, and of their scans where those come without a PatientID.
        volumes: ids of volumes.
        pixels: hashes of HU.
    """

    patients: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    pixels: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.patients)

    def why(self, *patient_keys: str, volume_id: str = "", pixels: str = "") -> str:
        """By what a scan is known as one of a forgotten patient: `patient` or `pixels`; "" where it is not."""
        if self.patients.intersection(patient_keys):
            return "patient"
        return "pixels" if volume_id in self.volumes or (pixels and pixels in self.pixels) else ""


def tombstone_path(store: Path, patient_key: str) -> Path:
    """File of a patient's tombstone. Raises: ConfigError: no patient key."""
    if len(patient_key) < 8 or not patient_key.isalnum():
        raise ConfigError(f"A patient key is 32 hex digits (`prdit ls STORE --volumes`), got {patient_key!r}.")
    return store / FOLDER / f"{patient_key}.json"


def tombstones(store: Path) -> list[Tombstone]:
    """All tombstones of a store. Raises: StorageError: one cannot be read, so that it is not known who is to stay out."""
    return [Tombstone.read(path) for path in entries(store / FOLDER, "*.json")]


def forgotten(store: Path) -> Forgotten:
    """What the tombstones of a store name. Raises: as `tombstones`."""
    found = tombstones(store)
    return Forgotten(
        frozenset(key for each in found for key in (each.patient_key, *each.scan_keys)),
        frozenset(name for each in found for name in each.volume_ids),
        frozenset(digest for each in found for digest in each.pixels),
    )


def find_tombstone(store: Path, patient_key: str) -> Tombstone | None:
    """The tombstone of a patient; None where there is none. Raises: StorageError: it cannot be read."""
    try:
        return Tombstone.read(tombstone_path(store, patient_key))
    except MissingArtifactError:
        return None


def add_tombstone(
    store: Path,
    patient_key: str,
    volume_ids: Collection[str],
    *,
    scan_keys: Collection[str] = (),
    pixels: Collection[str] = (),
    scans: Collection[str] = (),
) -> Tombstone:
    """Record a patient as forgotten, before anything is deleted; what an earlier tombstone of the patient names stays in it.

    Args:
        store: folder of the store.
        patient_key: of the patient.
        volume_ids, scan_keys, pixels, scans: see `Tombstone`.
    Raises: UnwritableError.
    """
    old = find_tombstone(store, patient_key)
    new = Tombstone(
        patient_key=patient_key,
        scan_keys=tuple(sorted({*scan_keys, *(old.scan_keys if old else ())})),
        volume_ids=tuple(sorted({*volume_ids, *(old.volume_ids if old else ())})),
        pixels=tuple(sorted({*pixels, *(old.pixels if old else ())} - {""})),
        created=old.created if old else _now(),
        scans=tuple(sorted({*scans, *(old.scans if old else ())})),
    )
    new.write(tombstone_path(store, patient_key))
    return new


def finish_tombstone(store: Path, patient_key: str) -> Tombstone:
    """Note that everything of a patient is deleted: the ids of the scans leave the tombstone. Raises: StorageError."""
    path = tombstone_path(store, patient_key)
    done = Tombstone.read(path).model_copy(update={"finished": _now(), "scans": ()})
    done.write(path)
    return done


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
