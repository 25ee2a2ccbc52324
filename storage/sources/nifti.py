"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped: recognised by content, placed by sform or qform, scaled to HU.

Source: NIfTI-1 and NIfTI-2 data format (nifti.nimh.nih.gov); numbers of sections below are those of nifti1.h.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import AIR_HU, Float3
from storage.sources.source import (
    FileFacts,
    Format,
    Limits,
    ScanRequest,
    SourceVolume,
    pixel_digest,
    refuse,
    short,
    tilt_deg,
)

LOWEST_TISSUE_HU = -500  # a chest has air; an image without a voxel below this is not in HU
PLACE_TOLERANCE = 0.1  # voxels that sform and qform may place a corner apart
MAX_VOXELS = 2**31  # of a file; a header can claim anything
_START = 540  # bytes of the larger header
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, HeaderDataError, MemoryError, OverflowError)
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metre, millimetre, micrometre
_GZIP = b"\x1f\x8b"


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a NIfTI file, see `Format.read_header`.

    Each file is one scan; its id is a hash of the absolute path, because file names may reveal who was scanned.
    """
    if _header_class(_start(stream)) is None:
        return None
    absolute = str(path.resolve()).encode("utf-8", "surrogateescape")
    return FileFacts("nifti", f"nifti-{hashlib.sha256(absolute).hexdigest()[:16]}")


def load_nifti(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and scale one file, see `Format.load`."""
    where, limits = request.where, request.limits
    try:
        header, stored = _read(request.source / request.files[0], where)
    except UnusableSeriesError:
        raise
    except _READ_ERRORS as error:
        refuse("unreadable_pixels", where, short(error))
    if min(stored.shape) < limits.min_slices:
        detail = f"{min(stored.shape)} slice(s) along its shortest axis, at least {limits.min_slices} are needed"
        refuse("too_few_slices", where, detail)
    unit_mm, notes = _unit(header)
    affine = _affine(header, stored.shape, where)
    hu, replaced = _hu(stored, *_scaling(header, where), limits, where)
    linear = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3] * unit_mm  # RAS to LPS
    spacing = np.linalg.norm(linear, axis=0)
    origin = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3] * unit_mm + 0.0
    direction = linear / spacing + 0.0
    yield SourceVolume(
        hu=hu,
        spacing_mm=_float3(spacing),
        origin_mm=_float3(origin),
        direction=direction,
        attributes={},
        pixel_digest=pixel_digest(hu),
        tilt_deg=tilt_deg(direction),
        notes=(*notes, *replaced),
    )


def _start(stream: BinaryIO) -> bytes:
    """The first bytes of a file, or of what it is the gzip of; b"" where that is damaged."""
    start = stream.read(4096)
    if not start.startswith(_GZIP):
        return start[:_START]
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _START)
    except zlib.error:
        return b""


def _header_class(start: bytes) -> type[Nifti1Header] | None:
    """Which header the first bytes are, by size field and magic, in either byte order; None for neither."""
    if len(start) < 348:
        return None
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if 348 in size and start[344:348] == b"n+1\0":
        return Nifti1Header
    if 540 in size and start[4:12] == b"n+2\0\r\n\x1a\n" and len(start) >= _START:
        return Nifti2Header
    return None


@contextmanager
def _opened(path: Path) -> Any:
    with path.open("rb") as plain:
        zipped = plain.read(2) == _GZIP
        plain.seek(0)
        if not zipped:
            yield plain
            return
        with gzip.GzipFile(fileobj=plain) as stream:
            yield stream


def _read(path: Path, where: str) -> tuple[Nifti1Header, NDArray[Any]]:
    """Header, and stored values with shape (i, j, k)."""
    with _opened(path) as stream:
        kind = _header_class(stream.read(_START))
        if kind is None:
            raise ValueError("it is no NIfTI any more")
        stream.seek(0)
        header = kind.from_fileobj(stream, check=False)
        dtype = _real_type(header, where)
        shape = tuple(int(n) for n in header.get_data_shape())
        if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
            refuse("multi_volume", where, " × ".join(str(n) for n in shape) or "no axes")
        if np.prod(shape[:3], dtype=np.float64) > MAX_VOXELS:
            refuse("too_large", where, f"{' × '.join(str(n) for n in shape[:3])} voxels")
        stored = array_from_file(shape[:3], dtype, stream, int(header.get_data_offset()), mmap=False)
        if stored.size and isinstance(stream, gzip.GzipFile):
            stream.read(1)  # reaches the checksum where the values end the file
        return header, stored


