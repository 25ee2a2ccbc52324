"""Ingest: a folder of scans -> volume store, with a verdict for every series and for every file that belongs to none."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storage.dicom_attributes import PATIENTS_CSV, check_patient_key, load_patient_key, patient_key, read_patients_csv
from storage.dicom_scan import ScanResult, SeriesFiles, scan_files
from storage.documents.verdicts import Entry, IngestReport, SourceVerdicts, Verdicts
from storage.errors import MissingArtifactError, SourceError, StorageError
from storage.files import sha256_bytes, sha256_json
from storage.source_files import content_hashes, list_source, listing_digest
from storage.verdicts import REASONS, sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.series import RECIPE, SeriesJob, ingest_series, make_job
from tasks.run.fanout import Lost, fan_out

__all__ = ["RECIPE", "hash_cache", "ingest", "source_digest"]

LUNG_CUT_WARNING = 0.01
_MEMORY_MB = 1300
_LISTS = ("committed", "unchanged", "skipped", "quarantined")
logger = logging.getLogger("prdit.ingest")


def hash_cache(store_path: Path) -> Path:
    """Where the hashes of source files are cached: beside the store, as its key, because file names may reveal who was scanned."""
    return store_path.with_name(store_path.name + ".hashes.json")


def source_digest(source: Path, cache_file: Path) -> str:
    """`sha256:<hex>` of a source's relative paths and contents; hashes are cached by size and modification time.

    Raises: SourceError: the folder is missing or empty.
    """
    listing = list_source(source)
    return listing_digest(listing, content_hashes(source, listing.files, cache_file))


def ingest(
    source: Path,
    store_path: Path,
    config: IngestConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Bring a store up to date with a folder of scans. The source is only read.

    Args:
        source: folder, searched recursively.
        store_path: the store, made when missing.
        config: grid and limits; processes or scheduler; patient key.
        progress: called with (done, total) series.
    Returns: the report; where nothing is usable, `committed` and `unchanged` are empty and the caller decides.
    Raises:
        SourceError: the folder is missing, empty or has no CT at all.
        StoreFormatError: the store has another grid, format or patient key.
    """
    source, store_path = Path(source), Path(store_path)
    listing = list_source(source)
    store = VolumeStore.create(
        store_path,
        spacing_mm=config.spacing_mm,
        num_levels=config.num_levels,
        interpolation=config.interpolation,
    )
    key_file = Path(config.patient_key_file or f"{store_path}.patient-key")
    key = load_patient_key(key_file)
    check_patient_key(store_path, key, key_file)
    hashes = content_hashes(source, listing.files, hash_cache(store_path))
    digest = listing_digest(listing, hashes)
    mark = {"source_digest": digest, "recipe": RECIPE, "config": config.key_fields()}
    record_path = _record_path(source, store_path)
    known = _unchanged_report(store, record_path, mark)
    if known is not None:
        if progress:
            progress(len(known.unchanged), len(known.unchanged))
        return known
    scan = scan_files(source, [name for name in listing.files if name != PATIENTS_CSV])
    entries, notes = _ingest_scan(source, store, config, scan, hashes, key, progress)
    entries += [{"verdict": REASONS[e.reason].verdict, **_fields(e)} for e in scan.excluded]
    entries += [_other(other) for other in listing.others]
    lists: dict[str, Any] = {name: _entries(entries, name) for name in _LISTS}
    report = IngestReport(fingerprint=store.fingerprint(), store=str(store_path.resolve()), notes=notes, **lists)
    verdicts = SourceVerdicts(**mark, **lists, notes=notes)
    verdicts.write(record_path)
    verdicts.without_paths().write(store_path / "exclusions" / record_path.name)
    for note in notes:
        logger.warning(note)
    _refuse_without_ct(source, scan, report)
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
    return IngestReport(fingerprint=store.fingerprint(), store=str(store.path.resolve()), notes=record.notes, **lists)


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
        notes=record.notes,
    )


