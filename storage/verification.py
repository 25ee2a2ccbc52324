"""Checks of a whole volume store: every byte of every volume, and every list against the volumes it names."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.documents.patient_key_id import PatientKeyId
from storage.documents.snapshot import HistoryEntry, Snapshot
from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, UnreadableError, VersionError
from storage.files import entries
from storage.repair import readable_snapshots
from storage.snapshots import history, listing, load_snapshot, role_ledgers, snapshot_files, snapshot_ref
from storage.tombstones import FOLDER, forgotten, tombstones
from storage.volume_store import VolumeStore


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written.

    Attributes:
        kind: `root`, `volume`, `snapshot`, `history`, `roles`, `patient key` or `forgotten`.
        name: which one.
        message: what is wrong and what to do, one sentence or two.
    """

    kind: str
    name: str
    message: str


def open_for_checking(path: Path) -> tuple[VolumeStore, list[Finding]]:
    """A store, even if its root is lost or damaged: its grid is then that of a snapshot.

    Raises: StorageError: neither root nor snapshot can be read.
    """
    try:
        return VolumeStore.open(path), []
    except StorageError as error:
        snapshots = readable_snapshots(path)
        if not snapshots:
            raise
        return VolumeStore(path, snapshots[0].grid), [Finding("root", "zarr.json", str(error))]


def check_volume(store: VolumeStore, volume_id: str) -> Finding | None:
    """Read every byte of one volume, and compare it with its commit record."""
    try:
        store.verify(volume_id)
    except (StorageError, ValueError) as error:
        return Finding("volume", volume_id, str(error))
    return None


def check_lists(store: VolumeStore) -> list[Finding]:
    """Check history, snapshots and ledgers of roles, and that every volume that a snapshot lists is committed as listed."""
    found: list[Finding] = []
    named: set[str] = set()
    steps = history(store.path)
    for number in steps.numbers():
        try:
            named.add(steps.read(number).snapshot)
        except StorageError as error:
            found.append(Finding("history", str(number), str(error)))
    found += _listed_though_withdrawn(store)
    found += _not_forgotten(store)
    with suppress(MissingArtifactError):  # of a store that no scan was ingested into
        try:
            PatientKeyId.load(store.path)
        except (DamagedArtifactError, UnreadableError, VersionError) as error:
            found.append(Finding("patient key", PatientKeyId.NAME, str(error)))
    files = {f"sha256:{file.stem}" for file in snapshot_files(store.path)}
    committed = set(store.volume_ids())
    for digest in sorted(named | files):
        found += _check_snapshot(store, digest, committed)
    for roles in role_ledgers(store.path):
        try:
            roles.newest()
        except StorageError as error:
            found.append(Finding("roles", roles.folder.name, str(error)))
    return found


def _listed_though_withdrawn(store: VolumeStore) -> list[Finding]:
    try:
        now = listing(store)
    except StorageError:
        return []  # found as history or snapshot
    both = sorted(now.volumes.keys() & now.withdrawn)
    return [
        Finding("history", name, f"Volume {name} is listed though it was withdrawn. {HistoryEntry.remedy(store.path)}")
        for name in both
    ]


def _not_forgotten(store: VolumeStore) -> list[Finding]:
    """Tombstones that cannot be read, and what is still there of patients who were forgotten."""
    try:
        graves = tombstones(store.path)
    except StorageError as error:
        return [Finding("forgotten", FOLDER, str(error))]
    there = {*store.volume_ids(), *(path.name[:-9] for path in entries(store.path / "volumes", "*-????????"))}
    found = []
    for grave in graves:
        left = there.intersection(grave.volume_ids)
        if not left and grave.finished:
            continue
        what = (
            f"{len(left)} volume(s) of a patient who was forgotten are still there"
            if left
            else "a forgetting was interrupted"
        )
        command = f"prdit forget --patient-key {grave.patient_key} --store {store.path} --yes"
        found.append(Finding("forgotten", grave.patient_key[:8], f"{what}: `{command}` deletes what is left."))
    return found


def _check_snapshot(store: VolumeStore, digest: str, committed: set[str]) -> list[Finding]:
    name = digest[:19]
    try:
        snapshot = load_snapshot(snapshot_ref(store.path, digest))
    except (StorageError, ValueError) as error:
        return [Finding("snapshot", name, str(error))]
    wrong = []
    if snapshot.grid != store.grid:
        wrong.append(f"it is of another grid than the store: {snapshot.grid}")
    if lost := sorted(snapshot.volumes.keys() - committed):
        wrong.append(f"it lists {len(lost)} volume(s) that are not committed ({', '.join(lost[:3])})")
    for volume_id in sorted(snapshot.volumes.keys() & committed):
        listed = snapshot.volumes[volume_id]
        try:
            record = store.commit_record(volume_id)
        except StorageError:
            continue  # found as a volume
        if (record.shape, record.attributes) != (listed.shape, listed.attributes):
            wrong.append(f"it lists volume {volume_id} with another shape or other attributes than were committed")
    return [Finding("snapshot", name, f"{sentence}. {Snapshot.remedy(store.path)}") for sentence in wrong]


def unnamed_folders(store: VolumeStore) -> list[Path]:
    """Folders of volumes that no commit record names: a process was killed just before its commit. The next ingest uses them."""
    named = set()
    for volume_id in store.volume_ids():
        try:
            named.add(store.commit_record(volume_id).folder)
        except StorageError:
            return []  # its folder is not known
    folders = (path for path in entries(store.path / "volumes", "*") if path.name not in named and path.is_dir())
    with suppress(StorageError):  # found by `check_lists`
        gone = forgotten(store.path).volumes
        folders = (path for path in folders if path.name[:-9] not in gone)
    return sorted(folders)
