"""The facts that decide whether a retraining is due, from the store, the records of retrainings, and the champion."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot
from storage.errors import MissingArtifactError
from storage.registry import SNAPSHOT, ModelVersion
from storage.snapshots import load_snapshot, newest, snapshot_ref
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.retrain.due import Facts, Last
from tasks.retrain.rounds import Rounds


def newest_snapshot(store: Path, ingest: IngestConfig) -> Ref | None:
    """What a store lists now; None where there is no store, or nothing was ever listed.

    Raises: StorageError: the store has another grid than the configuration, or is damaged.
    """
    try:
        return newest(VolumeStore.open(store, ingest.grid))
    except MissingArtifactError:
        return None


def facts_of(snapshot: Ref | None, rounds: Rounds, champion: ModelVersion | None, now: datetime) -> Facts:
    """The facts of a moment.

    Args:
        snapshot: what the store lists now; None: nothing.
        rounds: retrainings of the working folder.
        champion: of the registered model; None: there is none.
        now: the time, with its zone.
    Raises: StorageError: a record or a snapshot is damaged.
    """
    last, refused = last_training(rounds, champion), champion.refused if champion else ""
    if snapshot is None:
        return Facts("", 0, 0, 0, 0, last, refused, now)
    listed, before = load_snapshot(snapshot), _snapshot_before(snapshot.path, last)
    if last and before:
        last = replace(last, num_volumes=len(before.volumes))
    old = before.volumes if before else {}
    new, known = listed.volumes.keys() - old.keys(), {volume.patient_key for volume in old.values()}
    return Facts(
        snapshot=snapshot.digest,
        num_volumes=len(listed.volumes),
        num_patients=len(listed.patients),
        new_volumes=len(new),
        new_patients=len({listed.volumes[name].patient_key for name in new} - known),
        last=last,
        refused=refused,
        now=now,
    )


def last_training(rounds: Rounds, champion: ModelVersion | None) -> Last | None:
    """The last training that was judged; else that of the champion, which was then promoted by hand."""
    if found := rounds.last():
        return Last(found.snapshot, found.num_volumes, datetime.fromisoformat(found.begun))
    if champion is None or not champion.tags.get(SNAPSHOT):
        return None
    created = datetime.fromisoformat(champion.created) if champion.created else None
    return Last(champion.tags[SNAPSHOT], 0, created)


def _snapshot_before(store: Path, last: Last | None) -> Snapshot | None:
    """The snapshot of the last training; None where there was none, or it is not in this store."""
    if last is None:
        return None
    try:
        return load_snapshot(snapshot_ref(store, last.snapshot))
    except MissingArtifactError:
        return None
