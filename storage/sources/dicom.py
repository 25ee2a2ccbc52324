"""DICOM: which series a file belongs to and whether it is CT, from its header alone."""

from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from storage.sources.attributes import is_uid
from storage.sources.dicom_attributes import MODALITIES, identifying, shown_class, shown_modality
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import looks_like_dicom, read_data_set
from storage.sources.dicom_image_type import no_slice
from storage.sources.dicom_preview import preview
from storage.sources.dicom_series import load_series
from storage.sources.dicom_values import scan_id, tag_present, tag_text, tag_words
from storage.sources.source import FileFacts, Format

# CT Image, Enhanced CT Image, Legacy Converted Enhanced CT Image
_CT_IMAGES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_DICOMDIR = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "ImageType", "Rows", "Columns",
    "PatientID", "IssuerOfPatientID",
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
        if not preamble:
            return None
        detail = "MemoryError" if isinstance(error, MemoryError) else "its header is damaged"
        return FileFacts("dicom", reason="unreadable_file", detail=detail)
    if not preamble and not tag_text(header, "SOPClassUID"):
        return None
    reason, detail = _classify(header)
    scan = scan_id(header)
    return FileFacts(
        "dicom",
        scan,
        reason or ("" if scan else "missing_series_uid"),
        detail,
        tag_text(header, "PatientID"),
        tag_text(header, "StudyInstanceUID"),
        tag_text(header, "IssuerOfPatientID"),
    )


def _classify(header: Dataset) -> tuple[str, str]:
    """("", "") for CT, else (reason, detail). Details name kinds, never what may be free text."""
    sop = tag_text(header, "SOPClassUID") or tag_text(header.file_meta, "MediaStorageSOPClassUID")
    modality = tag_text(header, "Modality").upper()
    if sop == _DICOMDIR:
        return "dicomdir", ""
    # Some de-identifiers drop Modality; the SOP class says the same thing and is mandatory.
    has_size = tag_present(header, "Rows") and tag_present(header, "Columns")
    if _is_damaged(sop, tag_text(header.file_meta, "MediaStorageSOPClassUID"), modality):
        return "unreadable_file", "its SOPClassUID or Modality is damaged"
    if not modality and not sop and not has_size:
        return "unreadable_file", "its header ends before SOPClassUID"
    if not modality and sop not in _CT_IMAGES:
        return "not_ct", shown_class(sop) if sop else "a data set without Modality and SOP class"
    if modality and modality != "CT":
        return "not_ct", shown_modality(modality)
    if sop.startswith(_SECONDARY_CAPTURE):
        return "secondary_capture", ""
    if sop and sop not in _CT_IMAGES:
        return "not_ct", shown_class(sop)
    if found := no_slice(tag_words(header, "ImageType")):
        return found
    if not has_size:
        return "unreadable_file", "its header ends before Rows and Columns"
    return "", ""


def _is_damaged(sop: str, of_meta: str, modality: str) -> bool:
    """Whether what says which kind of image a file is must be damaged, as no writer could have meant it.

    That is a SOP class that is cut off, no UID, or an unknown one in a file that is CT by its modality or its meta information;
    or an unknown modality of a CT image. Unknown ones are else some maker's own.
    """
    if not sop or sop in UID_dictionary:
        return sop in _CT_IMAGES and modality not in {"", *MODALITIES}
    cut_off = any(whole.startswith(sop) for whole in _CT_IMAGES)
    of_dicom = sop.startswith("1.2.840.10008.")
    return cut_off or not is_uid(sop) or of_meta in _CT_IMAGES or (of_dicom and modality == "CT")


DICOM = Format("dicom", read_header, load_series, identifying, preview)
