"""One scan -> one committed volume: the work of one worker process."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import MissingArtifactError, UnusableSeriesError
from storage.files import naming_path, sha256_json
from storage.geometry import Volume, block_mean
from storage.resample import resample_series, target_grid
from storage.sources.formats import FORMATS
from storage.sources.source import Limits, refuse
from storage.verdicts import REASONS, sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.coverage import cut_shares
from tasks.ingest.scan import Scan

RECIPE = 1  # version of the arithmetic from source to stored HU; part of every volume id
MAX_VOXELS = 2**30


@dataclass(frozen=True)
class SeriesJob:
    """Everything a worker needs; it contains a patient key, never a patient's id."""

    source: str
    store: str
    scan: Scan
    config: IngestConfig


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
        volume_id, written, source = _convert(job)
    except UnusableSeriesError as error:
        found = {"reason": error.reason, "message": str(error), "path": error.file}
        return {**entry, "verdict": REASONS[error.reason].verdict, **found}
    except MemoryError:
        text = sentence("worker_died", f"scan {scan_id}", "out of memory")
        return {**entry, "verdict": "quarantined", "reason": "worker_died", "message": text}
    if not written and source["series_uid"] != scan_id:
        text = sentence("duplicate_volume", f"Scan {scan_id}", volume_id)
        return {**entry, "verdict": "skipped", "reason": "duplicate_volume", "message": text}
    seconds = round(time.monotonic() - started, 2)
    made = {"volume_id": volume_id, "cut": source["cut"], "seconds": seconds, "notes": source["notes"]}
    entry["num_slices"] = source["num_slices"]
    return {**entry, "verdict": "committed" if written else "unchanged", **made}


def _convert(job: SeriesJob) -> tuple[str, bool, dict[str, Any]]:
    """(volume id, written now, source record of the stored volume)."""
    config, scan = job.config, job.scan
    grid: dict[str, Any] = {
        "spacing_mm": config.spacing_mm,
        "num_levels": config.num_levels,
        "interpolation": config.interpolation,
    }
    store = VolumeStore.open(Path(job.store), **grid)
    limits = Limits(config.min_slices, config.nan)
    found = FORMATS[scan.format].load(Path(job.source), scan.files, scan.scan_id, limits)
    shape, _ = target_grid(found, config.spacing_mm)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        detail = f"{shape[0]} × {shape[1]} × {shape[2]} voxels at {config.spacing_mm} mm"
        refuse("too_large", f"Scan {scan.scan_id}", detail)
    identity = {"pixels": found.pixel_digest, "geometry": found.geometry(), "grid": grid, "recipe": RECIPE}
    volume_id = sha256_json(identity)[:32]
    try:
        return volume_id, False, store.commit_record(volume_id)["source"]
    except MissingArtifactError:
        pass
    volume = resample_series(found, spacing_mm=config.spacing_mm, interpolation=config.interpolation)
    factor = 2 ** (config.num_levels - 1)
    coarse = Volume(block_mean(volume.hu, factor), (config.spacing_mm * factor,) * 3, volume.origin_mm)
    source = {
        "series_uid": scan.scan_id,
        "series_digest": scan.digest,
        "format": scan.format,
        "recipe": RECIPE,
        "num_slices": int(found.hu.shape[0]),
        "num_duplicates": found.num_duplicates,
        "spacing_mm": [round(v, 5) for v in found.spacing_mm],
        "tilt_deg": found.tilt_deg,
        "cut": cut_shares(coarse, factor, volume.hu.shape),
        "notes": list(found.notes),
    }
    attributes = {"patient_key": scan.patient_key, "patient_known": scan.patient_known, **found.attributes}
    with naming_path(store.path):
        written = store.write(volume, volume_id=volume_id, attributes=attributes, source=source)
    return volume_id, written, store.commit_record(volume_id)["source"]
