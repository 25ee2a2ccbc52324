"""One scan -> committed volumes, nearly always one: the work of one worker process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.documents.volume import ScanFacts, VolumeRecord
from storage.errors import DamagedArtifactError, MissingArtifactError, UnusableSeriesError, VersionError
from storage.files import sha256_json
from storage.geometry import Volume, block_mean
from storage.resample import resample_series, target_grid
from storage.sources.formats import FORMATS
from storage.sources.plausible import check_plausible
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, as_utf8, refuse
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
        longest: (slices, volume id) of the longest volume of this scan that is known already, by part.
        broken: damaged volumes, which are to be written again: the attributes they are listed with by id, empty where none are.
    """

    source: str
    store: str
    scan: Scan
    config: IngestConfig
    longest: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)


def ingest_series(job: SeriesJob) -> list[dict[str, Any]]:
    """Read, resample, store and commit the volumes of one scan.

    Returns: entries for the report, at least one: `verdict`, `series_uid`, `num_slices` and `volume_id` with `cut`, or `reason`
        with `message`; `notes`, sentences about what was assumed or replaced; `attributes` of a volume as this scan has them. An
        image that was left out of its volume is an entry with a `path`; `single`, the `SingleSlice` of a scan that is refused and
        has one image.
    Raises: UnwritableError: the store cannot be written.
    """
    scan_id = job.scan.scan_id
    entries: list[dict[str, Any]] = []
    started = time.monotonic()
    try:
        for found in _load(job):
            record, written = _convert(job, found)
            made = used_entry(record, part_id(scan_id, found.part), "committed" if written else "unchanged")
            made |= {"attributes": found.attributes, "seconds": round(time.monotonic() - started, 2)}
            entries += [made, *(_left_out_entry(scan_id, one) for one in found.left_out)]
            started = time.monotonic()
    except UnusableSeriesError as error:
        entries.append(_refused_entry(job, error.reason, str(error), error.file) | {"single": error.single})
    except MemoryError:
        text = sentence("worker_died", f"scan {scan_id}", "out of memory")
        entries.append(_refused_entry(job, "worker_died", text))
    return entries


def part_id(scan_id: str, part: str) -> str:
    """What a volume of a scan is called: as its scan, unless the scan has several."""
    return f"{scan_id} ({part})" if part else scan_id


def used_entry(record: VolumeRecord, scan_id: str, verdict: str) -> dict[str, Any]:
    """Entry of a scan that is a committed volume."""
    entry: dict[str, Any] = {"series_uid": scan_id, "volume_id": record.volume_id, "verdict": verdict}
    entry["attributes"] = record.attributes
    if facts := record.scan:
        entry |= {"num_slices": facts.num_slices, "cut": facts.cut or None, "notes": list(facts.notes)}
    return entry


def _refused_entry(job: SeriesJob, reason: str, message: str, file: str | None = None) -> dict[str, Any]:
    found = {"reason": reason, "message": message, "path": file, "verdict": REASONS[reason].verdict}
    return {"series_uid": job.scan.scan_id, "num_slices": len(job.scan.files), **found}


def _left_out_entry(scan_id: str, image: LeftOut) -> dict[str, Any]:
    path = as_utf8(image.file)
    found = {"reason": image.reason, "message": sentence(image.reason, path, as_utf8(image.detail)), "path": path}
    return {"series_uid": scan_id, "verdict": REASONS[image.reason].verdict, "image_of_volume": True, **found}


def _load(job: SeriesJob) -> Iterator[SourceVolume]:
    scan = job.scan
    request = ScanRequest(Path(job.source), scan.files, scan.scan_id, job.config.limits)
    return FORMATS[scan.format].load(request)


def _convert(job: SeriesJob, found: SourceVolume) -> tuple[VolumeRecord, bool]:
    """(record of a volume of the scan, whether it was written now)."""
    config, where = job.config, f"Scan {part_id(job.scan.scan_id, found.part)}"
    check_plausible(found, config.limits, where)
    store = VolumeStore.open(Path(job.store), config.grid)
    shape, _ = target_grid(found, config.spacing_mm)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        refuse("too_large", where, f"{shape[0]} × {shape[1]} × {shape[2]} voxels at {config.spacing_mm} mm")
    grid = config.grid.model_dump()
    identity = {"pixels": found.pixel_digest, "geometry": found.geometry(), "grid": grid, "recipe": RECIPE}
    volume_id = sha256_json(identity)[:32]
    num_slices, (longest, longer_id) = int(found.hu.shape[0]), job.longest.get(found.part, (0, ""))
    if volume_id not in job.broken:
        if num_slices < longest:
            refuse("shorter_copy", where, f"{num_slices} slices, volume {longer_id} of it {longest}")
        try:
            return store.commit_record(volume_id), False
        except MissingArtifactError:
            pass
        except (DamagedArtifactError, VersionError):
            refuse("damaged_volume", where, f"volume {volume_id}")
    return _write(store, job, found, volume_id)


def _write(store: VolumeStore, job: SeriesJob, found: SourceVolume, volume_id: str) -> tuple[VolumeRecord, bool]:
    config, scan = job.config, job.scan
    volume = resample_series(found, spacing_mm=config.spacing_mm, interpolation=config.interpolation)
    factor = 2 ** (config.num_levels - 1)
    coarse = Volume(block_mean(volume.hu, factor), (config.spacing_mm * factor,) * 3, volume.origin_mm)
    sx, sy, sz = (round(v, 5) for v in found.spacing_mm)
    facts = ScanFacts(
        scan=part_id(scan.scan_id, found.part),
        num_parts=found.num_parts,
        format=scan.format,
        files_digest=scan.digest,
        recipe=RECIPE,
        num_slices=int(found.hu.shape[0]),
        num_duplicates=found.num_duplicates,
        spacing_mm=(sx, sy, sz),
        tilt_deg=found.tilt_deg,
        cut=cut_shares(coarse, factor, volume.hu.shape),
        completeness=found.completeness,
        notes=found.notes,
    )
    if volume_id in job.broken:
        attributes = job.broken[volume_id] or found.attributes  # a copy of the scan may have others than were committed
        store.repair(volume, volume_id=volume_id, attributes=attributes, scan=facts)
        return store.commit_record(volume_id), False
    written = store.write(volume, volume_id=volume_id, attributes=found.attributes, scan=facts)
    return store.commit_record(volume_id), written
