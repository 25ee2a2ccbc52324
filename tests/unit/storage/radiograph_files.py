"""DICOM radiographs for tests, written with pydicom alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CR, DX_PRESENTATION, DX = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("1", "1.1", "1.1.1"))
XA, ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.1.1"
_MODALITIES = {CR: "CR", DX_PRESENTATION: "DX", DX: "DX", XA: "XA", ENHANCED_XA: "XA"}


def write_radiograph(
    path: Path, pixels: NDArray[Any], *, sop_class: str = DX, without: Sequence[str] = (), **tags: Any
) -> Dataset:
    """Write an image of pixels (rows, columns) or (frames, rows, columns), whole numbers of 0 to 65535.

    Args:
        without: keywords that are left out.
        tags: by keyword, instead of and beside those of a PA film for processing.
    """
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=[str(path)])
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4", generate_uid(entropy_srcs=[str(path), "series"])
    data.Modality, data.ImageType, data.InstanceNumber = _MODALITIES[sop_class], ["ORIGINAL", "PRIMARY", ""], 1
    data.PatientID, data.PatientName, data.PatientBirthDate = "SECRET-ID-77", "Doe^Confidentia", "19500601"
    data.StudyDate, data.StudyTime, data.InstitutionName = "20200101", "120000", "Hidden Hospital"
    for name in ("PatientSex", "ReferringPhysicianName", "StudyID", "AccessionNumber", "Manufacturer"):
        setattr(data, name, "")
    data.SeriesNumber, data.BodyPartExamined = 1, "CHEST"
    data.KVP, data.ImagerPixelSpacing = 120, [1.5, 1.5]
    data.PixelIntensityRelationship = "LIN"
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames, data.FrameIncrementPointer, data.FrameTime = len(pixels), 0x00181063, 33
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    if sop_class in (CR, DX_PRESENTATION, DX):
        data.ViewPosition, data.PatientOrientation = "PA", ["L", "F"]
        data.PixelIntensityRelationshipSign = 1
        data.PresentationIntentType = "FOR PRESENTATION" if sop_class == DX_PRESENTATION else "FOR PROCESSING"
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
        data.ImageLaterality, data.PresentationLUTShape, data.LossyImageCompression = "U", "IDENTITY", "00"
        data.BurnedInAnnotation, data.DetectorType, data.PositionerType = "NO", "DIRECT", ""
        data.AcquisitionContextSequence = []
        thorax = item(CodeValue="51185008", CodingSchemeDesignator="SCT", CodeMeaning="Thorax")
        if sop_class != CR:
            data.AnatomicRegionSequence = [thorax]
        if sop_class == DX_PRESENTATION:
            data.WindowCenter, data.WindowWidth = 30000, 60000
    else:
        data.DistanceSourceToPatient, data.DistanceSourceToDetector = 700.0, 1000.0
        data.PositionerPrimaryAngle, data.PositionerSecondaryAngle = 0.0, 0.0
        data.ImageType, data.RadiationSetting = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"], "GR"
        data.XRayTubeCurrent = data.ExposureTime = data.Exposure = 1
    for name, value in tags.items():
        setattr(data, name, value)
    for name in without:
        delattr(data, name)
    data.PixelData = np.rint(pixels).astype("<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def item(**tags: Any) -> Dataset:
    """One item of a sequence."""
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data
