"""Snapshots of a volume store: taken when its list changes, immutable, found again by digest.

A snapshot is a file named by the hash of its content; the store's history says which one is newest and how it came about. Volumes
are withdrawn by leaving them out of the next snapshot: older ones, and what was made from them, keep meaning what they said.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from storage.artifacts import Ref
from storage.documents.snapshot import HistoryEntry, Roles, Snapshot, SnapshotVolume
from storage.errors import DamagedArtifactError, ForgottenError, InputError, MissingArtifactError
from storage.files import entries
from storage.numbered import Numbered
from storage.tombstones import forgotten
from storage.volume_store import VolumeStore

FOLDER = "snapshots"
_ROLES = "roles"


@dataclass(frozen=True)
class Listing:
    """What a store lists now, as a change to it sees it.

    Attributes:
        volumes: by volume id.
        withdrawn: ids that are not to be listed again.
        patients_by, labels_by: volume id -> opaque id of the source whose table gave its patient, or its labels.
        identified_by: volume id -> opaque id of the source whose files gave its patient.
    """

    volumes: dict[str, SnapshotVolume] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()
    patients_by: dict[str, str] = field(default_factory=dict)
    labels_by: dict[str, str] = field(default_factory=dict)
    identified_by: dict[str, str] = field(default_factory=dict)


def history(store: Path) -> Numbered[HistoryEntry]:
    """The steps of a store's history."""
    return Numbered(store / "history", HistoryEntry)


def update(store: VolumeStore, change: Callable[[Listing], Listing], why: str) -> Ref:
    """Take a snapshot of a changed list; the newest one stays where nothing changes.

    Args:
        store: opened store.
        change: the list now -> the new one; called again where another process changed it meanwhile.
            Withdrawn volumes are left out, and those of forgotten patients.
        why: what makes the change, in a word or two; the history adds what changed.
    Returns: reference of the snapshot that is newest afterwards.
    Raises:
        MissingArtifactError: the new list has a volume that is not committed.
        StorageError: the history is damaged, or cannot be written.
    """

    def step(entry: HistoryEntry | None) -> HistoryEntry:
        old = _listing(store, entry)
        new = change(old)
        gone = forgotten(store.path)
        kept = {name: volume for name, volume in new.volumes.items() if name not in new.withdrawn}
        kept = {name: one for name, one in kept.items() if not gone.why(one.patient_key, volume_id=name)}
        new = replace(new, volumes=kept)
        if entry is not None and new == old:
            return entry
        snapshot = Snapshot(grid=store.grid, volumes=dict(sorted(new.volumes.items())))
        for volume_id in new.volumes.keys() - old.volumes.keys():
            store.commit_record(volume_id)
        digest = snapshot.digest
        snapshot.put(snapshot_file(store.path, digest))
        return HistoryEntry(
            snapshot=digest,
            change=_described(why, old, new),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            num_volumes=len(new.volumes),
            num_patients=len(snapshot.patients),
            withdrawn=tuple(sorted(new.withdrawn)),
            patients_by={key: value for key, value in sorted(new.patients_by.items()) if key in new.volumes},
            labels_by={key: value for key, value in sorted(new.labels_by.items()) if key in new.volumes},
            identified_by={key: value for key, value in sorted(new.identified_by.items()) if key in new.volumes},
        )

    return snapshot_ref(store.path, history(store.path).update(step).snapshot)


def _described(why: str, old: Listing, new: Listing) -> str:
    """What changed, counted."""
    changed = changes(old.volumes, new.volumes)
    return f"{why}: " + (", ".join(f"{len(ids)} {what}" for what, ids in changed.items() if ids) or "no other volumes")


def changes(old: Mapping[str, SnapshotVolume], new: Mapping[str, SnapshotVolume]) -> dict[str, list[str]]:
    """How two lists of volumes differ, in words: ids of the volumes, sorted."""
    both = new.keys() & old.keys()
    return {
        "new": sorted(new.keys() - both),
        "left out": sorted(old.keys() - both),
        "with another patient": sorted(v for v in both if new[v].patient_key != old[v].patient_key),
        "with other labels": sorted(v for v in both if new[v].labels != old[v].labels),
    }


def listing(store: VolumeStore) -> Listing:
    """What a store lists now. Raises: StorageError: its newest snapshot is damaged."""
    return _listing(store, history(store.path).newest())


def _listing(store: VolumeStore, entry: HistoryEntry | None) -> Listing:
    if entry is None:
        return Listing()
    snapshot = load_snapshot(snapshot_ref(store.path, entry.snapshot))
    withdrawn = frozenset(entry.withdrawn)
    return Listing(
        dict(snapshot.volumes), withdrawn, dict(entry.patients_by), dict(entry.labels_by), dict(entry.identified_by)
    )


def list_all(store: VolumeStore, volumes: Mapping[str, SnapshotVolume], why: str) -> Ref:
    """Add volumes to what a store lists, or change how they are listed."""
    return update(store, lambda old: replace(old, volumes={**old.volumes, **volumes}), why)


def role_ledger(store: Path, name: str) -> Numbered[Roles]:
    """The roles that splits of one name gave to patients; their versions are kept."""
    return Numbered(store / _ROLES / name, Roles)


def role_ledgers(store: Path) -> list[Numbered[Roles]]:
    """Those of all names. Raises: UnreadableError."""
    return [role_ledger(store, folder.name) for folder in entries(store / _ROLES, "*") if folder.is_dir()]


def snapshot_files(store: Path) -> list[Path]:
    """Files of all snapshots, in the order of their names. Raises: UnreadableError."""
    return entries(store / FOLDER, "*.json")


