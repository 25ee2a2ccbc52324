"""One DICOM series -> HU with geometry: its images, files or frames of files, checked together and rescaled one by one."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.errors import UnusableSeriesError
from storage.sources.dicom_attributes import ATTRIBUTE_TAGS, allowed_attributes
from storage.sources.dicom_codecs import PIXEL_DATA_TAGS, FrameReader, check_claim, num_frames
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_frames import GROUP_TAGS, frame_headers, has_frames
from storage.sources.dicom_pixels import read_stack, without_overlays
from storage.sources.dicom_planes import PLANE_TAGS, Plane, plane_of, single_slice
from storage.sources.dicom_values import tag_text
from storage.sources.dicom_volume import check_planes
from storage.sources.files import open_file
from storage.sources.source import ScanRequest, SourceVolume, refuse

KEPT_BYTES = (
    256 << 20
)  # of pixels, as encoded, that are kept while headers are checked; files beyond that are read again
_HEADER_TAGS = tuple(dict.fromkeys((*PLANE_TAGS, *ATTRIBUTE_TAGS)))
# Nothing else of a file is kept in memory.
_TAGS: tuple[str | int, ...] = tuple(dict.fromkeys((*_HEADER_TAGS, *GROUP_TAGS, *PIXEL_DATA_TAGS)))


def load_series(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and rescale one series, see `Format.load`."""
    where = f"Series {request.scan_id}"
    images = SeriesImages(request, where)
    images.check_claims()
    try:
        stacks = check_planes(images.planes, request, images.same_pixels)
    except UnusableSeriesError as error:
        error.single = single_slice(images.planes)
        raise
    for stack in stacks:
        attributes = allowed_attributes(images.header(stack.planes[len(stack.planes) // 2]))
        hu, notes = read_stack(stack.planes, images.take_pixels, request.limits, where)
        yield stack.volume(hu, attributes, notes)


class SeriesImages:
    """The images of a series. Each file is read once as long as `KEPT_BYTES` hold its pixels; without them, headers stay.

    Attributes:
        planes: in the order of the files and of their frames. What cannot be read has a fault.
    """

    def __init__(self, request: ScanRequest, where: str) -> None:
        """Read the headers, and pixels as long as memory allows; nothing is decoded and nothing raises."""
        self._source, self._where = request.source, where
        self._num_kept = self._num_bytes = 0
        self._files: dict[str, Dataset] = {}
        self._reader: tuple[str, FrameReader] | None = None
        self.planes: list[Plane] = []
        for file in request.files:
            try:
                self._files[file] = self._read(file)
                self.planes += self._planes(file)
            except DicomFault as fault:
                self.planes.append(Plane(file, fault=(fault.reason, fault.detail)))
            except DECODE_ERRORS as error:
                self.planes.append(Plane(file, fault=("unreadable_file", type(error).__name__)))

    def check_claims(self) -> None:
        """Refuse images whose headers claim far more pixels than their files can hold. Raises: UnusableSeriesError: too_costly."""
        try:
            check_claim(sum(2 * plane.shape[0] * plane.shape[1] for plane in self.planes), self._num_bytes)
        except DicomFault as fault:
            refuse(fault.reason, self._where, fault.detail)

    def header(self, plane: Plane) -> Dataset:
        """Tags of an image that a volume depends on, or that are attributes of one."""
        data = self._files[plane.file]
        return data if plane.frame is None else frame_headers(data, _HEADER_TAGS, [plane.frame])[0]

    def same_pixels(self, one: Plane, other: Plane) -> bool:
        """Whether two images have the same stored pixels, however they are encoded. Raises: as `take_pixels`."""
        return bool(np.array_equal(self._stored(one), self._stored(other)))

    def take_pixels(self, plane: Plane) -> NDArray[Any]:
        """Pixels as stored, shape (rows, columns), integers; their encoded form is dropped.

        Raises: UnusableSeriesError: they cannot be decoded, or claim too much.
        """
        stored = self._stored(plane)
        self._files[plane.file].pop("PixelData", None)
        return stored

    def _planes(self, file: str) -> list[Plane]:
        data = self._files[file]
        if has_frames(data):
            uid = tag_text(data, "SOPInstanceUID")
            found = [plane_of(header, file) for header in frame_headers(data, _HEADER_TAGS)]
            return [replace(plane, frame=k, instance_uid=f"{uid} {k + 1}") for k, plane in enumerate(found)]
        plane = plane_of(data, file)
        count = num_frames(data)
        if plane.fault is None and count > 1:
            plane = replace(plane, fault=("multi_frame", f"{count} frames without positions of their own"))
        return [plane]

    def _read(self, file: str) -> Dataset:
        """A file's data set, with pixels as long as memory allows."""
        with open_file(self._source, file) as stream:
            size = stream.seek(0, os.SEEK_END)
            keep = self._num_kept + size <= KEPT_BYTES
            data = read_data_set(stream, pixels=keep, tags=_TAGS)
        self._num_bytes += size
        pixels = data.get_item("PixelData") if "PixelData" in data else None
        self._num_kept += len(getattr(pixels, "value", None) or b"")  # more than the file where that is deflated
        if self._num_kept > KEPT_BYTES:
            data.pop("PixelData", None)
        return data

    def _stored(self, plane: Plane) -> NDArray[Any]:
        where, data = f"{self._where}, file {plane.name}", self._files[plane.file]
        try:
            if self._reader is None or self._reader[0] != plane.file:
                self._reader = None  # before the next file is read, not after
                if "PixelData" not in data:
                    with open_file(self._source, plane.file) as stream:
                        data = read_data_set(stream, tags=_TAGS)
                self._reader = plane.file, FrameReader(data)
            stored = self._reader[1].read(plane.frame or 0)
            return without_overlays(stored, data, plane.padding)
        except DicomFault as fault:
            refuse(fault.reason, where, fault.detail, plane.file)
        except DECODE_ERRORS as error:
            refuse("unreadable_pixels", where, type(error).__name__, plane.file)
