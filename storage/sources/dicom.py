"""DICOM: which series a file belongs to and whether it is CT, from its header alone."""

from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset

from storage.sources.dicom_attributes import identifying, shown_class, shown_modality
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import looks_like_dicom, read_data_set
from storage.sources.dicom_preview import preview
from storage.sources.dicom_series import load_series
from storage.sources.dicom_values import scan_id, tag_present, tag_text, tag_words
from storage.sources.source import FileFacts, Format

# CT Image, Enhanced CT Image, Legacy Converted Enhanced CT Image
_CT_IMAGES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_DICOMDIR = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DERIVED_WORDS = {
    "REFORMATTED", "MPR", "CSA MPR", "MIP", "MINIP", "MIN_IP", "CURVED", "VRT", "SSD", "3D", "PROJECTION", "RENDERED",
}  # fmt: skip
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "Rows", "Columns", "PatientID",
]  # fmt: skip


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a DICOM file, see `Format.read_header`."""
    start = stream.read(132)
    if not looks_like_dicom(start):
        return None
    preamble = start[128:132] == b"DICM"
    try:
        header = read_data_set(stream, pixels=False, tags=_TAGS)
    except DicomFault as fault:
        return FileFacts("dicom", reason=fault.reason, detail=fault.detail)
    except DECODE_ERRORS as error:
        return FileFacts("dicom", reason="unreadable_file", detail=type(error).__name__) if preamble else None
    if not preamble and not tag_text(header, "SOPClassUID"):
        return None
    reason, detail = _classify(header)
    scan = scan_id(header)
    return FileFacts(
        "dicom", scan, reason or ("" if scan else "missing_series_uid"), detail, tag_text(header, "PatientID")
    )


def _classify(header: Dataset) -> tuple[str, str]:
    """("", "") for CT, else (reason, detail). Details name kinds, never what may be free text."""
    sop = tag_text(header, "SOPClassUID") or tag_text(header.file_meta, "MediaStorageSOPClassUID")
    modality = tag_text(header, "Modality").upper()
    if sop == _DICOMDIR:
        return "dicomdir", ""
    # Some de-identifiers drop Modality; the SOP class says the same thing and is mandatory.
    if not modality and sop not in _CT_IMAGES:
        return "not_ct", shown_class(sop) if sop else "a data set without Modality and SOP class"
    if modality and modality != "CT":
        return "not_ct", shown_modality(modality)
    words = {word.upper() for word in tag_words(header, "ImageType")}
    parts = {part for word in words for part in word.split()}
    if sop.startswith(_SECONDARY_CAPTURE):
        return "secondary_capture", ""
    if sop and sop not in _CT_IMAGES:
        return "not_ct", shown_class(sop)
    if "LOCALIZER" in words:
        return "localizer", ""
    if "DERIVED" in words and _DERIVED_WORDS & (words | parts):
        return "derived_reformat", ", ".join(sorted(_DERIVED_WORDS & (words | parts)))
    if not tag_present(header, "Rows") or not tag_present(header, "Columns"):
        return "unreadable_file", "its header ends before Rows and Columns"
    return "", ""


DICOM = Format("dicom", read_header, load_series, identifying, preview)
