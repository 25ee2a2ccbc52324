"""Ingest: a folder of scans -> volume store, with a verdict for every scan and for every file that belongs to none."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.documents.verdicts import Entry, IngestReport, SourceVerdicts, Verdicts
from storage.errors import MissingArtifactError, SourceError, StorageError
from storage.files import replacing, sha256_bytes
from storage.patient_key import check_patient_key, load_patient_key
from storage.sources.files import check_source
from storage.sources.source import printable
from storage.sources.tables import PATIENTS_CSV
from storage.verdicts import REASONS, sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.scan import Scan, SourceScan, scan_source
from tasks.ingest.series import RECIPE, SeriesJob, ingest_series
from tasks.run.fanout import Lost, Pool

__all__ = ["RECIPE", "ingest", "ingest_scan", "last_report", "open_scan"]

LUNG_CUT_WARNING = 0.01
LISTED_FILES = 1000  # excluded single files in a report, per reason
_MEMORY_MB = 1300
_LISTS = ("committed", "unchanged", "skipped", "quarantined")
_FOREIGN = {"unknown_format", "archive", "not_regular_file", "dicomdir", "not_ct"}
Progress = Callable[[int, int], None]
logger = logging.getLogger("prdit.ingest")


@contextmanager
def open_scan(source: Path, store_path: Path, config: IngestConfig) -> Iterator[tuple[SourceScan, Pool]]:
    """Scan a source; the scan, and the worker processes that scanned it.

    Args: as for `ingest`.
    Raises: SourceError: the folder is missing or empty, or a table in it is malformed.
    """
    source, store_path = Path(source), Path(store_path)
    check_source(source)
    key = load_patient_key(_key_file(store_path, config))
    with (
        Pool(num_workers=config.num_workers, memory_mb=_MEMORY_MB, scheduler=config.scheduler) as pool,
        scan_source(source, store_path, key, pool) as scan,
    ):
        yield scan, pool


def ingest(source: Path, store_path: Path, config: IngestConfig, *, progress: Progress | None = None) -> IngestReport:
    """Bring a store up to date with a folder of scans. The source is only read.

    Args:
        source: folder, searched recursively.
        store_path: the store, made when missing.
        config: grid and limits; processes or scheduler; patient key.
        progress: called with (done, total) scans.
    Returns: the report; where nothing is usable, `committed` and `unchanged` are empty and the caller decides.
    Raises:
        SourceError: the folder is missing, empty or has no CT at all, or a table in it is malformed.
        StoreFormatError: the store has another grid, format or patient key.
        UnwritableError: the disk is full, say: nothing is quarantined for that.
    """
    with open_scan(source, store_path, config) as (scan, pool):
        return ingest_scan(scan, store_path, config, pool, progress=progress)


def ingest_scan(
    scan: SourceScan, store_path: Path, config: IngestConfig, pool: Pool, *, progress: Progress | None = None
) -> IngestReport:
    """`ingest` for a source that is scanned already."""
    store_path = Path(store_path)
    store = VolumeStore.create(
        store_path,
        spacing_mm=config.spacing_mm,
        num_levels=config.num_levels,
        interpolation=config.interpolation,
    )
    key_file = _key_file(store_path, config)
    check_patient_key(store_path, load_patient_key(key_file), key_file)
    mark = {"source_digest": scan.digest, "recipe": RECIPE, "config": config.key_fields()}
    record_path = _record_path(scan.source, store_path)
    known = _unchanged_report(store, record_path, mark)
    if known is not None:
        if progress:
            progress(len(known.unchanged), len(known.unchanged))
        return known
    entries, notes = _ingest_scans(scan, store, config, pool, progress)
    excluded, counts = _excluded(scan, entries, record_path.with_suffix(".jsonl"))
    if left_out := sum(counts.values()) - len(excluded):
        notes.append(
            f"{left_out} of {sum(counts.values())} exclusions are not listed here, but in {record_path.stem}.jsonl in the folder "
            "of the store's ingests, beside the store."
        )
    used = [entry for entry in entries if "reason" not in entry]
    lists: dict[str, Any] = {name: _entries([*used, *excluded], name) for name in _LISTS}
    lists |= {"num_excluded": dict(sorted(counts.items())), "notes": notes}
    report = IngestReport(fingerprint=store.fingerprint(), store=str(store_path.resolve()), **lists)
    verdicts = SourceVerdicts(**mark, **lists)
    verdicts.write(record_path)
    verdicts.without_paths().write(store_path / "exclusions" / record_path.name)
    for note in notes:
        logger.warning("%s", note)
    _refuse_without_ct(scan, counts)
    return report


def last_report(source: Path, store_path: Path, *, unchanged: bool) -> IngestReport:
    """The report of the last ingest of a source into a store, with real paths.

    Args:
        source, store_path: as given to `ingest`.
        unchanged: whether nothing had to be done since: what was committed then counts as unchanged.
    Raises: StorageError: the store or its record is not readable.
    """
    store = VolumeStore.open(store_path)
    record = SourceVerdicts.read(_record_path(source, store_path))
    lists = _lists(record)
    if unchanged:
        lists |= {"committed": [], "unchanged": [*lists["committed"], *lists["unchanged"]]}
    said = {"notes": record.notes, "num_excluded": record.num_excluded}
    return IngestReport(fingerprint=store.fingerprint(), store=str(store.path.resolve()), **lists, **said)


def _lists(verdicts: Verdicts) -> dict[str, list[Entry]]:
    return {name: getattr(verdicts, name) for name in _LISTS}


def _record_path(source: Path, store_path: Path) -> Path:
    """Where the last verdicts on a source are kept with their paths: beside the store, not in it."""
    name = f"{sha256_bytes(str(source.resolve()).encode())[:16]}.json"
    return store_path.with_name(store_path.name + ".ingests") / name


def _unchanged_report(store: VolumeStore, record_path: Path, mark: dict[str, Any]) -> IngestReport | None:
    """The last report of a source with the same bytes, configuration and recipe, as "unchanged"; None when it is outdated."""
    try:
        record = SourceVerdicts.read(record_path)
    except MissingArtifactError:
        return None
    except StorageError as error:
        logger.warning("%s The source is ingested again.", error)
        return None
    if any(getattr(record, name) != value for name, value in mark.items()):
        return None
    volumes = record.committed + record.unchanged
    ids = set(store.volume_ids())
    if not volumes or any(entry.volume_id not in ids for entry in volumes):
        return None
    if any(entry.reason not in REASONS or REASONS[entry.reason].transient for entry in record.quarantined):
        return None
    unchanged = sorted(volumes, key=lambda entry: str(entry.series_uid))
    return IngestReport(
        fingerprint=store.fingerprint(),
        store=str(store.path.resolve()),
        unchanged=[entry.model_copy(update={"seconds": None}) for entry in unchanged],
        skipped=record.skipped,
        quarantined=record.quarantined,
        num_excluded=record.num_excluded,
        notes=record.notes,
    )


def _key_file(store_path: Path, config: IngestConfig) -> Path:
    return Path(config.patient_key_file or f"{store_path}.patient-key")


def _ingest_scans(
    scan: SourceScan, store: VolumeStore, config: IngestConfig, pool: Pool, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Ingest the scans that are not in the store yet; (entries with their verdict, notes)."""
    records = [store.commit_record(volume_id) for volume_id in store.volume_ids()]
    have = {r["source"].get("series_digest"): r for r in records if r["source"].get("recipe") == RECIPE}
    entries: list[dict[str, Any]] = []
    unknown = 0

    def jobs() -> Iterator[SeriesJob]:
        nonlocal unknown
        for one in scan.scans():
            unknown += not one.patient_known
            if one.digest in have:
                entries.append(_unchanged_entry(have[one.digest], one))
            else:
                yield SeriesJob(str(scan.source), str(store.path), one, config)

    # A scheduler is given where this machine should not do the work.
    for job, result in pool.map(ingest_series, jobs(), in_process=0 if config.scheduler else 1):
        if isinstance(result, Lost):
            result = _lost_entry(job.scan, result)
        entries.append(result)
        _remove_superseded(store, records, result)
        if progress:
            progress(len(entries), scan.num_scans)
    if progress:
        progress(len(entries), scan.num_scans)
    return entries, [*_notes(entries, unknown), *scan.notes()]


