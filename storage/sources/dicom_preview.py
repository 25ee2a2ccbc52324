"""One image of a DICOM file for a preview, where its pixels can be read at little cost."""

import warnings
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.sources.dicom_errors import DECODE_ERRORS

MAX_BYTES = 64 << 20  # of a file
MAX_PIXELS = 2048 * 2048
_HEADER = ["NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"]


def preview(stream: BinaryIO) -> NDArray[np.float32] | None:
    """The image in a file, or the middle one of several, see `Format.preview`."""
    try:
        if stream.seek(0, 2) > MAX_BYTES:
            return None
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _image(stream)
    except DECODE_ERRORS:
        return None


def _image(stream: BinaryIO) -> NDArray[np.float32] | None:
    head = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_HEADER)
    meta = getattr(head, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return None  # it could inflate to any size
    if int(head.Rows) * int(head.Columns) > MAX_PIXELS or int(head.get("SamplesPerPixel") or 1) != 1:
        return None
    stream.seek(0)
    data = pydicom.dcmread(stream, force=True)
    frames = int(data.get("NumberOfFrames") or 1)
    stored = pixel_array(data, index=frames // 2) if frames > 1 else data.pixel_array
    slope, intercept = _number(data, "RescaleSlope", 1.0), _number(data, "RescaleIntercept", 0.0)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _number(data: Any, name: str, default: float) -> float:
    try:
        number = float(data.get(name))
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default