def _ingest_scan(
    source: Path,
    store: VolumeStore,
    config: IngestConfig,
    scan: ScanResult,
    hashes: dict[str, str],
    key: bytes,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Ingest the series that are not in the store yet; (entries with their verdict, notes)."""
    records = [store.commit_record(volume_id) for volume_id in store.volume_ids()]
    have = {r["source"].get("series_digest"): r for r in records if r["source"].get("recipe") == RECIPE}
    named = read_patients_csv(source)
    entries: list[dict[str, Any]] = []
    jobs: list[SeriesJob] = []
    unknown = 0
    for series in scan.series:
        digest = sha256_json(sorted(hashes[name] for name in series.files))
        patient = patient_key(key, _patient_id(series, named), series.series_uid)
        unknown += not patient[1]
        if digest in have:
            entries.append(_unchanged_entry(have[digest], series))
        else:
            jobs.append(make_job(series, source, store.path, digest, patient, config))
    total, present = len(scan.series), len(entries)
    if progress:
        progress(present, total)

    def advance(done: int, _: int) -> None:
        if progress:
            progress(present + done, total)

    results = fan_out(
        ingest_series,
        jobs,
        num_workers=config.num_workers,
        progress=advance,
        memory_mb=_MEMORY_MB,
        scheduler=config.scheduler,
    )
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Lost):
            text = sentence(result.reason, f"series {job.series_uid}", result.detail)
            result = {
                "verdict": "quarantined",
                "series_uid": job.series_uid,
                "reason": result.reason,
                "message": text,
                "num_slices": len(job.files),
            }
        entries.append(result)
        _remove_superseded(store, records, result)
    return entries, _notes(entries, unknown)


def _unchanged_entry(record: dict[str, Any], series: SeriesFiles) -> dict[str, Any]:
    entry = {"series_uid": series.series_uid, "volume_id": record["volume_id"], "cut": record["source"]["cut"]}
    return {"verdict": "unchanged", "num_slices": len(series.files), **entry}


def _remove_superseded(store: VolumeStore, records: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """A series that came again with other content replaces its old volume; one scan must not count twice."""
    if entry["verdict"] != "committed":
        return
    for record in records:
        same = record["source"].get("series_uid") == entry["series_uid"]
        if same and record["volume_id"] != entry["volume_id"]:
            store.remove(record["volume_id"])


def _patient_id(series: SeriesFiles, named: dict[str, str]) -> str:
    """PatientID of a series; without one, what patients.csv says for its UID, its file or a folder above."""
    if series.patient_id or series.series_uid in named:
        return series.patient_id or named[series.series_uid]
    first = Path(series.files[0])
    places = [first.as_posix(), *(parent.as_posix() for parent in first.parents)]
    return next((named[place] for place in places if place in named), "")


def _notes(entries: Sequence[dict[str, Any]], unknown: int) -> list[str]:
    notes = []
    if unknown:
        notes.append(
            f"{unknown} series carry no PatientID and are not in {PATIENTS_CSV}: each counts as a patient of its own, so "
            "scans of one person may land in different roles."
        )
    for entry in entries:
        if entry.get("cut") and entry["cut"]["lung"] > LUNG_CUT_WARNING:
            notes.append(
                f"Series {entry['series_uid']}: the default view (256 voxels wide) cuts {entry['cut']['lung']:.1%} of the "
                f"lung and {entry['cut']['body']:.1%} of the body."
            )
    return notes


def _fields(excluded: Any) -> dict[str, Any]:
    return {name: getattr(excluded, name) for name in ("series_uid", "path", "reason", "message", "num_slices")}


def _other(other: tuple[str, str, str]) -> dict[str, Any]:
    path, reason, detail = other
    verdict = REASONS[reason].verdict
    return {"verdict": verdict, "path": path, "reason": reason, "message": sentence(reason, path, detail)}


def _entries(entries: Sequence[dict[str, Any]], verdict: str) -> list[Entry]:
    chosen = [{k: v for k, v in e.items() if k != "verdict"} for e in entries if e["verdict"] == verdict]
    chosen.sort(key=lambda e: (str(e.get("series_uid") or ""), str(e.get("path") or "")))
    return [Entry(**entry) for entry in chosen]


def _refuse_without_ct(source: Path, scan: ScanResult, report: IngestReport) -> None:
    """Raise when no item of the source is CT: most likely the wrong folder was given."""
    foreign = {"not_dicom", "archive", "not_regular_file", "dicomdir", "not_ct"}
    found = [entry.reason or "" for entry in (*report.skipped, *report.quarantined)]
    if scan.series or any(reason not in foreign for reason in found):
        return
    counts = ", ".join(f"{found.count(reason)} {reason}" for reason in sorted(set(found)))
    advice = " Unpack the archives first." if "archive" in found else " Give a folder with DICOM CT series."
    raise SourceError(f"No CT in {source}: {counts or 'no files'}.{advice}")
