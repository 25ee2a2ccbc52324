"""The report of an ingest: entries of all scans, exclusions of files, sentences."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.documents.verdicts import Entry, SourceVerdicts, Verdicts
from storage.documents.volume import VolumeRecord
from storage.errors import NoScansError, StorageError
from storage.files import entries, replacing
from storage.privacy import INGESTS, beside_store, shown
from storage.sources.attributes import SYNTHETIC
from storage.sources.formats import FORMATS
from storage.sources.source import as_utf8
from storage.sources.tables import PATIENTS_CSV
from storage.verdicts import BEHIND, REASONS, counted
from tasks.ingest.config import IngestConfig
from tasks.ingest.scan import SourceScan
from tasks.run.printable import one_line

LUNG_CUT_WARNING = 0.01
LISTED_FILES = 1000  # excluded single files in a report, per reason
_FOREIGN = {"unknown_format", "archive", "not_regular_file", "outside_source", "dicomdir", "not_ct"}
_NAMED_VOLUMES = 8  # in a note
logger = logging.getLogger("prdit.ingest")


def every_record(store: Path) -> Iterator[SourceVerdicts]:
    """The last verdicts on every source of a store, with paths; a record that cannot be read is left out with a warning."""
    for path in entries(beside_store(store, INGESTS), "*.json"):
        try:
            yield SourceVerdicts.read(path)
        except StorageError as error:
            logger.warning("%s is left out: %s", path.name, error)


def entry_notes(entries: Sequence[dict[str, Any]], unknown: int) -> list[str]:
    """Sentences about scans: those without a patient, what was assumed or replaced, lungs that the default view cuts."""
    notes = []
    if unknown:
        notes.append(
            f"{counted(unknown, 'scan')} without PatientID and not in {PATIENTS_CSV}: each counts as a patient of its own, so "
            "scans of one person may land in different roles."
        )
    scans: dict[str, list[str]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["series_uid"])):
        for note in entry.get("notes", []):
            scans.setdefault(note, []).append(entry["series_uid"])
        if entry.get("cut") and entry["cut"]["lung"] > LUNG_CUT_WARNING:
            notes.append(
                f"Scan {entry['series_uid']}: the default view (256 voxels wide) cuts {entry['cut']['lung']:.1%} of the "
                f"lung and {entry['cut']['body']:.1%} of the body."
            )
    for note, having in scans.items():
        rest = f" and {len(having) - 1} more" if len(having) > 1 else ""
        notes.append(f"Scan {having[0]}{rest}: {note}.")
    return notes


def limit_notes(records: Sequence[VolumeRecord], config: IngestConfig) -> list[str]:
    """Sentences about committed volumes that limits as they are now would refuse, as far as their records tell.

    Args:
        records: of volumes that stay listed: limits are asked before a scan is stored.
        config: with the limits.
    """
    found: dict[str, list[str]] = {}
    for record in records:
        depth, height, width = (
            np.multiply(record.shape, record.spacing_mm[::-1]) + config.spacing_mm
        )  # at least the scan's
        for name, is_beyond in {
            "min_slices": record.scan is not None and record.scan.num_slices < config.min_slices,
            "max_slice_mm": record.scan is not None and round(max(record.scan.spacing_mm), 2) > config.max_slice_mm,
            "min_length_mm": depth < config.min_length_mm,
            "min_width_mm": min(height, width) < config.min_width_mm,
            "synthetic": config.synthetic == "refuse" and record.attributes.get(SYNTHETIC) is True,
        }.items():
            if is_beyond:
                found.setdefault(f"ingest.{name}", []).append(record.volume_id)
    notes = []
    for name, ids in found.items():
        named = ", ".join(ids[:_NAMED_VOLUMES]) + (" …" if len(ids) > _NAMED_VOLUMES else "")
        notes.append(
            f"{name}, as it is now, would refuse {counted(len(ids), 'volume')} committed earlier, which the store goes on listing: "
            f"{named}. Withdraw what should not count: prdit remove <store> ID."
        )
    return notes


def excluded(
    scan: SourceScan, entries: Sequence[dict[str, Any]], path: Path
) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Write every exclusion as a line of JSON.

    Returns: (those for the report: all scans, the first files of each reason; how many by reason; of these the odd images, see
        `Verdicts.num_odd_images`).
    """
    listed: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    files: Counter[str] = Counter()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for entry in _exclusions(scan, entries):
            reason = entry["reason"]
            message = shown(entry["message"], entry.get("path"))
            line = {key: value for key, value in entry.items() if key not in ("thumbnail", "format")} | {
                "message": message
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            counts[reason] += 1
            odd[reason] += entry["verdict"] != REASONS[reason].verdict
            single = entry.get("num_slices") is None
            files[reason] += single
            if not single or files[reason] <= LISTED_FILES:
                listed.append(entry)
    return listed, counts, odd


def _exclusions(scan: SourceScan, entries: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    yield from (entry for entry in entries if "reason" in entry)
    for one in scan.exclusions():
        entry = {"verdict": REASONS[one.reason].verdict, "reason": one.reason, "message": one.message}
        yield entry | {"series_uid": one.scan_id, "path": one.path, "num_slices": one.num_files}


def listed_entries(entries: Sequence[dict[str, Any]], verdict: str, settings: Mapping[str, Any]) -> list[Entry]:
    """The entries of one verdict, by scan and path.

    Args:
        entries: as `tasks.ingest.series.ingest_series` and the scan of the source give them.
        verdict: which.
        settings: of the ingest, by name.
    """
    chosen = [entry for entry in entries if entry["verdict"] == verdict]
    chosen.sort(key=lambda e: (str(e.get("series_uid") or ""), str(e.get("path") or "")))
    fields = [{k: v for k, v in e.items() if k not in ("verdict", "notes", "format")} for e in chosen]
    return [Entry(**one | _behind(entry, settings)) for one, entry in zip(fields, chosen, strict=True)]


def _behind(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict depends on: the settings with their values, then the tags, which only DICOM has."""
    found = []
    for name in BEHIND.get(entry.get("reason") or "", ()):
        if name.startswith("ingest."):
            value = settings.get(name.removeprefix("ingest."))
            text = ", ".join(value) if isinstance(value, tuple | list) else str(value).removesuffix(".0")
            found.append(f"{name} = {text}")
        elif entry.get("format", "dicom") == "dicom":
            found.append(name)
    return {"behind": tuple(found)} if found else {}


def place_of(entry: Entry) -> str:
    """Where what an entry is about lies in its source, on one line; "" where its message says that.

    Args:
        entry: with paths.
    """
    path = one_line(entry.path or "")
    if not path or path in one_line(entry.message or ""):
        return ""
    of_one_file = str(entry.series_uid).partition("-")[0] in FORMATS  # `single_file.path_scan_id`
    return f"{'file' if of_one_file or entry.num_slices in (None, 1) else 'first file'}: {path}"


def summary_rows(report: Verdicts) -> list[dict[str, Any]]:
    """How many items have which verdict and reason, with the sentence of the first: the most frequent reason first.

    Args:
        report: with opaque ids in place of paths where the table is sent, see `Verdicts.without_paths`.
    """
    rows: list[dict[str, Any]] = [
        {"verdict": verdict, "reason": "", "number": number, "for example": ""}
        for verdict, number in report.counts.items()
        if verdict in ("committed", "unchanged")
    ]
    first = {
        (verdict, entry.reason): entry
        for verdict in ("quarantined", "skipped")
        for entry in reversed(getattr(report, verdict))
    }
    for verdict, reason, number in sorted(report.excluded, key=lambda item: (item[0], -item[2])):
        entry = first.get((verdict, reason))
        message = shown(entry.message or "", entry.path) if entry else ""
        rows.append({"verdict": verdict, "reason": reason, "number": number, "for example": message})
    return rows


def refuse_without_ct(scan: SourceScan, *, archives: bool) -> None:
    """Raise when no item of the source is CT: most likely the wrong folder was given.

    Args:
        scan: the source.
        archives: whether archives were looked into.
    Raises: NoScansError: see above.
    """
    if scan.num_scans:
        return
    counts = Counter(one.reason for one in scan.exclusions())
    if set(counts) - _FOREIGN:
        return
    found = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "no files"
    advice = " Give a folder (or zip or tar archives) with CT (DICOM, NIfTI, NRRD, MetaImage or npz)."
    if "archive" in counts:
        advice = (
            " Unpack them: of archives only zip and tar are read, not single files in gzip, one in another, 7z or rar."
        )
        if not archives:
            advice = " ingest.archives is off: set it to true, or unpack the archives."
    if "outside_source" in counts:
        advice += " Links that leave the folder are not followed: copy what they mean into it."
    raise NoScansError(f"No CT in {as_utf8(str(scan.source))}: {found}.{advice}")
