"""One series -> one committed volume: the work of one worker process."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.dicom_attributes import allowed_attributes
from storage.dicom_scan import SeriesFiles
from storage.dicom_series import load_series
from storage.errors import UnusableSeriesError
from storage.files import sha256_json
from storage.geometry import Volume, block_mean
from storage.resample import resample_series, target_grid
from storage.verdicts import sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.coverage import cut_shares

RECIPE = 1  # version of the arithmetic from DICOM to stored HU; part of every volume id
MAX_VOXELS = 2**30


@dataclass(frozen=True)
class SeriesJob:
    """Everything a worker needs; it contains a patient key, never a PatientID."""

    source: str
    store: str
    series_uid: str
    files: tuple[str, ...]
    series_digest: str
    patient_key: str
    patient_known: bool
    config: IngestConfig


def make_job(
    series: SeriesFiles, source: Path, store: Path, digest: str, patient: tuple[str, bool], config: IngestConfig
) -> SeriesJob:
    """The job of one scanned series."""
    return SeriesJob(str(source), str(store), series.series_uid, series.files, digest, patient[0], patient[1], config)


def ingest_series(job: SeriesJob) -> dict[str, Any]:
    """Read, resample, store and commit one series.

    Returns: an entry for the report: `verdict`, `series_uid`, `num_slices` and `volume_id` with `cut`, or `reason` with
        `message`.
    """
    started = time.monotonic()
    entry: dict[str, Any] = {"series_uid": job.series_uid, "num_slices": len(job.files)}
    try:
        volume_id, written, source = _convert(job)
    except UnusableSeriesError as error:
        found = {"reason": error.reason, "message": str(error), "path": error.file}
        return {**entry, "verdict": "quarantined", **found}
    except MemoryError:
        text = sentence("worker_died", f"series {job.series_uid}", "out of memory")
        return {**entry, "verdict": "quarantined", "reason": "worker_died", "message": text}
    if not written and source["series_uid"] != job.series_uid:
        text = sentence("duplicate_volume", f"Series {job.series_uid}", volume_id)
        return {**entry, "verdict": "skipped", "reason": "duplicate_volume", "message": text}
    seconds = round(time.monotonic() - started, 2)
    verdict = "committed" if written else "unchanged"
    return {**entry, "verdict": verdict, "volume_id": volume_id, "cut": source["cut"], "seconds": seconds}


def _convert(job: SeriesJob) -> tuple[str, bool, dict[str, Any]]:
    """(volume id, written now, source record of the stored volume)."""
    config = job.config
    store = VolumeStore.open(
        Path(job.store),
        spacing_mm=config.spacing_mm,
        num_levels=config.num_levels,
        interpolation=config.interpolation,
    )
    series = load_series(Path(job.source), job.files, job.series_uid, min_slices=config.min_slices)
    shape, _ = target_grid(series, config.spacing_mm)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        detail = f"{shape[0]} × {shape[1]} × {shape[2]} voxels at {config.spacing_mm} mm"
        raise UnusableSeriesError("too_large", sentence("too_large", f"Series {job.series_uid}", detail))
    grid = {
        "spacing_mm": config.spacing_mm,
        "num_levels": config.num_levels,
        "interpolation": config.interpolation,
    }
    identity = {"pixels": series.pixel_digest, "geometry": series.geometry(), "grid": grid, "recipe": RECIPE}
    volume_id = sha256_json(identity)[:32]
    if volume_id in store.volume_ids():
        return volume_id, False, store.commit_record(volume_id)["source"]
    volume = resample_series(series, spacing_mm=config.spacing_mm, interpolation=config.interpolation)
    factor = 2 ** (config.num_levels - 1)
    coarse = Volume(block_mean(volume.hu, factor), (config.spacing_mm * factor,) * 3, volume.origin_mm)
    source = {
        "series_uid": job.series_uid,
        "series_digest": job.series_digest,
        "recipe": RECIPE,
        "num_slices": int(series.hu.shape[0]),
        "num_duplicates": series.num_duplicates,
        "spacing_mm": [round(v, 5) for v in series.spacing_mm],
        "tilt_deg": series.tilt_deg,
        "cut": cut_shares(coarse, factor, volume.hu.shape),
    }
    attributes = {
        "patient_key": job.patient_key,
        "patient_known": job.patient_known,
        **allowed_attributes(series.header),
    }
    written = store.write(volume, volume_id=volume_id, attributes=attributes, source=source)
    return volume_id, written, store.commit_record(volume_id)["source"]