def _unchanged_entry(record: dict[str, Any], scan: Scan) -> dict[str, Any]:
    source = record["source"]
    entry = {"series_uid": scan.scan_id, "volume_id": record["volume_id"], "num_slices": source["num_slices"]}
    return {**entry, "verdict": "unchanged", "cut": source["cut"], "notes": source["notes"]}


def _lost_entry(scan: Scan, lost: Lost) -> dict[str, Any]:
    """Raises: UserError: what the worker met concerns the whole ingest, as a full disk does."""
    if lost.error is not None:
        raise lost.error
    entry = {"series_uid": scan.scan_id, "num_slices": len(scan.files), "reason": lost.reason}
    return {**entry, "verdict": "quarantined", "message": sentence(lost.reason, f"scan {scan.scan_id}", lost.detail)}


def _remove_superseded(store: VolumeStore, records: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """A series that came again with other content replaces its old volume; one scan must not count twice."""
    if entry["verdict"] != "committed":
        return
    for record in records:
        same = record["source"].get("series_uid") == entry["series_uid"]
        if same and record["volume_id"] != entry["volume_id"]:
            store.remove(record["volume_id"])


def _notes(entries: Sequence[dict[str, Any]], unknown: int) -> list[str]:
    notes = []
    if unknown:
        notes.append(
            f"{unknown} scan(s) carry no PatientID and are not in {PATIENTS_CSV}: each counts as a patient of its own, so "
            "scans of one person may land in different roles."
        )
    for entry in sorted(entries, key=lambda entry: str(entry["series_uid"])):
        notes += [f"Scan {entry['series_uid']}: {note}." for note in entry.pop("notes", [])]
        if entry.get("cut") and entry["cut"]["lung"] > LUNG_CUT_WARNING:
            notes.append(
                f"Scan {entry['series_uid']}: the default view (256 voxels wide) cuts {entry['cut']['lung']:.1%} of the "
                f"lung and {entry['cut']['body']:.1%} of the body."
            )
    return notes


def _excluded(
    scan: SourceScan, entries: Sequence[dict[str, Any]], path: Path
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Write every exclusion as a line of JSON; (those for the report: all scans, the first files of each reason; counts)."""
    listed: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    files: Counter[str] = Counter()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for entry in _exclusions(scan, entries):
            reason = entry["reason"]
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
            counts[reason] += 1
            single = entry.get("num_slices") is None
            files[reason] += single
            if not single or files[reason] <= LISTED_FILES:
                listed.append(entry)
    return listed, counts


def _exclusions(scan: SourceScan, entries: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    yield from (entry for entry in entries if "reason" in entry)
    for one in scan.exclusions():
        entry = {"verdict": REASONS[one.reason].verdict, "reason": one.reason, "message": one.message}
        yield entry | {"series_uid": one.scan_id, "path": one.path, "num_slices": one.num_files}


def _entries(entries: Sequence[dict[str, Any]], verdict: str) -> list[Entry]:
    chosen = [{k: v for k, v in e.items() if k != "verdict"} for e in entries if e["verdict"] == verdict]
    chosen.sort(key=lambda e: (str(e.get("series_uid") or ""), str(e.get("path") or "")))
    return [Entry(**entry) for entry in chosen]


def _refuse_without_ct(scan: SourceScan, counts: Counter[str]) -> None:
    """Raise when no item of the source is CT: most likely the wrong folder was given."""
    if scan.num_scans or set(counts) - _FOREIGN:
        return
    found = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "no files"
    advice = " Unpack the archives first." if "archive" in counts else " Give a folder with CT as DICOM or NIfTI."
    raise SourceError(f"No CT in {printable(str(scan.source))}: {found}.{advice}")
