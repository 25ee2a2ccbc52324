"""What the header of one image of a DICOM series, a file or a frame of one, says that decides which volume it is in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydicom.dataset import Dataset

from storage.files import sha256_json
from storage.sources.dicom_errors import DicomFault
from storage.sources.dicom_image_type import no_slice, quantity
from storage.sources.dicom_mixed import MIXED_TAGS, acquired_at, acquisition_day, alternating_values, person
from storage.sources.dicom_values import (
    UNSPECIFIED_TYPES,
    last_digits,
    need_count,
    need_numbers,
    tag_day,
    tag_integer,
    tag_number,
    tag_numbers,
    tag_present,
    tag_text,
    tag_value,
    tag_words,
)
from storage.sources.single_slices import SingleSlice


@dataclass(frozen=True)
class Plane:
    """What the header of one image says.

    Attributes:
        file: relative path.
        frame: index of the frame in a multi-frame file, from 0; None where the file is one image.
        instance_uid: SOPInstanceUID.
        patient_id: in memory only, never written or put into a sentence.
        person, values: of `storage.sources.dicom_mixed`, as `patient_id`; () where the header cannot be read.
        acquired_at, acquisition_day, study_day: None and "" where unknown.
        study_uid, frame_of_reference: UIDs, "" where absent.
        acquisition, temporal_position, stack_id: as text, whole numbers in one form, "" where absent.
        kernel: in capitals, "" where absent.
        shape: rows, columns.
        orientation: direction cosines of a row, then of a column; () where absent.
        pixel_mm: distance of rows, distance of columns; () where absent.
        position_mm: LPS centre of the first pixel; () where absent.
        position_unit_mm: value of the last digit written of each coordinate of the position; () where they are binary numbers.
        slice_distance_mm: SpacingBetweenSlices, else SliceThickness; None where unknown.
        slope, intercept: HU = stored × slope + intercept; None where unknown.
        padding: lowest and highest stored value that is declared padding; None where none is.
        rescale_type: in capitals, "" where absent.
        image_type: the words of ImageType, in capitals.
        body_part: BodyPartExamined.
        number: InstanceNumber; None where unknown.
        num_in_acquisition: ImagesInAcquisition; None where unknown.
        concatenation: where a multi-frame image was written as several files: its ConcatenationUID, the number of this file, and of
            how many (0 where unknown); None where it is one file.
        synthetic: whether SyntheticData says that no person was scanned.
        fault: reason code and detail of why the image can be part of no volume, whatever the others are; None where it can.
    """

    file: str
    frame: int | None = None
    instance_uid: str = ""
    patient_id: str = ""
    person: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    acquired_at: datetime | None = None
    acquisition_day: str = ""
    study_day: str = ""
    study_uid: str = ""
    frame_of_reference: str = ""
    acquisition: str = ""
    kernel: str = ""
    temporal_position: str = ""
    stack_id: str = ""
    shape: tuple[int, int] = (0, 0)
    orientation: tuple[float, ...] = ()
    pixel_mm: tuple[float, ...] = ()
    position_mm: tuple[float, ...] = ()
    position_unit_mm: tuple[float, ...] = ()
    slice_distance_mm: float | None = None
    slope: float | None = None
    intercept: float | None = None
    padding: tuple[int, int] | None = None
    rescale_type: str = ""
    image_type: tuple[str, ...] = ()
    body_part: str = ""
    number: int | None = None
    num_in_acquisition: int | None = None
    concatenation: tuple[str, int, int] | None = None
    synthetic: bool = False
    fault: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """How sentences call the image."""
        return self.file if self.frame is None else f"{self.file}, frame {self.frame + 1}"


_HU_TYPES = {"HU", "HU_MOD"}  # what RescaleType says of values that are HU
# Known quantities are named in sentences; anything else in the tag is not repeated, it may be free text.
_QUANTITIES = {
    "Z_EFF", "ZEFF", "ED", "EDW", "MGML", "MG/ML", "OD", "PCT", "EFF ATOMIC", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY",
    "MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED",
}  # fmt: skip
PLANE_TAGS = (
    "SOPInstanceUID", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "AcquisitionNumber", "ConvolutionKernel",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing",
    "ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "ImageType", "BodyPartExamined", "InstanceNumber",
    "ImagesInAcquisition", "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
    "SamplesPerPixel", "PixelPaddingValue", "PixelPaddingRangeLimit", "BitsAllocated", "PixelRepresentation",
    "SpacingBetweenSlices", "SyntheticData", *MIXED_TAGS,
)  # fmt: skip


def plane_of(header: Dataset, file: str) -> Plane:
    """The plane of a file that is one image; values that are none are faults where a volume depends on them, else dropped."""
    image_type = tuple(word.upper() for word in tag_words(header, "ImageType"))
    rescale_type = tag_text(header, "RescaleType").upper()
    return Plane(
        file=file,
        instance_uid=tag_text(header, "SOPInstanceUID"),
        patient_id=tag_text(header, "PatientID"),
        person=person(header),
        values=alternating_values(header),
        acquired_at=acquired_at(header),
        acquisition_day=acquisition_day(header),
        study_day=tag_day(header, "StudyDate"),
        study_uid=tag_text(header, "StudyInstanceUID"),
        frame_of_reference=tag_text(header, "FrameOfReferenceUID"),
        acquisition=_number_or_text(header, "AcquisitionNumber"),
        kernel=tag_text(header, "ConvolutionKernel").upper(),
        temporal_position=_number_or_text(header, "TemporalPositionIdentifier")
        or _number_or_text(header, "TemporalPositionIndex"),
        stack_id=_number_or_text(header, "StackID"),
        shape=(tag_integer(header, "Rows") or 0, tag_integer(header, "Columns") or 0),
        orientation=tag_numbers(header, "ImageOrientationPatient", 6) or (),
        pixel_mm=tag_numbers(header, "PixelSpacing", 2) or (),
        position_mm=tag_numbers(header, "ImagePositionPatient", 3) or (),
        position_unit_mm=last_digits(header, "ImagePositionPatient"),
        slice_distance_mm=tag_number(header, "SpacingBetweenSlices") or tag_number(header, "SliceThickness"),
        slope=tag_number(header, "RescaleSlope"),
        intercept=tag_number(header, "RescaleIntercept"),
        padding=declared_padding(header),
        rescale_type=rescale_type,
        image_type=image_type,
        body_part=tag_text(header, "BodyPartExamined"),
        number=tag_integer(header, "InstanceNumber"),
        num_in_acquisition=tag_integer(header, "ImagesInAcquisition"),
        concatenation=_concatenation(header),
        synthetic=tag_text(header, "SyntheticData").upper() == "YES",
        fault=no_slice(image_type) or other_quantity(rescale_type, image_type) or _fault(header),
    )


def single_slice(planes: Sequence[Plane]) -> SingleSlice | None:
    """What tells of which scan a series' only image is a slice; None where it has more, or one with a fault."""
    if len(planes) != 1 or planes[0].fault:
        return None
    one = planes[0]
    shared = [
        one.patient_id,
        one.study_uid,
        one.frame_of_reference,
        one.kernel,
        one.shape,
        one.orientation,
        one.pixel_mm,
    ]
    return SingleSlice(sha256_json({"shared": shared}), one.position_mm)


