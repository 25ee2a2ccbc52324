"""Ingest: a folder of scans -> volume store and snapshot, with a verdict for every scan and for every file that belongs to none."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from storage.documents.verdicts import LISTS, IngestReport, SourceVerdicts
from storage.errors import DamagedArtifactError, MissingArtifactError, SourceError, StorageError, StoreFormatError
from storage.patient_key import check_key_there, check_patient_key, load_patient_key
from storage.places import as_place
from storage.repair import ever_listed, restore_root, set_aside_damaged
from storage.snapshots import history, listing, load_snapshot, newest, update
from storage.sources.files import check_source
from storage.tombstones import forgotten
from storage.verdicts import REASONS, counted
from storage.verification import check_volume
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.qc import PAGE, page_path, write_page
from tasks.ingest.report import excluded, listed_entries, refuse_without_ct
from tasks.ingest.scan import SourceScan, scan_source, source_record
from tasks.ingest.scans import Admit, StoreState, list_scans, read_scans
from tasks.ingest.series import RECIPE
from tasks.run.fanout import Pool
from tasks.run.runners import Runner

__all__ = ["RECIPE", "Admit", "ingest", "ingest_scan", "last_report", "open_scan"]

_MEMORY_MB = 1300
Progress = Callable[[int, int], None]
logger = logging.getLogger("prdit.ingest")


@contextmanager
def open_scan(
    source: Path, store_path: Path, config: IngestConfig, *, repair: bool = False, runner: Runner | None = None
) -> Iterator[tuple[SourceScan, Pool]]:
    """Scan a source; the scan, and the worker processes that scanned it.

    Args: as for `ingest`.
    Raises:
        SourceError: the folder is missing, empty, has no CT at all or the store in it, or a table in it is malformed.
        StorageError: there is a store that cannot be used, and `repair` was not asked for.
        RunnerError: what the runner needs is missing.
    """
    source, store_path = as_place(source), as_place(store_path)
    check_source(source)
    source, store_path = source.resolve(), store_path.resolve()  # as workers elsewhere find them
    if store_path.is_relative_to(source):
        raise SourceError(
            f"The store {store_path} lies in the source {source}, which is only read: choose another place for it."
        )
    if not repair:
        with suppress(MissingArtifactError):
            VolumeStore.open(store_path, config.grid)  # refused before the source is read, which may take long
    if runner is not None:
        runner.check()
    key = patient_key_of(store_path, config)
    with (
        Pool(runner, memory_mb=_MEMORY_MB) as pool,
        scan_source(source, store_path, key, pool, archives=config.archives) as scan,
    ):
        refuse_without_ct(scan, archives=config.archives)
        yield scan, pool


def ingest(
    source: Path,
    store_path: Path,
    config: IngestConfig,
    *,
    progress: Progress | None = None,
    repair: bool = False,
    runner: Runner | None = None,
    admit: Admit | None = None,
) -> IngestReport:
    """Bring a store up to date with a folder of scans. The source is only read.

    Args:
        source: folder, searched recursively.
        store_path: the store, made when missing.
        config: grid and limits; patient key.
        progress: called with (done, total) scans.
        repair: check every byte of the store first, and write again what is damaged or lost and the source still has.
        runner: where scans are read; default: processes of this machine.
        admit: called with the store, the committed volumes that would be new to its list, by id, and the snapshot of what it lists
            (None: nothing), before they are listed; raises a `UserError` to prevent it. What is committed stays, and the next
            ingest of this source without it lists the volumes, without reading pixels again.
    Returns: the report; where nothing is usable, `committed` and `unchanged` are empty and the caller decides.
    Raises:
        SourceError: the folder is missing, empty or has no CT at all, or a table in it is malformed.
        StorageError: the store has another grid, format or patient key, or its lists are damaged and `repair` was not asked for.
        UnwritableError: the disk is full, say: nothing is quarantined for that.
        UserError: of `admit`, after the verdicts are written, in which those volumes are quarantined as `held`.
    """
    with open_scan(source, store_path, config, repair=repair, runner=runner) as (scan, pool):
        return ingest_scan(scan, store_path, config, pool, progress=progress, repair=repair, admit=admit).with_paths()


def ingest_scan(
    scan: SourceScan,
    store_path: Path,
    config: IngestConfig,
    pool: Pool,
    *,
    progress: Progress | None = None,
    repair: bool = False,
    admit: Admit | None = None,
) -> IngestReport:
    """`ingest` for a source that is scanned already; messages name files by `storage.privacy.PATH`."""
    state = _open(as_place(store_path), config, pool, repair=repair)
    key = patient_key_of(store_path, config)
    record_path = source_record(scan.source, state.store.path, key)
    before = _last_verdicts(record_path)
    mark = _mark(scan, config)
    if not repair and before and before.used and _still_holds(before, mark, state.store):
        if progress:
            progress(len(before.used), len(before.used))
        if not page_path(state.store.path).exists():
            _write_page(state.store)
        return _as_unchanged(before, state.store)
    read = read_scans(scan, state, config, pool, before=before, progress=progress)
    snapshot = list_scans(read, state, source=record_path.stem, before=before, admit=admit)
    left_out, counts, odd = excluded(scan, read.entries, record_path.with_suffix(".jsonl"))
    notes = [*state.notes, *read.notes(), *scan.notes()]
    if still := sorted(state.broken.keys() - read.seen.keys()):
        notes.append(
            f"{counted(len(still), 'damaged volume')} not repaired: {', '.join(still)}. This source has no whole copy (see the "
            "exclusions). Repair from one that has, or withdraw (prdit remove)."
        )
    if snapshot and (synthetic := load_snapshot(snapshot).num_synthetic):
        notes.append(
            f"{counted(synthetic, 'listed volume')} generated by a model, by what the files say (ingest.synthetic=accept): a "
            "training on the snapshot learns from them as from scans."
        )
    if missing := sum(counts.values()) - len(left_out):
        notes.append(
            f"{missing} of {sum(counts.values())} exclusions are not listed here, but in {record_path.stem}.jsonl in the folder "
            "of the store's ingests, beside the store."
        )
    used = [entry for entry in read.entries if "reason" not in entry]
    lists: dict[str, Any] = {name: listed_entries([*used, *left_out], name, dict(config)) for name in LISTS}
    verdicts = SourceVerdicts(
        **mark,
        **lists,
        num_excluded=dict(sorted(counts.items())),
        num_odd_images={reason: number for reason, number in sorted(odd.items()) if number},
        notes=notes,
        snapshot=snapshot.digest if snapshot else "",
    )
    verdicts.write(record_path)
    verdicts.without_paths(key).write(state.store.path / "exclusions" / record_path.name)
    for note in notes:
        logger.warning("%s", note)
    _write_page(state.store)
    if read.refusal is not None:
        raise read.refusal
    return IngestReport.of(verdicts, snapshot=snapshot.digest if snapshot else "", store=state.store.path)


def verdicts_hold(scan: SourceScan, store_path: Path, config: IngestConfig) -> bool:
    """Whether the last verdicts on a source are those that an ingest of it would give now.

    They are not where it was moved, had other files at its last ingest, or something that was left out is to be tried again.

    Raises: StorageError: the store, its lists or its key file are not readable.
    """
    store = VolumeStore.open(as_place(store_path), config.grid)
    before = _last_verdicts(source_record(scan.source, store.path, patient_key_of(store.path, config)))
    return before is not None and _still_holds(before, _mark(scan, config), store)


def last_report(source: Path, store_path: Path, config: IngestConfig, *, unchanged: bool) -> IngestReport:
    """The report of the last ingest of a source into a store, with real paths.

    Args:
        source, store_path, config: as given to `ingest`.
        unchanged: whether nothing had to be done since: what was committed then counts as unchanged.
    Raises: StorageError: the store or its record is not readable.
    """
    store = VolumeStore.open(store_path)
    record = SourceVerdicts.read(source_record(source, store_path, patient_key_of(store_path, config)))
    if unchanged:
        return _as_unchanged(record, store).with_paths()
    snapshot = newest(store).digest if history(store.path).numbers() else ""
    return IngestReport.of(record, snapshot=snapshot, store=store.path).with_paths()


def patient_key_of(store_path: Path, config: IngestConfig) -> bytes:
    """The secret of a store's patient keys and opaque ids, made for a new store.

    Raises: SourceError, UnwritableError: see `load_patient_key`; StoreFormatError: that of the store is not here.
    """
    key_file = config.key_file(as_place(store_path))
    check_key_there(as_place(store_path), key_file)
    return load_patient_key(key_file)


def _open(path: Path, config: IngestConfig, pool: Pool, *, repair: bool) -> StoreState:
    """Open or make the store, and remove what killed processes left."""
    notes = []
    try:
        store = VolumeStore.create(path, **config.grid.model_dump())
    except (MissingArtifactError, DamagedArtifactError, StoreFormatError):
        if not repair or (path.exists() and not any((path / name).exists() for name in ("zarr.json", "commits"))):
            raise  # the last: some other folder
        store = restore_root(path, config.grid)
        notes.append("The store's root was lost or damaged, and is written again.")
    key_file = config.key_file(path)
    secret = load_patient_key(key_file)
    check_patient_key(path, secret, key_file)
    if left := store.clean():
        logger.info("removed %d temporary files and folders that ended processes left in %s", len(left), path)
    broken: set[str] = set()
    if repair:
        if aside := set_aside_damaged(store):
            notes.append(f"Damaged lists of the store were set aside (renamed): {', '.join(aside)}.")
        checks = pool.map(partial(check_volume, store), store.volume_ids())
        broken = {volume_id for volume_id, found in checks if found is not None}
    listed = ever_listed(path) if repair else {}
    gone = forgotten(path)
    broken = (broken | (listed.keys() - set(store.volume_ids()))) - gone.volumes
    if there := gone.volumes.intersection(store.volume_ids()):  # whoever forgot the patient was killed before
        if history(path).numbers():
            update(store, lambda old: old, "forgotten")
        for volume_id in there:
            store.delete(volume_id)
    attributes = {name: dict(listed[name].attributes) if name in listed else {} for name in broken}
    return StoreState(store, listing(store), attributes, notes, secret)


def _mark(scan: SourceScan, config: IngestConfig) -> dict[str, Any]:
    """What the verdicts on a source depend on, as `SourceVerdicts` keeps it."""
    return {"source_digest": scan.digest, "recipe": RECIPE, "config": config.key_fields()}


def _still_holds(record: SourceVerdicts, mark: dict[str, Any], store: VolumeStore) -> bool:
    """Whether a source has the same bytes, configuration and recipe as at its last ingest, and the store lists what it did then.

    Tables of the source that is ingested last count: after an ingest of another one this one is heard again.
    """
    if any(getattr(record, name) != value for name, value in mark.items()):
        return False
    if not history(store.path).numbers() or newest(store).digest != record.snapshot:
        return False
    left_out = [*record.skipped, *record.quarantined]
    return not any(entry.reason not in REASONS or REASONS[entry.reason].transient for entry in left_out)


def _as_unchanged(record: SourceVerdicts, store: VolumeStore) -> IngestReport:
    """The last report of a source, what it committed as unchanged."""
    unchanged = [entry.model_copy(update={"seconds": None}) for entry in record.used]
    verdicts = record.model_copy(update={"committed": [], "unchanged": unchanged})
    return IngestReport.of(verdicts, snapshot=newest(store).digest, store=store.path)


def _write_page(store: VolumeStore) -> None:
    """Write the quality page; an ingest that cannot is complete without."""
    try:
        write_page(store)
    except StorageError as error:
        logger.warning("%s was not written (%s). `prdit qc %s` writes it.", PAGE, error, store.path)


def _last_verdicts(path: Path) -> SourceVerdicts | None:
    try:
        return SourceVerdicts.read(path)
    except MissingArtifactError:
        return None
    except StorageError as error:
        logger.warning("%s The source is ingested again.", error)
        return None
