"""One scan -> one committed volume: the work of one worker process."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.documents.volume import ScanFacts, VolumeRecord
from storage.errors import DamagedArtifactError, MissingArtifactError, UnusableSeriesError, VersionError
from storage.files import sha256_json
from storage.geometry import Volume, block_mean
from storage.resample import resample_series, target_grid
from storage.sources.formats import FORMATS
from storage.sources.source import Limits, SourceVolume, refuse
from storage.verdicts import REASONS, sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.coverage import cut_shares
from tasks.ingest.scan import Scan

RECIPE = 1  # version of the arithmetic from source to stored HU; part of every volume id
MAX_VOXELS = 2**30


@dataclass(frozen=True)
class SeriesJob:
    """Everything a worker needs; it contains a patient key, never a patient's id.

    Attributes:
        source: folder of the source.
        store: path of the store.
        scan: what to ingest.
        config: grid and limits.
        longest: (slices, volume id) of the longest volume of this scan that is known already; (0, "") where there is none.
        broken: damaged volumes, which are to be written again: the attributes they are listed with by id, empty where none are.
    """

    source: str
    store: str
    scan: Scan
    config: IngestConfig
    longest: tuple[int, str] = (0, "")
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)


def ingest_series(job: SeriesJob) -> dict[str, Any]:
    """Read, resample, store and commit one scan.

    Returns: an entry for the report: `verdict`, `series_uid`, `num_slices` and `volume_id` with `cut`, or `reason` with
        `message`; and `notes`, sentences about what was assumed or replaced.
    Raises: UnwritableError: the store cannot be written.
    """
    started = time.monotonic()
    scan_id = job.scan.scan_id
    entry: dict[str, Any] = {"series_uid": scan_id, "num_slices": len(job.scan.files)}
    try:
        record, written = _convert(job)
    except UnusableSeriesError as error:
        found = {"reason": error.reason, "message": str(error), "path": error.file}
        return {**entry, "verdict": REASONS[error.reason].verdict, **found}
    except MemoryError:
        text = sentence("worker_died", f"scan {scan_id}", "out of memory")
        return {**entry, "verdict": "quarantined", "reason": "worker_died", "message": text}
    made = used_entry(record, scan_id, "committed" if written else "unchanged")
    return {**made, "seconds": round(time.monotonic() - started, 2)}


def used_entry(record: VolumeRecord, scan_id: str, verdict: str) -> dict[str, Any]:
    """Entry of a scan that is a committed volume."""
    entry: dict[str, Any] = {"series_uid": scan_id, "volume_id": record.volume_id, "verdict": verdict}
    if facts := record.scan:
        entry |= {"num_slices": facts.num_slices, "cut": facts.cut or None, "notes": list(facts.notes)}
    return entry


def _convert(job: SeriesJob) -> tuple[VolumeRecord, bool]:
    """(record of the scan's volume, whether it was written now)."""
    config, scan = job.config, job.scan
    store = VolumeStore.open(Path(job.store), config.grid)
    found = FORMATS[scan.format].load(Path(job.source), scan.files, scan.scan_id, Limits(config.min_slices, config.nan))
    shape, _ = target_grid(found, config.spacing_mm)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        detail = f"{shape[0]} × {shape[1]} × {shape[2]} voxels at {config.spacing_mm} mm"
        refuse("too_large", f"Scan {scan.scan_id}", detail)
    grid = config.grid.model_dump()
    identity = {"pixels": found.pixel_digest, "geometry": found.geometry(), "grid": grid, "recipe": RECIPE}
    volume_id = sha256_json(identity)[:32]
    num_slices, (longest, longer_id) = int(found.hu.shape[0]), job.longest
    if volume_id not in job.broken:
        if num_slices < longest:
            refuse("shorter_copy", f"Scan {scan.scan_id}", f"{num_slices} slices, volume {longer_id} of it {longest}")
        try:
            return store.commit_record(volume_id), False
        except MissingArtifactError:
            pass
        except (DamagedArtifactError, VersionError):
            refuse("damaged_volume", f"Scan {scan.scan_id}", f"volume {volume_id}")
    return _write(store, job, found, volume_id)


def _write(store: VolumeStore, job: SeriesJob, found: SourceVolume, volume_id: str) -> tuple[VolumeRecord, bool]:
    config, scan = job.config, job.scan
    volume = resample_series(found, spacing_mm=config.spacing_mm, interpolation=config.interpolation)
    factor = 2 ** (config.num_levels - 1)
    coarse = Volume(block_mean(volume.hu, factor), (config.spacing_mm * factor,) * 3, volume.origin_mm)
    sx, sy, sz = (round(v, 5) for v in found.spacing_mm)
    facts = ScanFacts(
        scan=scan.scan_id,
        format=scan.format,
        files_digest=scan.digest,
        recipe=RECIPE,
        num_slices=int(found.hu.shape[0]),
        num_duplicates=found.num_duplicates,
        spacing_mm=(sx, sy, sz),
        tilt_deg=found.tilt_deg,
        cut=cut_shares(coarse, factor, volume.hu.shape),
        notes=found.notes,
    )
    if volume_id in job.broken:
        attributes = job.broken[volume_id] or found.attributes  # a copy of the scan may have others than were committed
        store.repair(volume, volume_id=volume_id, attributes=attributes, scan=facts)
        return store.commit_record(volume_id), False
    written = store.write(volume, volume_id=volume_id, attributes=found.attributes, scan=facts)
    return store.commit_record(volume_id), written
