"""One DICOM series -> HU with geometry: its images, files or frames of files, checked together and rescaled one by one."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.errors import UnusableSeriesError
from storage.sources.attributes import SYNTHETIC
from storage.sources.dicom_attributes import ATTRIBUTE_TAGS, allowed_attributes
from storage.sources.dicom_codecs import PIXEL_DATA_TAGS, FrameReader, check_claim, num_frames
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_frames import GROUP_TAGS, frame_headers, has_frames
from storage.sources.dicom_pixels import plane_hu, read_stack, without_overlays
from storage.sources.dicom_planes import PLANE_TAGS, Plane, plane_of, single_slice
from storage.sources.dicom_stack import Stack, is_same_place
from storage.sources.dicom_values import tag_text
from storage.sources.dicom_volume import check_planes
from storage.sources.files import open_file
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, as_utf8, refuse
from storage.verdicts import counted

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
    for stack in _stacks(images, request):
        attributes = allowed_attributes(images.header(stack.planes[len(stack.planes) // 2]))
        if any(plane.synthetic for plane in stack.planes):
            attributes[SYNTHETIC] = True
        hu, notes = read_stack(stack.planes, images.take_pixels, request.limits, where)
        if num_cut := len(images.cut & {plane.name for plane in stack.planes}):
            notes = (*notes, f"bits above BitsStored, as overlays are, not used in {counted(num_cut, 'image')}")
        yield stack.volume(hu, attributes, notes)


def _stacks(images: "SeriesImages", request: ScanRequest) -> list[Stack]:
    """The volumes of a series. Files whose pixels cannot be decoded are left out where another file has the same images whole."""
    planes, broken = images.planes, []
    failed: list[UnusableSeriesError] = []  # while it is decided what is one volume, which may go on without an answer

    def same_pixels(one: Plane, other: Plane) -> bool:
        try:
            return images.same_pixels(one, other)
        except UnusableSeriesError as error:
            failed.append(error)
            raise

    while True:
        try:
            stacks, refusal = check_planes(planes, request, same_pixels), None
        except UnusableSeriesError as error:
            stacks, refusal = [], error
        copies = broken_copies(planes, failed.pop()) if failed else []
        failed.clear()
        if copies:
            file = copies[0].file
            detail = "another file has the same SOPInstanceUID and can be decoded"
            broken.append(LeftOut(file, "unreadable_pixels", detail))
            planes = [plane for plane in planes if plane.file != file]
        elif refusal:
            refusal.single = single_slice(images.planes)
            raise refusal
        elif broken:
            note = f"{counted(len(broken), 'file')} cannot be decoded; copies of the same images are used"
            first = replace(stacks[0], left_out=(*stacks[0].left_out, *broken), notes=(*stacks[0].notes, note))
            return [first, *stacks[1:]]
        else:
            return stacks


def broken_copies(planes: Sequence[Plane], error: UnusableSeriesError) -> list[Plane]:
    """The images of the file whose pixels cannot be decoded, where each is also in another file, at its place; else none."""
    if error.reason != "unreadable_pixels":
        return []
    of_file = [plane for plane in planes if as_utf8(plane.file) == error.file]
    others: dict[str, list[Plane]] = {}
    for plane in planes:
        if plane.instance_uid and plane.fault is None and as_utf8(plane.file) != error.file:
            others.setdefault(plane.instance_uid, []).append(plane)
    there = [any(is_same_place(plane, other) for other in others.get(plane.instance_uid, ())) for plane in of_file]
    return of_file if all(there) else []


class SeriesImages:
    """The images of a series. Each file is read once as long as `KEPT_BYTES` hold its pixels; without them, headers stay.

    Attributes:
        planes: in the order of the files and of their frames. What cannot be read has a fault.
        cut: names of those that were decoded and had something else in bits above BitsStored.
    """

    def __init__(self, request: ScanRequest, where: str) -> None:
        """Read the headers, and pixels as long as memory allows; nothing is decoded and nothing raises."""
        self._source, self._where = request.source, where
        self._num_kept = self._num_bytes = 0
        self._files: dict[str, Dataset] = {}
        self._reader: tuple[str, FrameReader] | None = None
        self._same: dict[tuple[str, str], bool] = {}
        self.planes: list[Plane] = []
        self.cut: set[str] = set()
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
        """Whether two images have the same HU, however they are encoded and rescaled. Raises: as `take_pixels`."""
        pair = one.name, other.name
        if pair not in self._same:
            first, second = self._stored(one), self._stored(other)
            if (one.slope, one.intercept) != (other.slope, other.intercept):
                first, second = plane_hu(first, one), plane_hu(second, other)
            self._same[pair] = bool(np.array_equal(first, second))
        return self._same[pair]

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
            values = without_overlays(stored, data, plane.padding)
            if values is not stored:
                self.cut.add(plane.name)
            return values
        except DicomFault as fault:
            refuse(fault.reason, where, fault.detail, plane.file)
        except DECODE_ERRORS as error:
            refuse("unreadable_pixels", where, type(error).__name__, plane.file)
