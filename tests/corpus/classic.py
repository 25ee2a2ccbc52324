"""DICOM series of the corpus' world, one data set per slice, to be changed before they are written."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.corpus.member import Place
from tests.corpus.world import Geometry, Hu, Truth

SIXTEENTH = 1 / 16


@dataclass
class Scan:
    """Slices in the order in which they lie along k, and what the volume of them must be."""

    slices: list[Dataset]
    geometry: Geometry
    hu: Hu
    positions: NDArray[np.float64] | None = None
    truth: dict[str, Any] = field(default_factory=dict)

    def right(self, **changes: Any) -> Truth:
        """The truth of the volume."""
        uid = str(self.slices[0].get("SeriesInstanceUID") or "")
        return Truth(self.geometry, self.hu, self.positions, **{"scan": uid} | self.truth | changes)

    def each(self, change: Callable[[int, Dataset], Any]) -> "Scan":
        """Change every slice."""
        for k, data in enumerate(self.slices):
            change(k, data)
        return self

    def put(self, **tags: Any) -> "Scan":
        """Set tags in every slice; None removes."""
        return self.put_at(range(len(self.slices)), **tags)

    def put_at(self, which: Iterable[int], **tags: Any) -> "Scan":
        """Set tags in some slices; None removes."""
        for k in which:
            put(self.slices[k], **tags)
        return self


def put(data: Dataset, **tags: Any) -> Dataset:
    """Set tags of a data set; None removes."""
    for name, value in tags.items():
        if value is None:
            if name in data:
                delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def put_raw(data: Dataset, name: str, text: str) -> Dataset:
    """Write text into a tag as it is, whether or not it is a value that the tag can have."""
    tag = pydicom.datadict.tag_for_keyword(name)
    assert tag is not None
    vr = pydicom.datadict.dictionary_VR(tag)
    raw = text.encode() + b" " * (len(text) % 2)
    data[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(raw), raw, 0, False, True)
    return data


def scan(
    place: Place,
    *,
    geometry: Geometry | None = None,
    hu: Hu | None = None,
    positions: NDArray[np.float64] | None = None,
    slope: float = SIXTEENTH,
    intercept: float = -1024.0,
    signed: bool = True,
    bits: int = 16,
    series: object = 1,
    first: int = 1,
    fill: Callable[[Geometry], NDArray[np.bool_]] | None = None,
    fill_stored: int = 0,
    decimals: int = 6,
) -> Scan:
    """A good series.

    Args:
        geometry: of the place's world unless given; with whole HU at slope 1.
        hu: HU at a place; the world's unless given.
        positions: of the slices' first voxels, where they are not even; HU are those at these places.
        slope, intercept, signed, bits: how HU are stored.
        series: which series of the member.
        first: InstanceNumber of the first slice.
        fill: voxels that hold `fill_stored` as it is.
        decimals: of the positions as they are written.
    """
    world = place.world
    if geometry is None:
        geometry = world.whole if slope == 1 else world.geometry
    hu = hu or world.hu
    matrix = geometry.matrix
    even = geometry.positions if positions is None else positions
    filled = fill(geometry) if fill else None
    j, i = np.meshgrid(*(np.arange(n) for n in geometry.shape[1:]), indexing="ij")
    in_plane = i[..., None] * matrix[:3, 0] + j[..., None] * matrix[:3, 1]
    slices = []
    for k, corner in enumerate(even):
        stored = np.rint((hu(in_plane + corner) - intercept) / slope).astype(np.int64)
        if filled is not None:
            stored[filled[k]] = fill_stored
        data = _slice(place, geometry, series, k, signed=signed, bits=bits)
        data.InstanceNumber = first + k
        data.ImagePositionPatient = [round(float(v), decimals) for v in corner]
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slope, intercept, "HU"
        data.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        slices.append(data)
    return Scan(slices, geometry, hu, positions, {} if filled is None else {"fill": filled})


def _slice(place: Place, geometry: Geometry, series: object, k: int, *, signed: bool, bits: int) -> Dataset:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, place.uid("image", series, k)
    data.StudyInstanceUID, data.SeriesInstanceUID = place.uid("study"), place.uid("series", series)
    data.FrameOfReferenceUID = place.uid("frame")
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientID, data.PatientName, data.PatientSex = place.patient_id, "Doe^Confidentia", "F"
    data.StudyDate, data.BodyPartExamined, data.PatientPosition = "20200101", "CHEST", "HFS"
    data.Manufacturer, data.ConvolutionKernel, data.KVP = "ACME", "B40f", 120
    data.SliceThickness, data.SeriesNumber, data.AcquisitionNumber = geometry.spacing_mm[2], 2, 1
    data.Rows, data.Columns = geometry.shape[1:]
    data.ImageOrientationPatient = [float(v) for v in (*geometry.row, *geometry.column)]
    data.PixelSpacing = [geometry.spacing_mm[1], geometry.spacing_mm[0]]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelRepresentation = int(signed)
    return data


def save(
    place: Place,
    slices: Iterable[Dataset],
    *,
    folder: str = "",
    syntax: UID = ExplicitVRLittleEndian,
    start: int = 0,
    name: str = "",
) -> list[Path]:
    """Write data sets into the member's folder, named and ordered as its seed does."""
    slices = list(slices)
    numbers = np.arange(len(slices)) + start
    if place.world.shuffled:
        numbers = place.world.rng(place.name).permutation(numbers)
    target = place.folder / folder
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, data in zip(numbers, slices, strict=True):
        paths.append(target / (name or place.world.file_name).format(int(number)))
        write(paths[-1], data, syntax)
    return paths


def write(path: Path, data: Dataset, syntax: UID = ExplicitVRLittleEndian) -> None:
    """Write one data set with preamble and file meta information; pixels are encoded as the syntax says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = data.get("SOPClassUID") or CTImageStorage
    meta.MediaStorageSOPInstanceUID = data.get("SOPInstanceUID") or "1.2.3"
    data.file_meta = meta
    if syntax.is_transfer_syntax and syntax.is_compressed and not syntax.is_deflated:
        if not data["PixelData"].is_undefined_length:
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        data = copy.deepcopy(data)  # the caller's stays as it is
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.save_as(path, enforce_file_format=True, **_encoding(syntax))


def write_bare(path: Path, data: Dataset, *, implicit: bool) -> None:
    """Write a data set alone, without preamble and file meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(data, "file_meta"):
        del data.file_meta
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


def _encoding(syntax: UID) -> dict[str, bool]:
    return {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