def snapshot_file(store: Path, digest: str) -> Path:
    """File of the snapshot of a digest."""
    return store / FOLDER / f"{digest.removeprefix('sha256:')}.json"


def withdraw(store: VolumeStore, volume_ids: Collection[str]) -> Ref:
    """Leave volumes out of the next snapshot and of all later ones; their bytes stay for the older snapshots.

    Those that are withdrawn already stay so.

    Raises: InputError: one was never listed.
    """

    def change(old: Listing) -> Listing:
        if unknown := sorted(set(volume_ids) - old.volumes.keys() - old.withdrawn):
            raise InputError(
                f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not listed in {store.path}. `prdit ls "
                f"{store.path} --volumes` shows the volumes that are."
            )
        kept = {name: volume for name, volume in old.volumes.items() if name not in volume_ids}
        return replace(old, volumes=kept, withdrawn=old.withdrawn | set(volume_ids))

    return update(store, change, "withdrawn")


def allow_again(store: VolumeStore, volume_ids: Collection[str]) -> Ref:
    """Take back `withdraw`: the next ingest of their source lists the volumes again.

    Raises: InputError: one was not withdrawn.
    """

    def change(old: Listing) -> Listing:
        if unknown := sorted(set(volume_ids) - old.withdrawn):
            raise InputError(f"{', '.join(unknown)}: not withdrawn from {store.path}.")
        return replace(old, withdrawn=old.withdrawn - set(volume_ids))

    return update(store, change, "no longer withdrawn")


def newest(store: VolumeStore) -> Ref:
    """Reference of what a store lists now.

    Raises: MissingArtifactError: nothing was ever listed.
    """
    entry = history(store.path).newest()
    if entry is None:
        raise MissingArtifactError(
            f"The store {store.path} has no snapshot: no ingest has finished. Run `prdit ingest`."
        )
    return snapshot_ref(store.path, entry.snapshot)


def redact_snapshots(store: Path, volume_ids: Collection[str]) -> list[str]:
    """Take what older snapshots say of volumes out of them; they keep their digests. Returns: digests of those that listed any.

    Raises: StorageError: one of them cannot be read; UnwritableError.
    """
    listed_any = []
    for file in snapshot_files(store):
        snapshot = load_snapshot(snapshot_ref(store, f"sha256:{file.stem}"))
        new = snapshot.without(volume_ids)
        if new is not snapshot:
            new.write(file)
        if set(new.forgotten).intersection(volume_ids):
            listed_any.append(snapshot.digest)
    return listed_any


def find(store: VolumeStore, name: str) -> Ref:
    """Reference of a snapshot by its digest, the beginning of it (8 digits or more), or its number in the history.

    Raises: InputError: there is no such snapshot, or more than one.
    """
    wanted = name.removeprefix("sha256:")
    steps = history(store.path)
    if wanted.isdigit() and int(wanted) in steps.numbers():
        return snapshot_ref(store.path, steps.read(int(wanted)).snapshot)
    found = [path.stem for path in snapshot_files(store.path) if path.stem.startswith(wanted)]
    if len(wanted) < 8 or len(found) != 1:
        why = f"{len(found)} snapshots begin so" if len(wanted) >= 8 else "expected a number, or 8 digits of a digest"
        raise InputError(f"Snapshot {name!r} of {store.path}: {why}. `prdit ls {store.path}` lists them.")
    return snapshot_ref(store.path, f"sha256:{found[0]}")


def load_snapshot(ref: Ref) -> Snapshot:
    """The snapshot of a reference.

    Raises:
        InputError: a reference to something else.
        MissingArtifactError: the store has no such snapshot.
        DamagedArtifactError: its content is not that of its digest.
    """
    if ref.kind != "snapshot":
        raise InputError(f"Expected a reference to a snapshot of a volume store, got a {ref.kind} at {ref.uri}.")
    path = snapshot_file(ref.path, ref.digest)
    snapshot = Snapshot.read(path)
    if snapshot.digest != ref.digest:
        raise DamagedArtifactError(
            f"{path} was changed after it was written (its content has another hash). {Snapshot.remedy(path)}"
        )
    return snapshot


def open_snapshot(ref: Ref) -> tuple[VolumeStore, Snapshot]:
    """The store of a snapshot and the snapshot, after checking that it has every volume listed.

    Raises:
        ForgottenError: a patient whose volumes it listed was forgotten.
        MissingArtifactError: a volume is not there any more, or the snapshot is not.
        StorageError: store or snapshot is damaged, or of another grid.
    """
    snapshot = load_snapshot(ref)
    if snapshot.forgotten:
        raise ForgottenError(
            f"Snapshot {ref.digest[:19]}… of {ref.path} listed {len(snapshot.forgotten)} volume(s) of a patient who was forgotten "
            "since, so nothing can be computed on it any more. Work on the newest one, which has the others: leave `snapshot` out."
        )
    store = VolumeStore.open(ref.path, snapshot.grid)
    if missing := sorted(snapshot.volumes.keys() - set(store.volume_ids())):
        raise MissingArtifactError(
            f"Snapshot {ref.digest[:19]}… lists {len(missing)} volume(s) that the store {ref.path} has lost (first: {missing[0]}). "
            f"`prdit ingest SOURCE --store {ref.path} --repair` makes them again where SOURCE still has the scans."
        )
    return store, snapshot


def snapshot_ref(store: Path, digest: str) -> Ref:
    """Reference of the snapshot of a digest."""
    return Ref(kind="snapshot", uri=str(store.resolve()), digest=digest)
