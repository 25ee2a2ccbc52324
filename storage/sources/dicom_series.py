"""One series of single-frame CT images -> HU with geometry: each file read once while memory allows, rescaled image by image."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.sources.dicom_attributes import ATTRIBUTE_TAGS, allowed_attributes
from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.dicom_pixels import read_stack, without_overlays
from storage.sources.dicom_planes import PLANE_TAGS, Plane, plane_of
from storage.sources.dicom_volume import check_planes
from storage.sources.files import open_file
from storage.sources.source import ScanRequest, SourceVolume, refuse, short

KEPT_BYTES = (
    256 << 20
)  # of files' pixels that are kept from the check of the headers; those of more files are read again
_PIXEL_TAGS = (
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "NumberOfFrames", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_TAGS = [*dict.fromkeys((*PLANE_TAGS, *ATTRIBUTE_TAGS, *_PIXEL_TAGS))]  # nothing else of a file is kept in memory
# Lossy and lossless JPEG that pydicom cannot decode without GPL code; SimpleITK's GDCM can.
_GDCM_SYNTAXES = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70)}


def load_series(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and rescale one series, see `Format.load`."""
    where = f"Series {request.scan_id}"
    images = _Images(request, where)
    for stack in check_planes(images.planes, request, images.same_pixels):
        attributes = allowed_attributes(images.header(stack.planes[len(stack.planes) // 2]))
        hu, notes = read_stack(stack.planes, images.take_pixels, request.limits, where)
        yield stack.volume(hu, attributes, notes)


class _Images:
    """The files of a series; pixels stay in memory, as they are encoded in the file, up to `KEPT_BYTES`.

    Attributes:
        planes: of the files, in their order.
    """

    def __init__(self, request: ScanRequest, where: str) -> None:
        self._request = request
        self._where = where
        self._kept = 0
        self._headers: dict[str, Dataset] = {}
        for name in request.files:
            self._headers[name] = self._read(name)
        self.planes = [plane_of(header, name) for name, header in self._headers.items()]

    def header(self, plane: Plane) -> Dataset:
        """The tags of an image that a volume depends on."""
        return self._headers[plane.file]

    def same_pixels(self, one: Plane, other: Plane) -> bool:
        """Whether two images have the same stored pixels, however they are encoded."""
        return bool(np.array_equal(self._stored(one), self._stored(other)))

    def take_pixels(self, plane: Plane) -> NDArray[Any]:
        """Pixels of an image as stored, shape (rows, columns); the memory of their encoded form is free afterwards."""
        stored = self._stored(plane)
        self._headers[plane.file].pop("PixelData", None)
        return stored

    def _read(self, name: str, *, again: bool = False) -> Dataset:
        """The tags that are needed; PixelData as long as memory allows, and always when read again."""
        try:
            with warnings.catch_warnings(), open_file(self._request.source, name) as stream:
                warnings.simplefilter("ignore")
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
                keep = again or self._kept + size <= KEPT_BYTES
                data = pydicom.dcmread(stream, stop_before_pixels=not keep, force=True, specific_tags=_TAGS)
        except DECODE_ERRORS as error:
            refuse("unreadable_file", f"{self._where}, file {name}", type(error).__name__, name)
        if keep and not again:
            self._kept += size
        return data

    def _stored(self, plane: Plane) -> NDArray[Any]:
        data = self._headers[plane.file]
        if "PixelData" not in data:
            data = self._read(plane.file, again=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stored = self._decoded(data, plane)
                return without_overlays(stored, data, plane.padding)
        except DECODE_ERRORS as error:
            refuse("unreadable_pixels", f"{self._where}, file {plane.name}", short(error), plane.file)

    def _decoded(self, data: Dataset, plane: Plane) -> NDArray[Any]:
        syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if getattr(data, "file_meta", None) else ""
        try:
            decoded: NDArray[Any] = data.pixel_array
            return decoded
        except (RuntimeError, NotImplementedError, AttributeError):
            if syntax not in _GDCM_SYNTAXES:
                raise
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self._request.source / plane.file))
        reader.SetImageIO("GDCMImageIO")  # applies the rescale tags itself
        hu = sitk.GetArrayFromImage(reader.Execute())[0].astype(np.float64)
        stored: NDArray[Any] = np.rint((hu - (plane.intercept or 0.0)) / (plane.slope or 1.0)).astype(np.int32)
        return stored
