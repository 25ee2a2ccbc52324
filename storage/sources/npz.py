"""RAD-ChestCT `.npz`: one array `ct` (or `volume`) of HU, axes (z, y, x), without a place in the world.

The release (zenodo.org/records/6406114) has int16 HU clipped to [-1000, 1000], resampled to 0.8 mm on every axis. Its program
(github.com/rachellea/ct-volume-preprocessing) takes only supine scans with axes along the patient's, and its table of extents
(`Extrema`: sup_axis0min, inf_axis0max, ant_axis1min, pos_axis1max, rig_axis2min, lef_axis2max) says which way they run: axis 0
towards inferior, axis 1 towards posterior, axis 2 towards left.
"""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from storage.geometry import Int3
from storage.sources.single_file import (
    READ_ERRORS,
    StoredScan,
    check_claim,
    check_shape,
    header_stream,
    named_errors,
    path_scan_id,
    read_planes,
    source_volume,
    stream_size,
)
from storage.sources.single_file_preview import bounded_preview, middle_plane, upright
from storage.sources.source import FileFacts, Format, ScanRequest, SourceVolume, refuse

KEYS = ("ct", "volume")
SPACING_MM = 0.8  # of the release
TOWARDS = np.diag([1.0, 1.0, -1.0])  # LPS directions of index i, j and k
_LOCAL_HEADER = b"PK\x03\x04"
_ENDING = ".npy"
_MAX_HEADER = 10_000  # characters of an array's header, as numpy's own limit
_ERRORS = (*READ_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, SyntaxError, TypeError)


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a zip of arrays alone, see `Format.read_header`; without one of `KEYS` it is no CT."""
    start = stream.read(30 + 256)
    length = int.from_bytes(start[26:28], "little")
    if not start.startswith(_LOCAL_HEADER) or not start[30 : 30 + length].endswith(_ENDING.encode()):
        return None
    try:
        with zipfile.ZipFile(stream) as archive:
            names = set(archive.namelist())
    except _ERRORS as error:
        detail = "MemoryError" if isinstance(error, MemoryError) else "it is cut short or damaged"
        return FileFacts("npz", reason="unreadable_file", detail=detail)
    if not all(name.endswith(_ENDING) for name in names):
        return None
    if not names & {key + _ENDING for key in KEYS}:
        return FileFacts(reason="unknown_format")
    return FileFacts("npz", path_scan_id("npz", path))


def load_npz(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and place the array of one file, see `Format.load`."""
    with (
        named_errors(request.where, _ERRORS),
        header_stream(request, lambda start: start.startswith(_LOCAL_HEADER)) as (_, stream),
    ):
        volume = _volume(request, stream)
    yield volume


def _volume(request: ScanRequest, file: BinaryIO) -> SourceVolume:
    where, num_bytes = request.where, stream_size(file)
    spacing = np.asarray(request.spacing_mm or (SPACING_MM,) * 3)
    note = (
        f"it says nothing of its place: {' × '.join(f'{mm:g}' for mm in spacing)} mm and axes towards inferior, posterior and left "
        "were assumed, as in RAD-ChestCT"
    )
    with zipfile.ZipFile(file) as archive, ExitStack() as opened:
        member = _member(archive, where)
        stream = opened.enter_context(cast(BinaryIO, archive.open(member)))
        sizes, columns_first, dtype = _array_header(stream, where)
        shape = check_shape(sizes[::-1], where)
        claimed = stream.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        check_claim(shape, dtype, stream.tell(), num_bytes, True, where)
        if claimed != member.file_size:
            refuse("unreadable_pixels", where, f"an array of {member.file_size} bytes, its header needs {claimed}")
        planes = _transposed(stream, dtype, shape) if columns_first else read_planes(stream, dtype, shape)
        return source_volume(request, StoredScan(planes, shape, dtype, TOWARDS * spacing, np.zeros(3), notes=(note,)))


def _member(archive: zipfile.ZipFile, where: str) -> zipfile.ZipInfo:
    """The one array of a file."""
    members = archive.infolist()
    if len(members) != 1:
        num_names = len({member.filename for member in members})
        what = (
            f"{len(members)} arrays" if num_names == len(members) else f"one array {len(members) - num_names + 1} times"
        )
        refuse("several_arrays", where, what)
    if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refuse("unsupported_pixels", where, "a compression that numpy does not write")
    return members[0]


def _preview(request: ScanRequest) -> NDArray[np.float32]:
    """The middle plane across the slowest axis, see `Format.preview`. Raises: what `bounded_preview` takes, zipfile.BadZipFile."""
    with (
        header_stream(request, lambda start: start.startswith(_LOCAL_HEADER)) as (_, file),
        zipfile.ZipFile(file) as archive,
    ):
        member = next(one for one in archive.infolist() if one.filename in {key + _ENDING for key in KEYS})
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("another compression than numpy writes")
        with archive.open(member) as stream:
            sizes, columns_first, dtype = _array_header(cast(BinaryIO, stream), request.where)
            fastest_first, steps = (sizes, TOWARDS[:, ::-1]) if columns_first else (sizes[::-1], TOWARDS)
            image = middle_plane(cast(BinaryIO, stream), dtype, fastest_first, before=0, compressed=True)
    return upright(image, steps[:, :2])


def _array_header(stream: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(sizes, whether the first axis is the fastest, type of values) of an array, whose values follow. Raises: ValueError."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        refuse("unsupported_pixels", where, f"npy version {version[0]}.{version[1]}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    sizes, columns_first, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        refuse("unsupported_pixels", where, "Python objects (pickle), which are never loaded")
    if dtype.kind not in "iuf" or dtype.names or dtype.subdtype:
        refuse("unsupported_pixels", where, "values that are no integers or floats")
    return sizes, columns_first, dtype


def _transposed(stream: BinaryIO, dtype: np.dtype[Any], shape: Int3) -> NDArray[Any]:
    """Values whose first axis is the fastest, as (k, j, i); RAD-ChestCT's own files are like that."""
    stored = np.empty(shape[::-1], dtype)
    for i, plane in enumerate(read_planes(stream, dtype, (shape[2], shape[1], shape[0]))):
        stored[i] = plane
    return stored.transpose(2, 1, 0)


NPZ = Format("npz", read_header, load_npz, preview=bounded_preview(_preview))
