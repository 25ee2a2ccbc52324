"""MetaImage in one file (.mha) or with its voxels in a file beside it (.mhd with .raw or .zraw): world is LPS.

Source: MetaIO documentation (itk.org/Wiki/ITK/MetaIO/Documentation). Row i of TransformMatrix is the direction of index axis i.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import Int3
from storage.sources.single_file import (
    TEXT,
    HeaderError,
    StoredScan,
    check_claim,
    check_length,
    check_shape,
    decompressed,
    header_beside,
    header_stream,
    named_errors,
    path_scan_id,
    read_planes,
    read_text_planes,
    real_numbers,
    source_volume,
    stream_size,
    voxel_file,
    whole_numbers,
)
from storage.sources.single_file_preview import bounded_preview, middle_plane, upright
from storage.sources.source import FileFacts, Format, ScanRequest, SourceVolume, refuse

_MAX_HEADER = 1 << 16  # bytes
_LAST = "elementdatafile"  # what ends a header
_FIRST = ("objecttype", "ndims", "comment", "objectsubtype", "transformtype", "name", "id")
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_SYNONYMS = {
    "position": "offset", "origin": "offset", "rotation": "transformmatrix", "orientation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
}  # fmt: skip
_TOWARDS = {
    "R": (0, 1),
    "L": (0, -1),
    "A": (1, 1),
    "P": (1, -1),
    "I": (2, 1),
    "S": (2, -1),
}  # "R": an axis from right to left
_UNIT_MM = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001}
_LEAST_COSINE = 0.1  # of a direction with the patient's axis that AnatomicalOrientation names for it


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a MetaImage header, or of the file that has the voxels of a header beside it; see `Format.read_header`."""
    if _is_header(stream.read(4096)):
        return FileFacts("metaimage", path_scan_id("metaimage", path))
    header = header_beside(path, (".mhd", ".mha"), _named_file)
    return None if header is None else FileFacts("metaimage", path_scan_id("metaimage", header))


