"""Multi-frame CT files for tests, written with pydicom alone: the series of `dicom_files` in one file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, LegacyConvertedEnhancedCTImageStorage

from tests.unit.storage.dicom_files import linear_hu, write_series

ENHANCED, LEGACY = EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage
_GROUPS = {  # functional group -> what it holds, by the tag of a classic header
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "FrameContentSequence": {
        "FrameAcquisitionNumber": "AcquisitionNumber",
        "StackID": "StackID",
        "TemporalPositionIndex": "TemporalPositionIndex",
    },
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
}


def write_enhanced(
    path: Path,
    hu: Callable[[np.ndarray], np.ndarray] = linear_hu,
    *,
    sop_class: str = ENHANCED,
    order: Sequence[int] | None = None,
    shared: Sequence[str] = ("PixelMeasuresSequence", "PlaneOrientationSequence"),
    change: Callable[[int, Dataset], Any] | None = None,
    change_file: Callable[[Dataset], Any] | None = None,
    **series: Any,
) -> np.ndarray:
    """Write one file with a frame per slice; returns the 4 × 4 matrix from index (x, y, z) to LPS mm.

    Args:
        order: slices in the order of the frames; a slice that is not there has no frame.
        shared: functional groups that all frames share; the others each frame has for itself.
        change: called with (slice index, classic data set) before it becomes a frame.
        change_file: called with the whole data set before writing.
        series: as `write_series`.
    """
    classic = path.parent / f"{path.name}.classic"
    matrix = write_series(classic, hu, change=change, **series)
    slices = [pydicom.dcmread(file) for file in sorted(classic.iterdir())]
    for file in classic.iterdir():
        file.unlink()
    classic.rmdir()
    frames = slices if order is None else [slices[k] for k in order]
    data = Dataset()
    for name in (
        "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType", "PatientID",
        "PatientName", "PatientBirthDate", "StudyDate", "PatientSex", "InstitutionName", "Manufacturer", "KVP", "Rows",
        "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
        "PixelRepresentation", "PixelPaddingValue",
    ):  # fmt: skip
        if name in frames[0]:
            data[name] = frames[0][name]
    data.SOPClassUID, data.SOPInstanceUID = sop_class, f"1.2.3.{abs(hash(path.name)) % 10**9}"
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence = Items([_groups(frames[0], [name for name in _GROUPS if name in shared])])
    own = [name for name in _GROUPS if name not in shared]
    data.PerFrameFunctionalGroupsSequence = Items([_groups(frame, own) for frame in frames])
    data.PixelData = b"".join(frame.PixelData for frame in frames)
    data["PixelData"].VR = "OW"
    if change_file:
        change_file(data)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = sop_class, data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return matrix


def _groups(frame: Dataset, names: Sequence[str]) -> Dataset:
    groups = Dataset()
    for name in names:
        item = Dataset()
        for target, source in _GROUPS[name].items():
            if source in frame:
                setattr(item, target, frame[source].value)
        if len(item):
            setattr(groups, name, Items([item]))
    return groups