def _real_type(header: Nifti1Header, where: str) -> np.dtype[Any]:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        refuse("unsupported_pixels", where, f"data type {int(header['datatype'])}")
    if dtype.kind not in "iuf" or dtype.names:
        refuse(
            "unsupported_pixels",
            where,
            "complex numbers" if dtype.kind == "c" else f"data type {int(header['datatype'])}",
        )
    return dtype


def _unit(header: Nifti1Header) -> tuple[float, tuple[str, ...]]:
    """(millimetres in the unit of length, notes)."""
    code = int(header["xyzt_units"]) & 7
    if code in _UNIT_MM:
        return _UNIT_MM[code], ()
    return 1.0, ("its unit of length is not given and was taken as millimetres",)


def _scaling(header: Nifti1Header, where: str) -> tuple[float, float]:
    """(slope, intercept); without a slope values are used as they are stored (nifti1.h, "DATA SCALING")."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        refuse(
            "missing_rescale", where, f"scl_slope {float(header['scl_slope'])}, scl_inter {float(header['scl_inter'])}"
        )
    return (1.0, 0.0) if slope is None else (slope, intercept)


def _affine(header: Nifti1Header, shape: tuple[int, ...], where: str) -> NDArray[np.float64]:
    """Index (i, j, k) -> RAS in the file's unit, from sform, or from qform where that is all there is."""
    sform, _ = header.get_sform(coded=True)
    qform = _qform(header, where) if int(header["qform_code"]) > 0 else None
    affine = qform if sform is None else sform
    if affine is None:
        refuse("missing_geometry", where, "a coded sform and a coded qform")
    affine = np.asarray(affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 0.1:
        refuse("missing_geometry", where, "a usable affine (finite, three independent axes)")
    if sform is not None and qform is not None:
        corners = np.asarray(
            [[n - 1 if (c >> axis) & 1 else 0 for axis, n in enumerate(shape)] + [1] for c in range(8)]
        )
        apart = corners @ (np.linalg.inv(affine) @ qform - np.eye(4)).T
        if not np.abs(apart).max() <= PLACE_TOLERANCE:
            refuse("conflicting_geometry", where, f"up to {np.abs(apart).max():.3g} voxels apart")
    return affine


def _qform(header: Nifti1Header, where: str) -> NDArray[np.float64]:
    header = header.copy()
    if float(header["pixdim"][0]) not in (-1.0, 1.0):
        header["pixdim"][0] = 1.0  # nifti1.h, "METHOD 2": anything else counts as 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        refuse("missing_geometry", where, f"a valid qform ({short(error)})")


def _hu(
    stored: NDArray[Any], slope: float, intercept: float, limits: Limits, where: str
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """HU (k, j, i), at least AIR_HU: int16 where all values are whole, else float32; and notes."""
    values = stored.transpose(2, 1, 0)
    whole = values.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    hu = np.empty(values.shape, dtype=np.int16 if whole else np.float32)
    invalid, lowest = 0, np.inf
    for k, plane in enumerate(values):
        exact = plane.astype(np.float64) * slope + intercept
        finite = np.isfinite(exact)
        invalid += int(exact.size - finite.sum())
        lowest = min(lowest, float(exact.min(where=finite, initial=np.inf)))
        exact[~finite] = AIR_HU
        hu[k] = np.clip(exact, AIR_HU, np.iinfo(np.int16).max)
    if invalid and limits.nan == "refuse":
        refuse("not_finite", where, f"{invalid} of {values.size}")
    if lowest >= LOWEST_TISSUE_HU:
        refuse("not_hu", where, f"the lowest is {lowest:g}" if np.isfinite(lowest) else "none is a number")
    notes = (f"{invalid} of {values.size} voxels are not finite and became {AIR_HU} HU",) if invalid else ()
    return hu, notes


def _float3(values: NDArray[np.float64]) -> Float3:
    return float(values[0]), float(values[1]), float(values[2])


NIFTI = Format("nifti", read_header, load_nifti)
