"""NRRD, attached (.nrrd) or with its voxels in a file beside it (.nhdr): recognised by content, placed by its anatomical space.

Source: "Definition of NRRD File Format" (teem.sourceforge.net/nrrd/format.html).
"""

import re
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
    skip_bytes,
    source_volume,
    stream_size,
    voxel_file,
    whole_numbers,
)
from storage.sources.single_file_preview import bounded_preview, middle_plane, upright
from storage.sources.source import FileFacts, Format, ScanRequest, SourceVolume, refuse

_MAGIC = b"NRRD000"
_MAX_HEADER = 1 << 20  # bytes
_TYPES = {
    "int8": "i1", "signed char": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "uint8_t": "u1",
    "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2", "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4",
    "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4",
    "longlong": "i8", "long long": "i8", "long long int": "i8", "signed long long": "i8", "signed long long int": "i8",
    "int64": "i8", "int64_t": "i8", "ulonglong": "u8", "unsigned long long": "u8", "unsigned long long int": "u8",
    "uint64": "u8", "uint64_t": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "txt": "text", "text": "text", "ascii": "text",
}  # fmt: skip
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_UNIT_MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}
_SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a NRRD header, or of the file that has the voxels of a header beside it; see `Format.read_header`."""
    if stream.read(len(_MAGIC)) == _MAGIC:
        return FileFacts("nrrd", path_scan_id("nrrd", path))
    header = header_beside(path, (".nhdr",), _named_file)
    return None if header is None else FileFacts("nrrd", path_scan_id("nrrd", header))


def load_nrrd(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and place one file, see `Format.load`."""
    with (
        named_errors(request.where),
        header_stream(request, lambda start: start.startswith(_MAGIC)) as (name, stream),
    ):
        volume = _volume(request, name, stream)
    yield volume


def _volume(request: ScanRequest, name: str, stream: BinaryIO) -> SourceVolume:
    where, fields = request.where, _fields(stream)
    dtype, encoding = _dtype(fields, where), _encoding(fields, where)
    all_sizes = whole_numbers(fields.get("sizes", ""), "sizes", where)
    if (len(all_sizes),) != whole_numbers(fields.get("dimension", ""), "dimension", where):
        raise HeaderError("its header has not one size per dimension")
    spatial = _spatial_axes(fields, len(all_sizes), where)
    shape = _shape(all_sizes, spatial, where)
    steps, origin, notes = _place(fields, where)
    with ExitStack() as opened:
        stream = opened.enter_context(voxel_file(request, name, fields.get("data file") or None, stream))
        skip = _bytes_before(stream, fields, shape, dtype, where)
        here = stream.tell()
        left = stream_size(stream) - here
        if encoding == "text":
            check_claim(shape, TEXT, skip, left + 1, False, where)
            stream.seek(here + skip)
            planes = read_text_planes(stream, dtype, shape)
        else:
            if "data file" in fields and encoding == "raw":
                check_length(stream, here + skip + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, where)
            check_claim(shape, dtype, skip, left, encoding != "raw", where)
            stream = opened.enter_context(decompressed(stream, encoding))
            skip_bytes(stream, skip)
            planes = read_planes(stream, dtype, shape)
        return source_volume(request, StoredScan(planes, shape, dtype, steps, origin, notes=notes))


def _bytes_before(
    stream: BinaryIO, fields: dict[str, str], shape: Int3, dtype: np.dtype[np.generic], where: str
) -> int:
    """Skip the lines before the voxels; the bytes that are still to be skipped, of what may be compressed."""
    for _ in range(_skipped(fields, "line skip", where)):
        if not stream.readline(_MAX_HEADER):
            raise EOFError("the data end before they begin")
    skip = _skipped(fields, "byte skip", where)
    if skip == -1 and _encoding(fields, where) == "raw":  # the voxels are the end of the file
        voxel_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        skip = max(0, stream_size(stream) - stream.tell() - voxel_bytes)
    if skip < 0:
        refuse("bad_number", where, "a negative byte skip")
    return skip


def _preview(request: ScanRequest) -> NDArray[np.float32]:
    """The middle plane, see `Format.preview`. Raises: what `bounded_preview` takes."""
    where, is_header = request.where, lambda start: start.startswith(_MAGIC)
    with header_stream(request, is_header) as (name, stream), ExitStack() as opened:
        fields = _fields(stream)
        dtype, encoding = _dtype(fields, where), _encoding(fields, where)
        if encoding == "text":
            raise ValueError("no preview of text")
        sizes = whole_numbers(fields.get("sizes", ""), "sizes", where)
        shape = _shape(sizes, _spatial_axes(fields, len(sizes), where), where)
        stream = opened.enter_context(voxel_file(request, name, fields.get("data file") or None, stream))
        before = _bytes_before(stream, fields, shape, dtype, where)
        stream = opened.enter_context(decompressed(stream, encoding))
        image = middle_plane(stream, dtype, shape[::-1], before=before, compressed=encoding != "raw")
    try:
        return upright(image, _place(fields, where)[0][:, :2])
    except UnusableSeriesError:
        return image


