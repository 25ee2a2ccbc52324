"""Synthetic chest phantoms written as real DICOM CT series: data for the demo and the tests, from a seed.

Acquisitions differ in orientation, position and spacing. A localizer and a series with missing slices are included.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from storage.files import naming_path, temporary_path
from storage.phantom import MANUFACTURER
from storage.phantom.anatomy import Anatomy


@dataclass(frozen=True)
class Acquisition:
    """How one phantom patient is scanned.

    Attributes:
        name: orientation in words.
        position: DICOM PatientPosition.
        row, column: direction cosines (LPS) of image x and y.
        num_pixels: rows and columns.
        pixel_mm, slice_mm: distances.
        slope, intercept: rescale.
        fov_fill: True when a circular field of view is filled with a declared padding value.
        kernel: ConvolutionKernel.
    """

    name: str
    position: str
    row: tuple[float, float, float]
    column: tuple[float, float, float]
    num_pixels: int
    pixel_mm: float
    slice_mm: float
    slope: float
    intercept: float
    fov_fill: bool
    kernel: str


def _rotated(x_deg: float, z_deg: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    a, b = np.deg2rad(x_deg), np.deg2rad(z_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    matrix = about_z @ about_x
    row, column = (tuple(float(round(v, 10)) for v in matrix[:, k]) for k in (0, 1))
    return row, column  # type: ignore[return-value]


_OBLIQUE = _rotated(5.0, 7.0)
_X, _Y = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
_RIGHT, _FRONT = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)
ACQUISITIONS = (
    Acquisition("head first supine", "HFS", _X, _Y, 320, 0.82, 2.5, 1.0, -1024.0, False, "STANDARD"),
    Acquisition("prone", "HFP", _RIGHT, _FRONT, 288, 0.92, 3.0, 1.0, -1024.0, False, "B40f"),
    Acquisition("feet first supine", "FFS", _RIGHT, _Y, 288, 0.94, 2.5, 1.0, 0.0, True, "LUNG"),
    Acquisition("oblique", "HFS", _OBLIQUE[0], _OBLIQUE[1], 304, 0.90, 3.0, 1.0, -1024.0, False, "B70f"),
    Acquisition("head first supine, filled field of view", "HFS", _X, _Y, 320, 0.84, 2.0, 1.0, -1024.0, True, "FC51"),
    Acquisition("feet first prone", "FFP", _X, _FRONT, 272, 0.98, 3.0, 0.5, -1024.0, False, "B"),
    Acquisition("head first supine, thin slices", "HFS", _X, _Y, 272, 0.96, 1.5, 1.0, -1024.0, False, "BONE"),
    Acquisition("head first supine, wide field", "HFS", _X, _Y, 304, 0.98, 2.5, 1.0, -1024.0, True, "C"),
)
_HALF_HEIGHT_MM = 124.0  # z extent of every scan around the chest's middle
_PADDING = -2000


def write_demo_data(
    directory: Path,
    *,
    num_patients: int = 8,
    seed: int = 7,
    small: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write phantom patients as DICOM series, a localizer of the first patient, and one more patient with missing slices.

    Same arguments, same bytes. Files already there under the same names are replaced; nothing else is touched.

    Args:
        directory: made when missing.
        num_patients: complete patients, at least 1; orientations, spacings and rescale tags repeat after eight.
        seed: of anatomy and noise.
        small: 44 × 44 pixels and 6 mm slices, for tests.
        progress: called with (done, total) series.
    Returns: one entry per series: patient_id, series_uid, folder, num_slices, orientation, expected (verdict or reason).
    Raises: ValueError: num_patients below 1.
    """
    if num_patients < 1:
        raise ValueError(f"num_patients is {num_patients}; expected at least 1.")

    def write_patient(patient: int) -> dict[str, Any]:
        broken = patient == num_patients
        acquisition = _small(ACQUISITIONS[patient % len(ACQUISITIONS)], small or broken)
        return _write_series(directory, patient, seed, acquisition, broken=broken)

    series: list[dict[str, Any]] = []
    # Patients have generators of their own, so threads change no byte.
    with ThreadPoolExecutor(2, thread_name_prefix="phantom") as pool:
        for entry in pool.map(write_patient, range(num_patients + 1)):
            series.append(entry)
            if progress:
                progress(len(series), num_patients + 2)
    series.append(_write_localizer(directory, seed, small=small))
    if progress:
        progress(len(series), num_patients + 2)
    return series


def _small(acquisition: Acquisition, small: bool) -> Acquisition:
    if not small:
        return acquisition
    pixel = round(acquisition.num_pixels * acquisition.pixel_mm / 44, 3)
    return Acquisition(**{**acquisition.__dict__, "num_pixels": 44, "pixel_mm": pixel, "slice_mm": 6.0})


