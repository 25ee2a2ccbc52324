"""The images of a DICOM file, one or many frames: their headers as planes, their pixels as stored."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.sources.dicom_codecs import PIXEL_DATA_TAGS, FrameReader, num_frames
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_frames import GROUP_TAGS, frame_headers, has_frames
from storage.sources.dicom_planes import PIXEL_TAGS, Plane, plane_of
from storage.sources.files import open_file
from storage.sources.source import refuse

_TAGS = ("SOPClassUID", *PIXEL_TAGS, *GROUP_TAGS)


def read_planes(source: Path, file: str, where: str) -> list[Plane]:
    """One plane per image of a file.

    Raises: UnusableSeriesError: the header cannot be read, or contradicts itself.
    """
    try:
        with open_file(source, file) as stream:
            data = read_data_set(stream, pixels=False, tags=_TAGS)
        if has_frames(data):
            return [
                replace(
                    plane_of(header, file), frame=index, instance_uid=f"{header.get('SOPInstanceUID', '')} {index + 1}"
                )
                for index, header in enumerate(frame_headers(data, PIXEL_TAGS))
            ]
        plane = plane_of(data, file)
        if plane.fault is None and num_frames(data) > 1:
            detail = f"{num_frames(data)} frames without positions of their own"
            plane = replace(plane, fault=("multi_frame", detail))
        return [plane]
    except DicomFault as fault:
        refuse(fault.reason, f"{where}, file {file}", fault.detail, file)
    except DECODE_ERRORS as error:
        refuse("unreadable_file", f"{where}, file {file}", type(error).__name__, file)


def image_header(source: Path, plane: Plane, tags: Sequence[str]) -> Dataset:
    """The header of one image with the given tags, a frame's as if it were an image of its own. Raises: one of DECODE_ERRORS."""
    with open_file(source, plane.file) as stream:
        data = read_data_set(stream, pixels=False, tags=(*tags, *GROUP_TAGS))
    return data if plane.frame is None else frame_headers(data, tags, [plane.frame])[0]


class StoredPixels:
    """The pixels of planes, one at a time; the compressed pixels of the last multi-frame file are kept for its next frame."""

    def __init__(self, source: Path, where: str) -> None:
        self._source, self._where = source, where
        self._file = ""
        self._reader: FrameReader | None = None

    def __call__(self, plane: Plane) -> NDArray[Any]:
        """Integers as stored, shape (rows, columns). Raises: UnusableSeriesError: they cannot be decoded, or claim too much."""
        try:
            if self._reader is None or plane.file != self._file:
                self._reader = None  # before the next file is read, not after
                with open_file(self._source, plane.file) as stream:
                    self._reader, self._file = FrameReader(read_data_set(stream, tags=PIXEL_DATA_TAGS)), plane.file
            return self._reader.read(plane.frame or 0)
        except DicomFault as fault:
            refuse(fault.reason, f"{self._where}, file {plane.name}", fault.detail, plane.file)
        except DECODE_ERRORS as error:
            refuse("unreadable_pixels", f"{self._where}, file {plane.name}", type(error).__name__, plane.file)
