"""The frozen reference without a forgotten patient: a new number."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from storage.documents.reference import Reference
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.retrain.reference import references


def forget_reference(workdir: Path, store: VolumeStore, volume_ids: Collection[str]) -> int | None:
    """Write the next number of a working folder's frozen reference without some volumes; None where it has none of them.

    Earlier numbers lose the volumes, too: they name patients by their keys. A retraining adds volumes where too few are left.

    Args:
        workdir: working folder.
        store: of the volumes; its newest snapshot is that of the new number.
        volume_ids: of the patient.
    Returns: the new number.
    Raises: StorageError: reference or snapshot cannot be read.
    """
    kept = references(workdir)
    if not kept.numbers():
        return None
    snapshot = newest(store)
    listed = load_snapshot(snapshot).volumes

    def change(old: Reference | None) -> Reference:
        if old is None or not old.volumes.keys() & set(volume_ids):
            return old  # type: ignore[return-value]
        return old.model_copy(
            update={
                "volumes": {
                    name: key for name, key in old.volumes.items() if name in listed and name not in volume_ids
                },
                "snapshot": snapshot.digest,
                "why": "a patient was forgotten",
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )

    before = kept.numbers()[-1]
    kept.update(change)
    for number in kept.numbers():
        reference = kept.read(number)
        left = {name: key for name, key in reference.volumes.items() if name not in volume_ids}
        if left != reference.volumes:
            reference.model_copy(update={"volumes": left}).write(kept.path(number))
    after = kept.numbers()[-1]
    return after if after > before else None
