"""CT series in a list of files, found from headers alone, and an exclusion for every file that is not a CT slice."""

import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from storage.verdicts import sentence

# Everything pydicom was seen to raise on broken files. A bad file is a verdict, never an aborted run.
DECODE_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, NotImplementedError, RuntimeError,
    struct.error, OverflowError, MemoryError, RecursionError, AssertionError,
)  # fmt: skip

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_DICOMDIR = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DERIVED_WORDS = {
    "REFORMATTED", "MPR", "CSA MPR", "MIP", "MINIP", "MIN_IP", "CURVED", "VRT", "SSD", "3D", "PROJECTION", "RENDERED",
}  # fmt: skip
_ARCHIVES = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames",
    "Rows", "Columns", "PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "Manufacturer",
    "ManufacturerModelName", "ConvolutionKernel", "KVP", "SliceThickness", "XRayTubeCurrent", "ContrastBolusAgent",
    "PatientPosition", "ScanOptions", "ReconstructionDiameter", "BodyPartExamined",
]  # fmt: skip


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one CT series.

    Attributes:
        series_uid: SeriesInstanceUID.
        files: relative paths, sorted.
        patient_id: PatientID, "" when absent; in memory only, never written.
    """

    series_uid: str
    files: tuple[str, ...]
    patient_id: str


@dataclass(frozen=True)
class Excluded:
    """One exclusion: a series (by UID) or a file (by path), with reason code and sentence."""

    reason: str
    message: str
    series_uid: str | None = None
    path: str | None = None
    num_slices: int | None = None


@dataclass(frozen=True)
class ScanResult:
    """CT series to read, and the exclusions: everything else."""

    series: tuple[SeriesFiles, ...]
    excluded: tuple[Excluded, ...]


def scan_files(source: Path, files: Sequence[str]) -> ScanResult:
    """Read the headers of files and group the CT images by SeriesInstanceUID.

    Args:
        source: folder the paths are relative to; only read.
        files: relative paths of regular files.
    """
    groups: dict[str, list[tuple[str, Dataset, str | None, str]]] = {}
    excluded: list[Excluded] = []
    for name in files:
        header, reason, detail = _read_header(source / name)
        if header is None:
            excluded.append(Excluded(str(reason), sentence(str(reason), name, detail), path=name))
        else:
            reason, detail = _classify(header)
            uid = str(header.get("SeriesInstanceUID") or "")
            if not uid:
                reason = reason or "missing_series_uid"
                excluded.append(Excluded(reason, sentence(reason, name, detail), path=name))
            else:
                groups.setdefault(uid, []).append((name, header, reason, detail))
    series: list[SeriesFiles] = []
    for uid, members in sorted(groups.items()):
        slices = [m for m in members if m[2] is None]
        if not slices:
            _, _, reason, detail = members[0]
            text = sentence(str(reason), f"Series {uid}", detail)
            excluded.append(Excluded(str(reason), text, series_uid=uid, num_slices=len(members)))
            continue
        names = tuple(sorted(m[0] for m in slices))
        for name, _, reason, detail in members:
            if reason is not None:  # a localizer or a truncated file: the other slices decide about the series
                text = sentence(reason, name, detail)
                excluded.append(Excluded(reason, text, series_uid=uid, path=name))
        patients = sorted({str(m[1].get("PatientID") or "").strip() for m in slices})
        series.append(SeriesFiles(uid, names, patients[-1]))
    return ScanResult(tuple(series), tuple(excluded))


def _read_header(path: Path) -> tuple[Dataset | None, str | None, str]:
    """(header, None, "") or (None, reason, detail)."""
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
        for magic, kind in _ARCHIVES.items():
            if start.startswith(magic):
                return None, "archive", kind
        if start.startswith(b"PK") and zipfile.is_zipfile(path):
            return None, "archive", "zip"
        if len(start) < 8:
            return None, "not_dicom", ""
        if start[257:262] == b"ustar":
            return None, "archive", "tar"
    except OSError as error:
        return None, "unreadable_file", error.strerror or type(error).__name__
    preamble = start[128:132] == b"DICM"
    # Without a preamble only a data set that begins with an identifying or file-meta group is tried.
    if not preamble and start[0:2] not in (b"\x08\x00", b"\x02\x00"):
        return None, "not_dicom", ""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=not preamble, specific_tags=_TAGS)
        _ = [header.get(tag) for tag in _TAGS]  # values are parsed when first asked for
    except InvalidDicomError:
        return None, "not_dicom", ""
    except DECODE_ERRORS as error:
        return None, ("unreadable_file" if preamble else "not_dicom"), type(error).__name__
    if not preamble and "SOPClassUID" not in header:
        return None, "not_dicom", ""
    return header, None, ""


def _classify(header: Dataset) -> tuple[str | None, str]:
    """(None, "") for a CT slice, else (reason, detail). Details name kinds, never patients."""
    meta = getattr(header, "file_meta", None)
    sop = str(header.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else "") or "")
    modality = str(header.get("Modality") or "")
    if sop == _DICOMDIR:
        return "dicomdir", ""
    # Some de-identifiers drop Modality; the SOP class says the same thing and is mandatory.
    if not modality and sop not in {CT_IMAGE, *_MULTI_FRAME}:
        return "not_ct", f"a {UID(sop).name}" if sop else "a data set without Modality and SOP class"
    if modality and modality != "CT":
        return "not_ct", f"modality {modality[:16]}"
    words = {word.upper().strip() for word in _words(header.get("ImageType"))}
    parts = {part for word in words for part in word.split()}
    if sop.startswith(_SECONDARY_CAPTURE):
        return "secondary_capture", ""
    if sop in _MULTI_FRAME or int(header.get("NumberOfFrames") or 1) > 1:
        return "multi_frame", f"{header.get('NumberOfFrames') or '?'} frames"
    if sop != CT_IMAGE and sop:
        return "not_ct", f"a {UID(sop).name}"
    if "LOCALIZER" in words:
        return "localizer", ""
    if "DERIVED" in words and _DERIVED_WORDS & (words | parts):
        return "derived_reformat", ", ".join(sorted(_DERIVED_WORDS & (words | parts)))
    if not header.get("Rows") or not header.get("Columns"):
        return "unreadable_file", "its header ends before Rows and Columns"
    return None, ""


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]