def load_metaimage(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and place one file, see `Format.load`."""
    with named_errors(request.where), header_stream(request, _is_header) as (name, stream):
        volume = _volume(request, name, stream)
    yield volume


def _volume(request: ScanRequest, name: str, stream: BinaryIO) -> SourceVolume:
    where, fields = request.where, _fields(stream)
    dtype = _dtype(fields, where)
    sizes = whole_numbers(fields.get("dimsize", ""), "DimSize", where)
    if (len(sizes),) != whole_numbers(fields.get("ndims", ""), "NDims", where):
        raise HeaderError("its header has not one size per dimension")
    channels = whole_numbers(fields.get("elementnumberofchannels", "1"), "ElementNumberOfChannels", where)
    shape = check_shape(sizes if channels == (1,) else (*sizes, *channels), where)
    steps, origin = _place(fields, len(sizes), where)
    slope = _number(fields, "ElementToIntensityFunctionSlope", 1.0, where)
    intercept = _number(fields, "ElementToIntensityFunctionOffset", 0.0, where)
    named = None if fields[_LAST].upper() == "LOCAL" else fields[_LAST]
    zipped = _yes(fields, "compresseddata")
    with ExitStack() as opened:
        stream = opened.enter_context(voxel_file(request, name, named, stream))
        here, is_text = stream.tell(), _is_text(fields)
        left = stream_size(stream) - here
        skip = _bytes_before(stream, fields, shape, dtype, where)
        if named is not None and not (zipped or is_text):
            check_length(stream, skip + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, where)
        check_claim(shape, TEXT if is_text else dtype, skip, left + is_text, zipped, where)
        stream.seek(here + skip)
        if is_text:
            planes = read_text_planes(stream, dtype, shape)
        else:
            planes = read_planes(opened.enter_context(decompressed(stream, "zlib" if zipped else "raw")), dtype, shape)
        return source_volume(request, StoredScan(planes, shape, dtype, steps, origin, slope, intercept))


def _bytes_before(
    stream: BinaryIO, fields: dict[str, str], shape: Int3, dtype: np.dtype[np.generic], where: str
) -> int:
    """Bytes between the stream's position and the voxels."""
    skip = int(_number(fields, "HeaderSize", 0, where))
    if skip == -1 and not _yes(fields, "compresseddata") and not _is_text(fields):  # the voxels are the end of the file
        skip = max(0, stream_size(stream) - stream.tell() - int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if skip < 0:
        refuse("bad_number", where, "a negative HeaderSize")
    return skip


def _preview(request: ScanRequest) -> NDArray[np.float32]:
    """The middle plane, see `Format.preview`. Raises: what `bounded_preview` takes."""
    where = request.where
    with header_stream(request, _is_header) as (name, stream), ExitStack() as opened:
        fields = _fields(stream)
        if _is_text(fields) or fields.get("elementnumberofchannels", "1") != "1":
            raise ValueError("no preview of text, and of several values per voxel")
        dtype, sizes = _dtype(fields, where), whole_numbers(fields.get("dimsize", ""), "DimSize", where)
        shape = check_shape(sizes[:3], where)
        named = None if fields[_LAST].upper() == "LOCAL" else fields[_LAST]
        stream = opened.enter_context(voxel_file(request, name, named, stream))
        stream.seek(_bytes_before(stream, fields, shape, dtype, where), 1)
        zipped = _yes(fields, "compresseddata")
        stream = opened.enter_context(decompressed(stream, "zlib" if zipped else "raw"))
        image = middle_plane(stream, dtype, sizes, before=0, compressed=zipped)
        slope = _number(fields, "ElementToIntensityFunctionSlope", 1.0, where)
        image = image * np.float32(slope) + np.float32(_number(fields, "ElementToIntensityFunctionOffset", 0.0, where))
    try:
        return upright(image, _place(fields, len(sizes), where)[0][:, :2])
    except UnusableSeriesError:
        return image


def _is_text(fields: dict[str, str]) -> bool:
    return fields.get("binarydata", "true").lower() in {"false", "f", "0"}


def _is_header(start: bytes) -> bool:
    """Whether bytes begin with a field that MetaImage headers begin with, and contain the number of dimensions."""
    first, separator, _ = start.partition(b"=")
    if not separator or first.strip().lower().decode("latin-1") not in _FIRST:
        return False
    text = start.lower()
    return b"ndims" in text and (b"dimsize" in text or b"elementtype" in text)


def _named_file(stream: BinaryIO) -> str:
    """The file of voxels that a header names; "" where it is no header, or has them itself."""
    if not _is_header(stream.read(4096)):
        return ""
    stream.seek(0)
    return _fields(stream)[_LAST]


def _fields(stream: BinaryIO) -> dict[str, str]:
    """Fields of a header, names in small letters; the stream is behind them. Raises: HeaderError: it has no end."""
    fields: dict[str, str] = {}
    num_bytes = 0
    while num_bytes < _MAX_HEADER:
        line = stream.readline(_MAX_HEADER)
        num_bytes += len(line)
        key, separator, value = line.decode("utf-8", "surrogateescape").partition("=")
        key = _SYNONYMS.get(key.strip().lower(), key.strip().lower())
        if not line or not separator:
            if line.strip():
                raise HeaderError("its header has a line that is no field")
            if not line:
                break
            continue
        if key in fields and fields[key] != value.strip():
            raise HeaderError("its header has one field twice, with different values")
        fields[key] = value.strip()
        if key == _LAST:
            return fields
    raise HeaderError("its header has no end")


def _dtype(fields: dict[str, str], where: str) -> np.dtype[np.generic]:
    kind = _TYPES.get(fields.get("elementtype", "").upper())
    if kind is None:
        refuse("unsupported_pixels", where, "an ElementType that is no integer or float")
    return np.dtype(kind).newbyteorder(">" if _yes(fields, "binarydatabyteordermsb") else "<")


def _yes(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "").lower() in {"true", "t", "1", "yes"}


def _place(fields: dict[str, str], num_axes: int, where: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(LPS steps of index i, j and k as columns, LPS origin), in millimetres."""
    spacing = _numbers(fields, "ElementSpacing", num_axes, where)
    if spacing is None:
        spacing = _numbers(fields, "ElementSize", num_axes, where)
    if spacing is None:
        refuse("missing_geometry", where, "ElementSpacing")
    named = fields.get("anatomicalorientation", "").upper()[:3]
    letters = [_TOWARDS[letter] for letter in named] if len(named) == 3 and set(named) <= set(_TOWARDS) else []
    matrix = _numbers(fields, "TransformMatrix", num_axes**2, where)
    if matrix is None and not letters:
        refuse("missing_geometry", where, "TransformMatrix")
    directions = np.eye(3) if matrix is None else matrix.reshape(num_axes, num_axes)[:3, :3]
    for direction, (axis, sign) in zip(directions, letters, strict=False):
        if direction[axis] * sign < _LEAST_COSINE:
            entry = "TransformMatrix (absent: along the patient)" if matrix is None else "TransformMatrix"
            refuse("conflicting_geometry", where, f"{entry} and AnatomicalOrientation {named}")
    unit_mm = _UNIT_MM.get(fields.get("distanceunits", "").lower().strip("?"))
    if unit_mm is None:
        refuse("missing_geometry", where, "DistanceUnits that are lengths (mm)")
    offset = _numbers(fields, "Offset", num_axes, where)
    origin = np.zeros(3) if offset is None else offset[:3]
    return directions.T * spacing[:3] * unit_mm, origin * unit_mm


def _number(fields: dict[str, str], name: str, default: float, where: str) -> float:
    numbers = _numbers(fields, name, 1, where)
    return default if numbers is None or not np.isfinite(numbers[0]) else float(numbers[0])


def _numbers(fields: dict[str, str], name: str, count: int, where: str) -> NDArray[np.float64] | None:
    """The numbers of a field; None where it is absent. Raises: HeaderError: other than `count`."""
    text = fields.get(name.lower())
    if not text:
        return None
    numbers = np.asarray(real_numbers(text.split(), name, where))
    if len(numbers) != count:
        raise HeaderError(f"its {name} has {len(numbers)} numbers, {count} are needed")
    return numbers


METAIMAGE = Format("metaimage", read_header, load_metaimage, preview=bounded_preview(_preview))