def other_quantity(rescale_type: str, image_type: tuple[str, ...]) -> tuple[str, str] | None:
    """Reason and detail where an image holds something else than HU by its ImageType, or by its RescaleType."""
    if found := quantity(image_type, rescale_type):
        return "other_quantity", f"{found} by its ImageType"
    if rescale_type in UNSPECIFIED_TYPES or is_hu(rescale_type):
        return None
    shown = rescale_type if rescale_type in _QUANTITIES else "something that is not listed"
    return "other_quantity", f"{shown} by its RescaleType"


def is_hu(rescale_type: str) -> bool:
    """Whether a RescaleType says HU, in the standard's words or spelled out."""
    return rescale_type in _HU_TYPES or "HOUNSFIELD" in rescale_type or "HOUNDSFIELD" in rescale_type


def geometry_fault(orientation: tuple[float, ...], pixel_mm: tuple[float, ...]) -> tuple[str, str] | None:
    """Reason and detail where numbers are no orientation or no pixel distances; both have their six and two numbers."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(float(v)) for v in (lengths[0] - 1, lengths[1] - 1, row @ column)) > 0.01:
        return "missing_geometry", "a valid ImageOrientationPatient (two orthogonal unit vectors)"
    if min(pixel_mm) <= 0:
        return "missing_geometry", "a positive PixelSpacing"
    return None


def declared_padding(header: Dataset) -> tuple[int, int] | None:
    """Lowest and highest stored value that is declared padding; None where none is, or no number."""
    first = _as_stored(header, "PixelPaddingValue")
    if first is None:
        return None
    last = _as_stored(header, "PixelPaddingRangeLimit")
    last = first if last is None else last
    return min(first, last), max(first, last)


def _fault(header: Dataset) -> tuple[str, str] | None:
    """Reason and detail of why an image can be part of no volume."""
    samples = tag_integer(header, "SamplesPerPixel")
    if samples not in (None, 1):
        return "unsupported_pixels", f"{samples} samples per pixel"
    needed = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    absent = [name for name in needed if not tag_present(header, name)]
    if absent:
        return "missing_geometry", ", ".join(absent)
    absent = [name for name in ("RescaleSlope", "RescaleIntercept") if not tag_present(header, name)]
    if absent:
        return "missing_rescale", f"without {' and '.join(absent)}"
    try:
        for name, count in (needed | {"RescaleSlope": 1, "RescaleIntercept": 1}).items():
            need_numbers(header, name, count)
        for name in ("Rows", "Columns"):
            need_count(header, name)
    except DicomFault as fault:
        return fault.reason, fault.detail
    if tag_number(header, "RescaleSlope") == 0:
        return "missing_rescale", "slope 0"
    orientation, pixel_mm = tag_numbers(header, "ImageOrientationPatient", 6), tag_numbers(header, "PixelSpacing", 2)
    return geometry_fault(orientation or (), pixel_mm or ())


def _concatenation(header: Dataset) -> tuple[str, int, int] | None:
    """Source: PS3.3 C.7.6.16.2.2.4."""
    uid, number = tag_text(header, "ConcatenationUID"), tag_integer(header, "InConcatenationNumber")
    return (uid, number, tag_integer(header, "InConcatenationTotalNumber") or 0) if uid and number is not None else None


def _number_or_text(header: Dataset, name: str) -> str:
    """A tag as text; a whole number in one form, however it is written."""
    number = tag_integer(header, name)
    return tag_text(header, name) if number is None else str(number)


def _as_stored(header: Dataset, name: str) -> int | None:
    """Padding tags are often written with the wrong sign: 63536 means -2000 in a signed 16-bit image."""
    value = tag_value(header, name)
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else tag_integer(header, name)
    bits, signed = tag_integer(header, "BitsAllocated") or 16, tag_integer(header, "PixelRepresentation") == 1
    if number is None or not isinstance(bits, int):
        return None
    if signed and number >= 2 ** (bits - 1):
        number -= 2**bits
    if not signed and number < 0:
        number += 2**bits
    return number
