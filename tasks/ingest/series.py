"""One scan -> committed volumes, nearly always one: the work of one worker process."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from storage.documents.volume import ScanFacts, VolumeRecord
from storage.errors import DamagedArtifactError, MissingArtifactError, UnusableSeriesError, UserError, VersionError
from storage.files import sha256_json
from storage.geometry import Volume, pyramid
from storage.places import as_place
from storage.privacy import PATH, Hidden
from storage.resample import resample_series, target_grid
from storage.sources.archives import copied
from storage.sources.files import check_here, open_file
from storage.sources.formats import FORMATS
from storage.sources.plausible import check_plausible
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, as_utf8, oriented_digest, refuse
from storage.tombstones import forgotten
from storage.verdicts import REASONS, counted, image_verdict
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.copies import Copy, known_patient
from tasks.ingest.costs import resampling_s
from tasks.ingest.coverage import cut_shares
from tasks.ingest.pictures import thumbnail
from tasks.ingest.scan import Scan
from tasks.run.fanout import need_more

RECIPE = 2  # version of the arithmetic from source to stored HU; part of every volume id
MAX_VOXELS = 2**29  # of a volume at the grid: 1 GiB


@dataclass(frozen=True)
class SeriesJob:
    """Everything a worker needs; it contains a patient key, never a patient's id.

    Attributes:
        source: folder of the source.
        store: path of the store.
        scan: what to ingest.
        config: grid and limits.
        longest: the longest volume of this scan that is known already, by part.
        broken: damaged volumes, which are to be written again: the attributes they are listed with by id, empty where none are.
    """

    source: str
    store: str
    scan: Scan
    config: IngestConfig
    longest: dict[str, Copy] = field(default_factory=dict)
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)


def ingest_series(job: SeriesJob) -> list[dict[str, Any]]:
    """Read, resample, store and commit the volumes of one scan.

    Returns: entries for the report, at least one: `verdict`, `series_uid`, `num_slices` and `volume_id` with `cut`, or `reason`
        with `message`; `notes`, sentences about what was assumed or replaced; `attributes` of a volume as this scan has them. An
        image that was left out of its volume is an entry with a `path`; `single`, the `SingleSlice` of a scan that is refused and
        has one image.
    Raises:
        SourceError: the source is not to be seen from here.
        UnwritableError: the store, or the folder for temporary files, cannot be written.
        MemoryError: it needs more than it may.
    """
    check_here(as_place(job.source))
    scan_id = job.scan.scan_id
    entries: list[dict[str, Any]] = []
    started = time.monotonic()
    try:
        for found in without_names(_load(job), lambda: hidden(job)):
            if job.scan.num_unreadable:
                note = f"{counted(job.scan.num_unreadable, 'file')} beside those of the scan cannot be read: slices may be missing"
                found = replace(found, notes=(*found.notes, note))
            record, written = _convert(job, found)
            made = used_entry(record, part_id(scan_id, found.part), "committed" if written else "unchanged")
            made |= {
                "path": first_file(job.scan),
                "attributes": found.attributes,
                "seconds": round(time.monotonic() - started, 2),
            }
            entries += [made, *(_left_out_entry(scan_id, one) for one in found.left_out)]
            started = time.monotonic()
    except UnusableSeriesError as error:
        if isinstance(error.__context__, MemoryError):
            raise error.__context__  # noqa: B904 - the limit on memory, which a reader took for a broken file
        entries.append(_refused_entry(job, error.reason, str(error), error.file) | {"single": error.single})
    return entries


def part_id(scan_id: str, part: str) -> str:
    """What a volume of a scan is called: as its scan, unless the scan has several."""
    return f"{scan_id} ({part})" if part else scan_id


def scan_and_part(name: str) -> tuple[str, str]:
    """(scan id, part) of what `part_id` gives."""
    scan_id, _, part = name.removesuffix(")").partition(" (")
    return scan_id, part


def first_file(scan: Scan) -> str:
    """Relative path of a scan's first file, by which it can be found."""
    return as_utf8(scan.files[0])


def used_entry(record: VolumeRecord, scan_id: str, verdict: str) -> dict[str, Any]:
    """Entry of a scan that is a committed volume."""
    entry: dict[str, Any] = {"series_uid": scan_id, "volume_id": record.volume_id, "verdict": verdict}
    entry["attributes"] = record.attributes
    if facts := record.scan:
        entry |= {"num_slices": facts.num_slices, "cut": facts.cut or None, "notes": list(facts.notes)}
    return entry


def _refused_entry(job: SeriesJob, reason: str, message: str, file: str | None = None) -> dict[str, Any]:
    costly = reason == "too_costly"  # its header is not read again
    message = (hidden_names(job) if costly else hidden(job)).out_of(message)
    found: dict[str, Any] = {
        "reason": reason,
        "message": message,
        "path": file or first_file(job.scan),
        "verdict": REASONS[reason].verdict,
        "format": job.scan.format,
    }
    if not costly:
        found["thumbnail"] = _thumbnail(job)
    return {"series_uid": job.scan.scan_id, "num_slices": len(job.scan.files), **found}


def _thumbnail(job: SeriesJob) -> str | None:
    """A picture of one image of a scan, PNG in base64; None where its format gives no preview."""
    image = FORMATS[job.scan.format].preview(_request(job))
    return None if image is None else thumbnail(image)


