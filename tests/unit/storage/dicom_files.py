"""DICOM series for tests, written with pydicom alone: HU is a known function of LPS world position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SUPINE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def linear_hu(world: np.ndarray) -> np.ndarray:
    """World-linear HU with another slope along each axis, so that no flip or swap leaves it as it is; some of it is air."""
    return 3.0 * world[..., 0] - 2.0 * world[..., 1] + 1.0 * world[..., 2] - 480.0


def write_series(
    folder: Path,
    hu: Callable[[np.ndarray], np.ndarray] = linear_hu,
    *,
    axes: tuple[tuple[float, ...], tuple[float, ...]] = SUPINE,
    shape: tuple[int, int, int] = (24, 26, 28),
    spacing: tuple[float, float, float] = (1.7, 1.3, 2.5),
    step: np.ndarray | None = None,
    slope: float = 1.0,
    intercept: float = -1024.0,
    uid: str = "1.2.3.4.5",
    patient_id: str = "SECRET-ID-77",
    change: Callable[[int, Dataset], Any] | None = None,
    skip: tuple[int, ...] = (),
) -> np.ndarray:
    """Write slices centred on the world origin; returns the 4 × 4 matrix from index (x, y, z) to LPS mm.

    Args:
        spacing: column, row and slice distance (index x, y, z).
        step: slice step instead of normal × slice distance (gantry tilt).
        change: called with (slice index, data set) before writing.
        skip: slices left out.
    """
    row, column = (np.asarray(a, dtype=float) for a in axes)
    step = np.cross(row, column) * spacing[2] if step is None else step
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = row * spacing[0], column * spacing[1], step
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.asarray(shape[::-1]) - 1) / 2)
    x, y = np.meshgrid(np.arange(shape[2]), np.arange(shape[1]))
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(shape[0]):
        if k in skip:
            continue
        index = np.stack([x, y, np.full_like(x, k), np.ones_like(x)], axis=-1)
        world = (index @ matrix.T)[..., :3]
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[uid, str(k)])
        data.StudyInstanceUID, data.SeriesInstanceUID = uid + ".1", uid
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.PatientID, data.PatientName = patient_id, "Doe^Confidentia"
        data.PatientBirthDate, data.StudyDate, data.PatientSex = "19500601", "20200101", "F"
        data.InstitutionName, data.Manufacturer, data.KVP = "Hidden Hospital", "ACME", 120
        data.Rows, data.Columns = shape[1:]
        data.ImageOrientationPatient = [float(v) for v in (*row, *column)]
        data.ImagePositionPatient = [round(float(v), 6) for v in matrix[:3, 3] + k * step]
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelData = np.rint((hu(world) - intercept) / slope).astype("<i2").tobytes()
        if change:
            change(k, data)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return matrix
