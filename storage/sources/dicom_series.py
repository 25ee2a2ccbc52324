"""One CT series -> HU with geometry: slices sorted along their normal, checked for gaps, rescaled slice by slice."""

import warnings
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.geometry import AIR_HU
from storage.sources.dicom_attributes import allowed_attributes
from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.files import open_file
from storage.sources.source import ScanRequest, SourceVolume, pixel_digest, refuse, short, tilt_deg

ORIENTATION_TOLERANCE = 1e-3  # direction cosines
PIXEL_SPACING_TOLERANCE_MM = 1e-3
SLICE_TOLERANCE_MM = 0.05  # plus a share of the slice distance, because positions are often rounded
SLICE_TOLERANCE_SHARE = 0.05
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# Lossy and lossless JPEG that pydicom cannot decode without GPL code; SimpleITK's GDCM can.
_GDCM_SYNTAXES = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70)}


def load_series(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and rescale one series, see `Format.load`."""
    where, source, files, limits = f"Series {request.scan_id}", request.source, request.files, request.limits
    headers, num_duplicates = _headers(source, files, where)
    _check_consistent(headers, where)
    if len(headers) < limits.min_slices:
        refuse("too_few_slices", where, f"{len(headers)} slice(s), at least {limits.min_slices} are needed")
    orientation = np.asarray([float(v) for v in headers[0][1].ImageOrientationPatient])
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(float(row @ column)) > 0.01:
        refuse("missing_geometry", where, "a valid ImageOrientationPatient (two orthogonal unit vectors)")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    headers.sort(key=lambda item: float(np.asarray(_floats(item[1].ImagePositionPatient)) @ normal))
    positions = np.asarray([_floats(h.ImagePositionPatient) for _, h in headers])
    step = _check_positions(positions, normal, where)
    hu = _read_pixels(source, headers, where)
    step_mm = float(np.linalg.norm(step))
    spacing = _floats(headers[0][1].PixelSpacing)
    direction = np.stack([row, column, step / step_mm], axis=1)
    yield SourceVolume(
        hu=hu,
        spacing_mm=(spacing[1], spacing[0], step_mm),
        origin_mm=(float(positions[0][0]), float(positions[0][1]), float(positions[0][2])),
        direction=direction,
        attributes=allowed_attributes(headers[len(headers) // 2][1]),
        pixel_digest=pixel_digest(hu),
        num_duplicates=num_duplicates,
        tilt_deg=tilt_deg(direction),
    )


def _headers(source: Path, files: Sequence[str], where: str) -> tuple[list[tuple[str, Dataset]], int]:
    """Headers by file; byte-identical repeats of a SOP instance are left out."""
    seen: dict[str, str] = {}
    headers: list[tuple[str, Dataset]] = []
    duplicates = 0
    for name in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_file(source, name) as stream:
                    header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
                    for tag in (*_GEOMETRY, "RescaleSlope", "RescaleIntercept", "Rows", "Columns"):
                        header.get(tag)
        except DECODE_ERRORS as error:
            refuse("unreadable_file", f"{where}, file {name}", type(error).__name__, name)
        instance = str(header.get("SOPInstanceUID") or name)
        if instance in seen and _same_bytes(source, name, seen[instance]):
            duplicates += 1  # with other bytes both are kept, and their positions decide
            continue
        seen[instance] = name
        headers.append((name, header))
    return headers, duplicates


def _same_bytes(source: Path, one: str, other: str) -> bool:
    with open_file(source, one) as first, open_file(source, other) as second:
        return sha256(first.read()).digest() == sha256(second.read()).digest()


def _check_consistent(headers: list[tuple[str, Dataset]], where: str) -> None:
    for name, header in headers:
        missing = [tag for tag in _GEOMETRY if not _numeric(header.get(tag))]
        if missing:
            refuse("missing_geometry", f"{where}, file {name}", ", ".join(missing), name)
        slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
        if not _numeric(slope) or not _numeric(intercept) or float(slope) == 0:
            refuse("missing_rescale", f"{where}, file {name}", f"slope {slope!r}, intercept {intercept!r}", name)
        if int(header.get("SamplesPerPixel") or 1) != 1:
            refuse("unsupported_pixels", f"{where}, file {name}", f"{header.SamplesPerPixel} samples per pixel", name)
        if min(_floats(header.PixelSpacing)) <= 0:
            refuse("missing_geometry", f"{where}, file {name}", "a positive PixelSpacing", name)
    first = headers[0][1]
    for name, header in headers[1:]:
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            detail = f"{first.Rows} × {first.Columns} and {header.Rows} × {header.Columns} in {name}"
            refuse("inconsistent_shape", where, detail, name)
        off = np.abs(np.subtract(_floats(header.ImageOrientationPatient), _floats(first.ImageOrientationPatient)))
        if off.max() > ORIENTATION_TOLERANCE:
            refuse("inconsistent_orientation", where, f"direction cosines differ by {off.max():.4f} in {name}", name)
        off = np.abs(np.subtract(_floats(header.PixelSpacing), _floats(first.PixelSpacing)))
        if off.max() > PIXEL_SPACING_TOLERANCE_MM:
            refuse("inconsistent_spacing", where, f"pixel spacing differs by {off.max():.4f} mm in {name}", name)


def _check_positions(positions: NDArray[np.float64], normal: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The mean slice step (x, y, z), mm, after checking that the slices are evenly spaced and on one line."""
    if len(positions) < 2:
        refuse("too_few_slices", where, "1 slice, at least 2 are needed")
    depth = positions @ normal
    gaps = np.diff(depth)
    step = float(np.median(gaps))
    if gaps.min() < 0.01:
        count = int((gaps < 0.01).sum())
        at = float(depth[int(np.argmin(gaps))])
        refuse("duplicate_slices", where, f"{count} repeated position(s), the first near {at:.1f} mm along the normal")
    tolerance = SLICE_TOLERANCE_MM + SLICE_TOLERANCE_SHARE * step
    wide = np.flatnonzero(gaps > 1.5 * step)
    if wide.size:
        missing = int(np.rint(gaps[wide] / step).sum()) - wide.size
        detail = (
            f"about {missing} slice(s) missing in {wide.size} place(s), the first between slices {wide[0] + 1} and "
            f"{wide[0] + 2} of {len(positions)} ({gaps[wide[0]]:.2f} mm instead of {step:.2f} mm)"
        )
        refuse("missing_slices", where, detail)
    if np.abs(gaps - step).max() > tolerance:
        refuse("inconsistent_spacing", where, f"slice distances from {gaps.min():.3f} to {gaps.max():.3f} mm")
    mean_step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    line = positions[0] + np.arange(len(positions))[:, None] * mean_step
    off = float(np.linalg.norm(positions - line, axis=1).max())
    if off > max(0.5, tolerance):
        refuse("inconsistent_position", where, f"up to {off:.2f} mm off a straight line")
    return mean_step


def _read_pixels(source: Path, headers: list[tuple[str, Dataset]], where: str) -> NDArray[Any]:
    """HU (slices, rows, columns): int16 while slope and intercept of every slice are integers, else float32; at least AIR_HU."""
    rows, columns = int(headers[0][1].Rows), int(headers[0][1].Columns)
    whole = all(float(h.RescaleSlope).is_integer() and float(h.RescaleIntercept).is_integer() for _, h in headers)
    stack = np.empty((len(headers), rows, columns), dtype=np.int16 if whole else np.float32)
    for index, (name, _) in enumerate(headers):
        try:
            with open_file(source, name) as stream:
                plane = _slice_hu(stream, source / name)
        except DECODE_ERRORS as error:
            refuse("unreadable_pixels", f"{where}, file {name}", short(error), name)
        if plane.shape != (rows, columns):
            refuse(
                "inconsistent_shape", where, f"{plane.shape} pixels in {name}, its header says {(rows, columns)}", name
            )
        stack[index] = np.clip(plane, AIR_HU, np.iinfo(np.int16).max)
    return stack


def _slice_hu(stream: BinaryIO, path: Path) -> NDArray[np.float32]:
    """HU of one slice by its own rescale tags; declared padding becomes AIR_HU. Unclipped otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(stream, force=True)
        syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if getattr(data, "file_meta", None) else ""
        try:
            stored = data.pixel_array
        except (RuntimeError, NotImplementedError, AttributeError):
            if syntax not in _GDCM_SYNTAXES:
                raise
            return _gdcm_hu(path)
    hu = stored.astype(np.float32) * np.float32(data.RescaleSlope) + np.float32(data.RescaleIntercept)
    padding = data.get("PixelPaddingValue")
    if padding is not None:
        low = _as_stored(padding, data)
        high = _as_stored(data.get("PixelPaddingRangeLimit", padding), data)
        hu[(stored >= min(low, high)) & (stored <= max(low, high))] = AIR_HU
    return hu


def _gdcm_hu(path: Path) -> NDArray[np.float32]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")  # applies the rescale tags itself
    hu: NDArray[np.float32] = sitk.GetArrayFromImage(reader.Execute())[0].astype(np.float32)
    return hu


def _as_stored(value: Any, data: Dataset) -> int:
    """Padding tags are often written with the wrong sign: 63536 means -2000 in a signed 16-bit image."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    bits = int(data.BitsAllocated)
    if int(data.PixelRepresentation) == 1 and number >= 2 ** (bits - 1):
        number -= 2**bits
    if int(data.PixelRepresentation) == 0 and number < 0:
        number += 2**bits
    return number


def _floats(values: Any) -> list[float]:
    return [float(v) for v in values]


def _numeric(value: Any) -> bool:
    """True for a finite number or a non-empty sequence of them."""
    if value is None or value == "":
        return False
    try:
        values = [float(value)] if isinstance(value, int | float | str) else [float(v) for v in value]
    except (TypeError, ValueError):
        return False
    return bool(values) and bool(np.isfinite(values).all())
