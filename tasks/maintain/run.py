"""One maintenance: verify the store, remove what retention does not keep, measure the disk.

Each part is done although another cannot be: what could not be done is a note of the record.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.bucket_path import BucketPath
from storage.documents.upkeep import Damage, Place, Removal, Upkeep
from storage.errors import StorageError
from storage.files import remove_leftovers
from storage.inbox_database import NAME as LEDGER
from storage.inbox_ledger import Ledger
from storage.level_cache import LevelCache
from storage.privacy import BESIDE, beside_store
from storage.registry import ModelVersion
from tasks.inbox.batches import remove_finished
from tasks.maintain.config import RetentionConfig
from tasks.maintain.disk import free_bytes
from tasks.maintain.retention import Old, checkpoints, old_encoded, old_records, remove_old, stages
from tasks.maintain.verify import verify_store
from tasks.prune.plan import BUSY, Checkpoints, plan, size_of
from tasks.prune.remove import remove_all
from tasks.retrain.decisions import FOLDER as DECISIONS
from tasks.retrain.decisions import decisions
from tasks.run.progress import Advance

_GB = 1e9
logger = logging.getLogger("prdit.maintain")


@dataclass(frozen=True)
class Installation:
    """Where the parts of an installation are, and what is known of them.

    Attributes:
        store: volume store; it need not exist.
        workdir: working folder; it need not exist.
        services: state of the local services.
        arrivals: ledger and batches.
        errors: reports of faults.
        versions: of the registered model; None while MLflow does not answer.
        experiment: of MLflow, that the configuration names.
    """

    store: Path
    workdir: Path
    services: Path
    arrivals: Path
    errors: Path
    versions: Sequence[ModelVersion] | None = None
    experiment: str = ""

    def checkpoints(self, config: RetentionConfig) -> Checkpoints:
        """Which checkpoints are kept whatever their age, and which were given up."""
        return checkpoints(decisions(self.workdir / DECISIONS), self.versions, config)


@dataclass(frozen=True)
class Verified:
    """The last verification of a store; see `Upkeep`."""

    volumes: int | None = None
    at: str | None = None
    damage: tuple[Damage, ...] = ()


def last_verified(workdir: Path) -> Verified:
    """What the record of an earlier maintenance says; nothing where there is none, or it cannot be read."""
    with suppress(StorageError):
        found = Upkeep.load(workdir)
        return Verified(found.verified, found.verified_at, found.damage)
    return Verified()


def verify(store: Path, notes: list[str], progress: Advance | None = None) -> Verified:
    """Check every byte of a store.

    Args:
        store: it need not exist.
        notes: what could not be checked is added.
        progress: called with (volumes checked, total).
    """
    counted = 0

    def count(done: int, total: int) -> None:
        nonlocal counted
        counted = done
        if progress:
            progress(done, total)

    try:
        if not store.exists():
            return Verified()
        found, harmless = verify_store(store, progress=count)
    except StorageError as error:
        return Verified(None, _now(), (Damage(kind="store", name=store.name, message=str(error)),))
    notes += harmless
    damage = tuple(Damage(kind=each.kind, name=each.name, message=each.message) for each in found)
    return Verified(counted, _now(), damage)


def prune(place: Installation, config: RetentionConfig, notes: list[str]) -> list[Removal]:
    """Remove what retention does not keep; what could not be removed is a note."""
    removed = []
    for what in (_prune_stages, _prune_files):
        try:
            removed += what(place, config)
        except StorageError as error:
            notes.append(f"not everything could be removed: {error}")
    return removed


def _prune_stages(place: Installation, config: RetentionConfig) -> list[Removal]:
    removable = stages(place.workdir, config, place.checkpoints(config))
    rows = remove_all(removable, lambda done, total: None)
    kinds = dict.fromkeys(row.stage for row in rows)
    of_kind = {kind: [row.size_bytes for row in rows if row.stage == kind] for kind in kinds}
    return [Removal(what=f"stage {kind}", count=len(sizes), size_bytes=sum(sizes)) for kind, sizes in of_kind.items()]


def _prune_files(place: Installation, config: RetentionConfig) -> list[Removal]:
    leftovers = remove_leftovers(place.workdir, below=True) if place.workdir.is_dir() else []
    old = old_records(place.workdir, place.errors, config, place.checkpoints(config))
    removed = _counted(remove_old([*old, *old_encoded(place.store, config)]))
    if (place.arrivals / LEDGER).exists() and (count := remove_finished(Ledger(place.arrivals))):
        removed.append(Removal(what="folder of a finished batch", count=count, size_bytes=0))
    if leftovers:
        removed.append(Removal(what="temporary file of an ended process", count=len(leftovers), size_bytes=0))
    return removed


def _counted(old: Iterable[Old]) -> list[Removal]:
    found: dict[str, list[int]] = {}
    for each in old:
        found.setdefault(each.what, []).append(each.size_bytes)
    return [Removal(what=what, count=len(sizes), size_bytes=sum(sizes)) for what, sizes in found.items()]


def unfinished(workdir: Path) -> list[str]:
    """Stages that began and that no process works on: their run was stopped or killed, and can be run again."""
    if not workdir.is_dir():
        return []
    with suppress(StorageError):
        rows = plan(workdir, keep_runs=0, keep_days=0.0)
        return [
            f"{row.stage}/{row.key}"
            for row in rows
            if not row.finished and row.why != BUSY and not row.path.name.startswith(".")
        ]
    return []


def places(place: Installation) -> list[Place]:
    """What the parts of an installation take on disk; of a store in a bucket, what lies beside it and copies of volumes."""
    in_bucket = isinstance(place.store, BucketPath)
    parts = {
        "store": [
            LevelCache.from_environment().folder if in_bucket else place.store,
            *(beside_store(place.store, ending) for ending in BESIDE),
        ],
        "stages": [place.workdir],
        "inbox batches and ledger": [place.arrivals],
        "Prefect": [place.services / "prefect"],
        "MLflow": [place.services / "mlflow"],
        "logs of the services": [place.services / "logs"],
    }
    return [Place(name=name, size_bytes=sum(map(size_of, paths))) for name, paths in parts.items()]


def record(
    place: Installation,
    config: RetentionConfig,
    *,
    verified: Verified,
    removed: Sequence[Removal],
    notes: Sequence[str],
) -> Upkeep:
    """The record of a maintenance, written into the working folder. Raises: UnwritableError."""
    found = Upkeep(
        created=_now(),
        verified=verified.volumes,
        verified_at=verified.at,
        damage=verified.damage,
        removed=tuple(removed),
        places=tuple(places(place)),
        free_bytes=free_bytes(place.workdir),
        min_free_bytes=int(config.min_free_gb * _GB),
        unfinished=tuple(unfinished(place.workdir)),
        notes=tuple(notes),
    )
    found.save(place.workdir)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
