"""The quality page `qc.html`: every volume of a store with pictures and figures, every exclusion with its reason.

It lies beside the store, because it names files. Rows are made one by one, so memory does not grow with their number; pictures
are kept beside the page, as the bytes of a volume never change.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from storage.documents.verdicts import Entry
from storage.documents.volume import VolumeRecord
from storage.errors import StorageError
from storage.files import json_text, read_json, replacing, write_text_atomic
from storage.privacy import INGESTS, beside_store
from storage.snapshots import Listing, listing
from storage.verdicts import counted
from storage.volume_store import VolumeStore
from tasks.ingest.pictures import HISTOGRAM_HU, histogram, mosaic
from tasks.ingest.report import LUNG_CUT_WARNING, every_record, place_of
from tasks.run.printable import one_line
from tasks.run.progress import Advance

PAGE = "qc.html"
_PICTURE_MM = 2.0  # the level of about this spacing is drawn
_PICTURES_VERSION = 1


def page_path(store: Path) -> Path:
    """Where the page about a store is."""
    return beside_store(store, INGESTS) / PAGE


def write_page(store: VolumeStore, progress: Advance | None = None) -> Path:
    """Write the page about a store as it is now, from its records and those of its ingests; its path.

    Args:
        store: opened store.
        progress: called with (done, total) volumes.
    Raises: UnwritableError.
    """
    path = page_path(store.path)
    now = listing(store)
    environment = Environment(
        loader=PackageLoader("tasks.ingest", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("qc.html.j2")
    stream = template.stream(
        store=one_line(store.path.resolve()),
        grid=store.grid,
        num_listed=len(now.volumes),
        notes=[one_line(note) for record in every_record(store.path) for note in record.notes],
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        histogram_hu=HISTOGRAM_HU,
        rows=rows(store, now, progress),
    )
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as out:
        stream.enable_buffering(16)
        out.writelines(stream)
    return path


def rows(store: VolumeStore, now: Listing, progress: Advance | None = None) -> Iterator[dict[str, Any]]:
    """What the page shows: the volumes the store lists, by scan, then the exclusions of the last ingest of every source."""
    verdict_of: dict[str, tuple[str, str]] = {}
    for entry, new in _used(store.path):
        verdict_of[str(entry.volume_id)] = ("committed" if new else "unchanged", place_of(entry))
    for done, volume_id in enumerate(sorted(now.volumes)):
        verdict, place = verdict_of.get(volume_id, ("unchanged", ""))
        yield _volume_row(store, now, volume_id, verdict) | {"place": place}
        if progress:
            progress(done + 1, len(now.volumes))
    for record in every_record(store.path):
        for verdict in ("quarantined", "skipped"):
            yield from (_excluded_row(verdict, entry) for entry in getattr(record.with_paths(), verdict))


def _used(store: Path) -> Iterator[tuple[Entry, bool]]:
    for record in every_record(store):
        yield from ((entry, True) for entry in record.committed)
        yield from ((entry, False) for entry in record.unchanged)


def _volume_row(store: VolumeStore, now: Listing, volume_id: str, verdict: str) -> dict[str, Any]:
    listed = now.volumes[volume_id]
    row: dict[str, Any] = {"verdict": verdict, "what": volume_id, "volume_id": volume_id, "reason": "", "behind": []}
    row |= {"picture": "", "wide": True, "warnings": []}
    try:
        record = store.commit_record(volume_id)
        pictures = _pictures(store, record)
    except StorageError as error:
        row |= {"verdict": "quarantined", "reason": "damaged_volume", "message": one_line(error)}
        return row
    scan, a = record.scan, listed.attributes
    cut = scan.cut if scan else {}
    row |= {
        "what": scan.scan if scan else volume_id,
        "message": "",
        "picture": f"data:image/jpeg;base64,{pictures['mosaic']}",
        "histogram": _bars(pictures["histogram"]),
        "shape": " × ".join(str(n) for n in record.shape),
        "spacing": " × ".join(f"{v:.4g}" for v in scan.spacing_mm) if scan else "",
        "slices": scan.num_slices if scan else 0,
        "length": round(record.shape[0] * record.spacing_mm[2], 1),
        "slice_mm": scan.spacing_mm[2] if scan else 0.0,
        "tilt": scan.tilt_deg if scan else 0.0,
        "lung": cut.get("lung", 0.0),
        "body": cut.get("body", 0.0),
        "has_cut": bool(cut),
        "completeness": scan.completeness if scan else "",
        "patient": listed.patient_key[:8] if listed.patient_known else "unknown",
        "facts": [
            f"{name} {a[name]}" for name in ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel") if name in a
        ],
        "labels": [f"{name} = {value}" for name, value in listed.labels.items()],
        "warnings": _warnings(record, known=listed.patient_known),
    }
    return row


def _warnings(record: VolumeRecord, *, known: bool) -> list[str]:
    scan, found = record.scan, list[str]()
    if scan is None:
        return found
    found += scan.notes
    if scan.cut.get("lung", 0.0) > LUNG_CUT_WARNING:
        found.append(f"the default view cuts {scan.cut['lung']:.1%} of the lung")
    if scan.num_duplicates:
        found.append(f"{counted(scan.num_duplicates, 'repeated file')} left out")
    if not known:
        found.append("no PatientID: it counts as a patient of its own")
    return found


def _excluded_row(verdict: str, entry: Entry) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "what": one_line(entry.series_uid or entry.path or "unnamed"),
        "place": place_of(entry),
        "volume_id": "",
        "reason": entry.reason or "",
        "message": one_line(entry.message or ""),
        "picture": f"data:image/png;base64,{entry.thumbnail}" if entry.thumbnail else "",
        "wide": False,
        "slices": entry.num_slices or 0,
        "behind": list(entry.behind or ()),
        "warnings": [],
    }


def _pictures(store: VolumeStore, record: VolumeRecord) -> dict[str, Any]:
    """Mosaic and histogram of a volume, from the file beside the page where there is one."""
    path = beside_store(store.path, INGESTS) / "pictures" / f"{record.folder}-{_PICTURES_VERSION}.json"
    with suppress(OSError, ValueError):
        found = read_json(path)
        if isinstance(found, dict) and found.keys() == {"mosaic", "histogram"}:
            return found
    finest = min(range(store.grid.num_levels), key=lambda k: abs(store.spacing_mm * 2**k - _PICTURE_MM))
    volume = store.read_level(record.volume_id, finest)
    made = {"mosaic": mosaic(volume), "histogram": histogram(volume.hu)}
    write_text_atomic(path, json_text(made))
    return made


def _bars(values: list[int]) -> str:
    """The histogram as an SVG path over a box of (bins, 1000)."""
    return "M0 1000" + "".join(f"V{1000 - value}h1" for value in values) + "V1000z"