def _write_series(directory: Path, patient: int, seed: int, scan: Acquisition, *, broken: bool) -> dict[str, Any]:
    anatomy = Anatomy.draw(seed, patient, table_front=scan.position.endswith("P"))
    rng = np.random.default_rng([seed, patient, 1])
    row, column = np.array(scan.row), np.array(scan.column)
    normal = np.cross(row, column)
    num_slices = int(2 * _HALF_HEIGHT_MM / scan.slice_mm)
    centre = np.array([rng.uniform(-6, 6), rng.uniform(-150, -120), rng.uniform(-300, 300)]).round(2)
    in_plane = (np.arange(scan.num_pixels) - (scan.num_pixels - 1) / 2) * scan.pixel_mm
    u, v = np.meshgrid(in_plane, in_plane)
    outside_fov = np.hypot(u, v) > in_plane[-1] + scan.pixel_mm / 2
    name = f"patient-{patient + 1:04d}" + ("-incomplete" if broken else "")
    folder = directory / name / "chest"
    uid = _uid(seed, patient, "series", scan.num_pixels, broken)
    written = 0
    for index in range(num_slices):
        noise = rng.normal(0, 14, (scan.num_pixels, scan.num_pixels)).astype(np.float32)  # drawn for missing slices too
        if broken and num_slices // 2 <= index < num_slices // 2 + 3:
            continue
        offset = (index - (num_slices - 1) / 2) * scan.slice_mm
        x, y, z = ((u * row[k] + v * column[k] + offset * normal[k]).astype(np.float32) for k in range(3))
        stored = np.rint((np.maximum(anatomy.hu(x, y, z) + noise, -1024) - scan.intercept) / scan.slope)
        if scan.fov_fill:
            stored[outside_fov] = _PADDING
        corner = centre + row * in_plane[0] + column * in_plane[0] + normal * offset
        data = _ct_slice(seed, patient, scan, stored.astype(np.int16), index, corner, uid)
        _replace_file(folder / f"IM{index + 1:04d}.dcm", _dicom_bytes(data))
        written += 1
    return {
        "patient_id": f"PHANTOM-{patient + 1:04d}",
        "series_uid": uid,
        "folder": folder.relative_to(directory).as_posix(),
        "num_slices": written,
        "orientation": scan.name,
        "pixel_mm": scan.pixel_mm,
        "slice_mm": scan.slice_mm,
        "centre_mm": [float(c) for c in centre],
        "expected": "missing_slices" if broken else "committed",
    }


def _write_localizer(directory: Path, seed: int, *, small: bool) -> dict[str, Any]:
    scan = Acquisition("coronal", "HFS", _X, (0.0, 0.0, -1.0), 48 if small else 192, 1.4, 1.0, 1.0, 0.0, False, "T20f")
    uid = _uid(seed, 0, "localizer", scan.num_pixels, False)
    pixels = np.tile(np.linspace(-200, 400, scan.num_pixels), (scan.num_pixels, 1)).astype(np.int16)
    data = _ct_slice(seed, 0, scan, pixels, 0, np.array([-134.0, -130.0, 134.0]), uid)
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.SeriesDescription = "Topogram"
    folder = directory / "patient-0001" / "localizer"
    _replace_file(folder / "IM0001.dcm", _dicom_bytes(data))
    return {
        "patient_id": "PHANTOM-0001",
        "series_uid": uid,
        "folder": folder.relative_to(directory).as_posix(),
        "num_slices": 1,
        "orientation": scan.name,
        "expected": "localizer",
    }


def _ct_slice(
    seed: int,
    patient: int,
    scan: Acquisition,
    stored: NDArray[np.int16],
    index: int,
    corner: NDArray[np.float64],
    uid: str,
) -> Dataset:
    """One CT Image Storage data set; stored values are signed 16 bit."""
    data = Dataset()
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = _uid(seed, patient, uid, index, scan.num_pixels)
    data.StudyInstanceUID = _uid(seed, patient, "study", scan.num_pixels, 0)
    data.SeriesInstanceUID = uid
    data.FrameOfReferenceUID = _uid(seed, patient, "frame", scan.num_pixels, 0)
    data.Modality = "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientID = f"PHANTOM-{patient + 1:04d}"
    data.PatientName = f"Phantom^Number{patient + 1:04d}"
    data.PatientSex = "FM"[patient % 2]
    data.PatientAge = f"{45 + 3 * patient % 40:03d}Y"
    data.PatientPosition = scan.position
    data.StudyDate = "20200101"
    data.StudyID = "1"
    data.SeriesNumber = 1
    data.SeriesDescription = "Synthetic chest phantom"
    data.BodyPartExamined = "CHEST"
    data.Manufacturer = MANUFACTURER
    data.ManufacturerModelName = "Phantom 1"
    data.ConvolutionKernel = scan.kernel
    data.KVP = 120
    data.SliceThickness = scan.slice_mm
    data.InstanceNumber = index + 1
    data.ImageOrientationPatient = [_ds(v) for v in (*scan.row, *scan.column)]
    data.ImagePositionPatient = [_ds(v) for v in corner]
    data.PixelSpacing = [_ds(scan.pixel_mm)] * 2
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = _ds(scan.slope), _ds(scan.intercept), "HU"
    if scan.fov_fill:
        data.add_new("PixelPaddingValue", "SS", _PADDING)
    data.PixelData = np.ascontiguousarray(stored, dtype="<i2").tobytes()
    return data


def _dicom_bytes(data: Dataset) -> bytes:
    buffer = pydicom.filebase.DicomBytesIO()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta = meta
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return bytes(buffer.getvalue())


def _replace_file(path: Path, data: bytes) -> None:
    """Atomic for readers, without fsync: a thousand fsyncs take longer than drawing, and the data can be made again."""
    temporary = temporary_path(path)
    with naming_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)


def _ds(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{float(value):.10g}"[:16]


def _uid(seed: int, patient: int, *words: object) -> str:
    """A deterministic UUID-derived UID (2.25 root)."""
    digest = hashlib.sha256(repr((seed, patient, words)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"
