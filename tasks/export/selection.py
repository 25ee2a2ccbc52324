"""Which volumes of a store are exported or sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage.documents.snapshot import SnapshotVolume
from storage.errors import InputError
from storage.exports.origin import Origin, origin_of
from storage.snapshots import find, newest, open_snapshot
from storage.volume_store import VolumeStore

_NAMED = 3  # ids in a message


@dataclass(frozen=True)
class Selection:
    """Volumes of one store at one level.

    Attributes:
        store: where they are.
        level: of their pyramids.
        snapshot: digest of the list they were chosen from; "" in a store of generated volumes, which has none.
        volumes: as that list has them, by id; None for generated ones.
    """

    store: VolumeStore
    level: int
    snapshot: str
    volumes: Mapping[str, SnapshotVolume | None]

    def origin(self, volume_id: str) -> Origin:
        """What is known of one of the volumes. Raises: StorageError: its record cannot be read."""
        return origin_of(self.store, volume_id, self.level, self.volumes[volume_id])

    @property
    def num_planes(self) -> int:
        """Slices of all volumes together."""
        return sum(self.origin(volume_id).num_planes for volume_id in self.volumes)


def select(
    store: VolumeStore,
    volume_ids: Sequence[str] = (),
    *,
    everything: bool = False,
    patients: Sequence[str] = (),
    snapshot: str | None = None,
    level: int = 0,
) -> Selection:
    """Choose volumes of a store: by id, by patient, or all; of scans those that a snapshot lists.

    Args:
        store: of scans or of generated volumes.
        volume_ids: ids.
        everything: all of them.
        patients: beginnings of patient keys (`prdit ls STORE --volumes`).
        snapshot: number or beginning of the digest of the snapshot; default: the newest.
        level: of the pyramid.
    Raises:
        InputError: nothing is chosen, something that is not there, or a level that is not stored.
        StorageError: the store's lists cannot be read.
    """
    if everything == bool(volume_ids or patients):
        raise InputError(
            "Say which volumes: their ids (`prdit ls STORE --volumes`), --patient KEY, or --all without either."
        )
    if not 0 <= level < store.grid.num_levels:
        raise InputError(f"--level {level}: {store.path} has levels 0 to {store.grid.num_levels - 1}.")
    if store.synthetic is not None:
        if snapshot is not None or patients:
            raise InputError(
                f"{store.path} holds generated volumes: it has no snapshots and no patients. Name volumes, or give --all."
            )
        digest, listed = "", dict.fromkeys(store.volume_ids())
        return Selection(store, level, digest, _chosen(listed, volume_ids, everything, str(store.path)))
    ref = newest(store) if snapshot is None else find(store, snapshot)
    opened, found = open_snapshot(ref)
    ids = [*volume_ids, *_of_patients(found.patients, patients, str(store.path))]
    where = f"snapshot {ref.digest[:19]}… of {store.path}"
    return Selection(opened, level, ref.digest, _chosen(found.volumes, ids, everything, where))


def _chosen(
    listed: Mapping[str, SnapshotVolume | None], ids: Sequence[str], everything: bool, where: str
) -> dict[str, SnapshotVolume | None]:
    """Those of the listed volumes that are asked for, in the order of the list."""
    if not listed:
        raise InputError(f"There is no volume in {where}.")
    if unknown := sorted(set(ids) - listed.keys()):
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise InputError(
            f"No volume {', '.join(unknown[:_NAMED])}{more} in {where}. `prdit ls STORE --volumes` lists those of scans; generated "
            "ones are in samples.json."
        )
    return {name: volume for name, volume in listed.items() if everything or name in ids}


def _of_patients(listed: Mapping[str, Sequence[str]], wanted: Sequence[str], where: str) -> list[str]:
    """Volume ids of patients by the beginnings of their keys."""
    ids: list[str] = []
    for beginning in wanted:
        keys = [key for key in listed if beginning and key.startswith(beginning)]
        if len(keys) != 1:
            raise InputError(
                f"--patient {beginning!r}: {len(keys)} patient keys of {where} begin so; expected the beginning of one. "
                "`prdit ls STORE --volumes` shows them."
            )
        ids += listed[keys[0]]
    return ids
