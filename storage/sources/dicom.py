"""DICOM: which series a file belongs to and whether it is a CT slice, from its header alone."""

from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from storage.sources.dicom_attributes import identifying, shown_class, shown_modality
from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.dicom_preview import preview
from storage.sources.dicom_series import load_series
from storage.sources.source import FileFacts, Format

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_DICOMDIR = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DERIVED_WORDS = {
    "REFORMATTED", "MPR", "CSA MPR", "MIP", "MINIP", "MIN_IP", "CURVED", "VRT", "SSD", "3D", "PROJECTION", "RENDERED",
}  # fmt: skip
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames", "Rows", "Columns", "PatientID",
]  # fmt: skip


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a DICOM file, see `Format.read_header`."""
    start = stream.read(132)
    stream.seek(0)
    preamble = start[128:132] == b"DICM"
    # Without a preamble only a data set that begins with an identifying or file-meta group is tried.
    if not preamble and (len(start) < 8 or start[0:2] not in (b"\x08\x00", b"\x02\x00")):
        return None
    try:
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=not preamble, specific_tags=_TAGS)
        _ = [header.get(tag) for tag in _TAGS]  # values are parsed when first asked for
        reason, detail = _classify(header)
        scan = str(header.get("SeriesInstanceUID") or "").strip()
        patient_id = str(header.get("PatientID") or "").strip()
    except InvalidDicomError:
        return None
    except DECODE_ERRORS as error:
        return FileFacts("dicom", reason="unreadable_file", detail=type(error).__name__) if preamble else None
    if not preamble and "SOPClassUID" not in header:
        return None
    return FileFacts("dicom", scan, reason or ("" if scan else "missing_series_uid"), detail, patient_id)


def _classify(header: Dataset) -> tuple[str, str]:
    """("", "") for a CT slice, else (reason, detail). Details name kinds, never patients."""
    meta = getattr(header, "file_meta", None)
    sop = str(header.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else "") or "")
    modality = str(header.get("Modality") or "")
    if sop == _DICOMDIR:
        return "dicomdir", ""
    # Some de-identifiers drop Modality; the SOP class says the same thing and is mandatory.
    if not modality and sop not in {CT_IMAGE, *_MULTI_FRAME}:
        return "not_ct", shown_class(sop) if sop else "a data set without Modality and SOP class"
    if modality and modality != "CT":
        return "not_ct", shown_modality(modality)
    words = {word.upper().strip() for word in _words(header.get("ImageType"))}
    parts = {part for word in words for part in word.split()}
    if sop.startswith(_SECONDARY_CAPTURE):
        return "secondary_capture", ""
    if sop in _MULTI_FRAME or int(header.get("NumberOfFrames") or 1) > 1:
        return "multi_frame", f"{header.get('NumberOfFrames') or '?'} frames"
    if sop != CT_IMAGE and sop:
        return "not_ct", shown_class(sop)
    if "LOCALIZER" in words:
        return "localizer", ""
    if "DERIVED" in words and _DERIVED_WORDS & (words | parts):
        return "derived_reformat", ", ".join(sorted(_DERIVED_WORDS & (words | parts)))
    if not header.get("Rows") or not header.get("Columns"):
        return "unreadable_file", "its header ends before Rows and Columns"
    return "", ""


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]


DICOM = Format("dicom", read_header, load_series, identifying, preview)