def _left_out_entry(scan_id: str, image: LeftOut) -> dict[str, Any]:
    verdict, message = image_verdict(image.reason, PATH, image.detail)
    found = {"reason": image.reason, "message": message, "path": as_utf8(image.file)}
    return {"series_uid": scan_id, "verdict": verdict, "image_of_volume": True, **found}


def hidden_names(job: SeriesJob) -> Hidden:
    """Names of files and folders, which must not stand in a text about the scan."""
    return Hidden(job.source, job.scan.files)


def hidden(job: SeriesJob) -> Hidden:
    """What must not stand in a text about the scan: names, and words of its header that may identify the patient."""
    words: frozenset[str] = frozenset()
    with suppress(OSError), open_file(as_place(job.source), job.scan.files[0]) as stream:
        words = FORMATS[job.scan.format].identifying(stream)
    return replace(hidden_names(job), words=words)


def without_names(volumes: Iterator[SourceVolume], hidden: Callable[[], Hidden]) -> Iterator[SourceVolume]:
    """The volumes of a scan, their texts without what must not stand there; `hidden` is asked where there are texts."""
    for found in volumes:
        if found.part or found.notes or found.left_out:
            clean = hidden().out_of
            left_out = tuple(replace(one, detail=clean(as_utf8(one.detail))) for one in found.left_out)
            notes = tuple(clean(as_utf8(note)) for note in found.notes)
            found = replace(found, part=clean(found.part), notes=notes, left_out=left_out)
        yield found


def _request(job: SeriesJob) -> ScanRequest:
    scan, edge = job.scan, job.config.npz_spacing_mm
    return ScanRequest(
        as_place(job.source),
        scan.files,
        scan.scan_id,
        job.config.limits,
        scan.num_expected,
        (edge, edge, edge),
        scan.num_beside,
        scan.num_no_slices,
    )


def _load(job: SeriesJob) -> Iterator[SourceVolume]:
    request = _request(job)
    with ExitStack() as stack:
        try:
            stack.enter_context(copied(request.source, request.files))
        except UserError:
            raise
        except OSError as error:
            refuse("unreadable_file", request.where, error.strerror or type(error).__name__)
        yield from FORMATS[job.scan.format].load(request)


def _convert(job: SeriesJob, found: SourceVolume) -> tuple[VolumeRecord, bool]:
    """(record of a volume of the scan, whether it was written now)."""
    config, where = job.config, f"Scan {part_id(job.scan.scan_id, found.part)}"
    check_plausible(found, config.limits, where)
    store = VolumeStore.open(as_place(job.store), config.grid)
    shape, origin_mm = target_grid(found, config.spacing_mm)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        refuse("too_large", where, f"{shape[0]} × {shape[1]} × {shape[2]} voxels at {config.spacing_mm} mm")
    grid = config.grid.model_dump()
    identity = {"pixels": found.pixel_digest, "geometry": found.geometry(), "grid": grid, "recipe": RECIPE}
    volume_id = sha256_json(identity)[:32]
    _refuse_forgotten(job, where, volume_id=volume_id)
    num_slices, longest = int(found.hu.shape[0]), job.longest.get(found.part)
    if volume_id not in job.broken:
        if longest is not None and num_slices < longest.num_slices:
            edge_mm, patient = config.spacing_mm, known_patient(job.scan)
            short = Copy(volume_id, num_slices, found.spacing_mm[2], shape, origin_mm, edge_mm, patient)
            reason, detail = short.why_not_listed(longest)
            refuse(reason, where, detail)
        try:
            return store.commit_record(volume_id), False
        except MissingArtifactError:
            pass
        except (DamagedArtifactError, VersionError):
            refuse("damaged_volume", where, f"volume {volume_id}")
    return _write(store, job, found, volume_id)


def _refuse_forgotten(job: SeriesJob, where: str, *, volume_id: str, pixels: str = "") -> None:
    if why := forgotten(as_place(job.store)).why(job.scan.patient_key, volume_id=volume_id, pixels=pixels):
        refuse("forgotten", where, f"known by its {why}")


def _write(store: VolumeStore, job: SeriesJob, found: SourceVolume, volume_id: str) -> tuple[VolumeRecord, bool]:
    config, scan = job.config, job.scan
    need_more(resampling_s(math.prod(target_grid(found, config.spacing_mm)[0])))
    volume = resample_series(found, spacing_mm=config.spacing_mm, interpolation=config.interpolation)
    factor = 2 ** (config.num_levels - 1)
    coarse = Volume(pyramid(volume.hu, config.num_levels)[-1], (config.spacing_mm * factor,) * 3, volume.origin_mm)
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
        pixels=oriented_digest(found),
    )
    where = f"Scan {facts.scan}"
    _refuse_forgotten(job, where, volume_id=volume_id, pixels=facts.pixels)
    if volume_id in job.broken:
        attributes = job.broken[volume_id] or found.attributes  # a copy of the scan may have others than were committed
        store.repair(volume, volume_id=volume_id, attributes=attributes, scan=facts)
        return store.commit_record(volume_id), False
    written = store.write(volume, volume_id=volume_id, attributes=found.attributes, scan=facts)
    try:  # again, as whoever forgot the patient meanwhile may have looked at the commits before this one
        _refuse_forgotten(job, where, volume_id=volume_id, pixels=facts.pixels)
    except UnusableSeriesError:
        store.delete(volume_id)
        raise
    return store.commit_record(volume_id), written