def _named_file(stream: BinaryIO) -> str:
    """The file of voxels that a header names; "" where it is no header, or has them itself."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        return ""
    stream.seek(0)
    return _fields(stream).get("data file", "")


def _fields(stream: BinaryIO) -> dict[str, str]:
    """Fields of a header in small letters; the stream is behind the empty line that ends it.

    Raises: HeaderError: it has no end, or one field twice.
    """
    fields: dict[str, str] = {}
    num_bytes = 0
    stream.readline(_MAX_HEADER)  # magic and version
    while num_bytes < _MAX_HEADER:
        line = stream.readline(_MAX_HEADER)
        num_bytes += len(line)
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not line and "data file" not in fields:
            break
        if not text:
            return fields
        if text.startswith("#") or ":=" in text.split(": ")[0]:  # comment; key and value
            continue
        key, separator, value = text.partition(":")
        key = _SYNONYMS.get(key.strip().lower(), key.strip().lower())
        if not separator or key in fields:
            raise HeaderError("its header has a line that is no field, or one field twice")
        fields[key] = value.strip()
        if key == "data file" and value.strip().upper().startswith("LIST"):
            return fields
    raise HeaderError("its header has no end")


def _dtype(fields: dict[str, str], where: str) -> np.dtype[np.generic]:
    kind = _TYPES.get(" ".join(fields.get("type", "").lower().split()))
    if kind is None:
        refuse("unsupported_pixels", where, "a data type that is no integer or float")
    dtype = np.dtype(kind)
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and _ENCODINGS.get(fields.get("encoding", "").lower()) != "text":
        if endian not in {"little", "big"}:
            refuse("unsupported_pixels", where, "no byte order (endian)")
        dtype = dtype.newbyteorder("<" if endian == "little" else ">")
    return dtype


def _encoding(fields: dict[str, str], where: str) -> str:
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        refuse("unsupported_pixels", where, "an encoding that is none of raw, gzip, bzip2 and ascii")
    return encoding


def _spatial_axes(fields: dict[str, str], num_axes: int, where: str) -> list[int]:
    """Which axes lie in space: all that have a direction."""
    directions = _vectors(fields, "space directions", where)
    if directions and len(directions) != num_axes:
        raise HeaderError("its header has not one space direction per axis")
    return [axis for axis in range(num_axes) if not directions or directions[axis] is not None]


def _shape(sizes: tuple[int, ...], spatial: list[int], where: str) -> Int3:
    """(k, j, i) of the axes in space; any other axis has one voxel."""
    others = [size for axis, size in enumerate(sizes) if axis not in spatial]
    if len(spatial) != 3 or any(size != 1 for size in others):
        refuse("multi_volume", where, " × ".join(str(n) for n in sizes) or "no")
    return check_shape(tuple(sizes[axis] for axis in spatial), where)


def _place(fields: dict[str, str], where: str) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """(LPS steps of the axes in space as columns, LPS origin, notes), in millimetres."""
    space = fields.get("space", "").lower()
    if space not in _TO_LPS:
        refuse("missing_geometry", where, "an anatomical space (left-posterior-superior, say)")
    steps = [vector for vector in _vectors(fields, "space directions", where) if vector is not None]
    origins = _vectors(fields, "space origin", where)
    if not steps or any(len(vector) != 3 for vector in steps):
        refuse("missing_geometry", where, "space directions of three numbers each")
    notes = []
    if not origins:
        notes.append("its space origin is not given and was taken as 0")
    origin = origins[0] if origins else [0.0, 0.0, 0.0]
    if origin is None or len(origin) != 3:
        refuse("missing_geometry", where, "a space origin of three numbers")
    units = [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))]
    unit_mm = np.asarray([_UNIT_MM.get(unit, np.nan) for unit in units] or [1.0] * 3)  # ITK and 3D Slicer write none
    if len(unit_mm) != 3 or not np.isfinite(unit_mm).all():
        refuse("missing_geometry", where, "space units that are lengths (mm)")
    to_lps = np.asarray(_TO_LPS[space]) * unit_mm
    return to_lps[:, None] * np.asarray(steps).T, to_lps * np.asarray(origin), tuple(notes)


def _vectors(fields: dict[str, str], name: str, where: str) -> list[list[float] | None]:
    """Vectors of a field, "(1,0,0) none (0,1,0)"; None for "none". Raises: HeaderError."""
    found = re.findall(r"none|\(([^()]*)\)|(\S)", fields.get(name, ""))
    if any(other for _, other in found):
        raise HeaderError(f"its {name} are no vectors")
    return [real_numbers(inner.split(","), name, where) if inner else None for inner, _ in found]


def _skipped(fields: dict[str, str], name: str, where: str) -> int:
    return next(iter(whole_numbers(fields.get(name, ""), name, where)), 0)


NRRD = Format("nrrd", read_header, load_nrrd, preview=bounded_preview(_preview))
