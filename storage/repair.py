"""What repairs a store's root and lists; its volumes are written again by the ingest of their source."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storage.documents.snapshot import HistoryEntry, Snapshot, SnapshotVolume
from storage.documents.volume import Grid
from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, StoreFormatError
from storage.snapshots import history, load_snapshot, snapshot_file, snapshot_files, snapshot_ref, update
from storage.volume_store import VolumeStore


def restore_root(path: Path, grid: Grid) -> VolumeStore:
    """Write a lost or wrong root again.

    Raises: StoreFormatError: the snapshots or volumes are on another grid, or there is a root and no snapshot to judge it by.
    """
    listed = {snapshot.grid for snapshot in readable_snapshots(path)}
    if listed - {grid} or (not listed and _readable_root(path)):
        known = ", ".join(sorted(str(found) for found in listed)) or "those of its root"
        raise StoreFormatError(
            f"{path} has the settings {known}; asked for: {grid} (ingest.*). Use the settings that the store was made with."
        )
    store = VolumeStore(path, grid)
    for volume_id in store.volume_ids():
        with suppress(DamagedArtifactError):
            record = store.commit_record(volume_id)
            if len(record.arrays) != grid.num_levels or any(abs(s - grid.spacing_mm) > 1e-6 for s in record.spacing_mm):
                raise StoreFormatError(
                    f"{path} holds volumes of {record.spacing_mm[0]} mm with {len(record.arrays)} levels, the settings say "
                    f"{grid.spacing_mm} mm and {grid.num_levels} (ingest.*). Use the settings that the store was made with."
                )
    return VolumeStore.write_root(path, grid)


def _readable_root(path: Path) -> bool:
    try:
        VolumeStore.open(path)
    except (MissingArtifactError, DamagedArtifactError):
        return False
    return True


def readable_snapshots(path: Path) -> list[Snapshot]:
    """The snapshots of a store that can be read."""
    found = []
    for file in snapshot_files(path):
        with suppress(StorageError):
            found.append(Snapshot.read(file))
    return found


def ever_listed(path: Path) -> dict[str, SnapshotVolume]:
    """Every volume that a readable snapshot of a store lists."""
    return {name: volume for snapshot in readable_snapshots(path) for name, volume in snapshot.volumes.items()}


def set_aside_damaged(store: VolumeStore) -> list[str]:
    """Rename snapshots and entries of the history that cannot be read, so that the newest good one counts again.

    What the newest readable entry has withdrawn stays withdrawn.
    Returns: names of the files.
    Raises: VersionError, UnreadableError: a list is of a newer prdit, or cannot be read now; nothing is renamed.
    """
    steps, aside = history(store.path), []
    newest_readable: HistoryEntry | None = None
    for file in snapshot_files(store.path):
        try:
            load_snapshot(snapshot_ref(store.path, f"sha256:{file.stem}"))
        except DamagedArtifactError:
            aside.append(file)
    for number in steps.numbers():
        try:
            newest_readable = steps.read(number)
        except DamagedArtifactError:
            aside.append(steps.path(number))
            continue
        file = snapshot_file(store.path, newest_readable.snapshot)
        if file in aside or not file.is_file():
            aside.append(steps.path(number))
    for file in aside:
        file.rename(file.with_suffix(".damaged"))
    if newest_readable is not None:
        withdrawn = frozenset(newest_readable.withdrawn)
        update(store, lambda old: replace(old, withdrawn=withdrawn), "repair")
    return [file.relative_to(store.path).as_posix() for file in aside]
