"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped: recognised by content, placed by sform or qform, scaled to HU.

Source: NIfTI-1 and NIfTI-2 data format (nifti.nimh.nih.gov); numbers of sections below are those of nifti1.h.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import Float3
from storage.sources.attributes import SYNTHETIC
from storage.sources.single_file import (
    READ_ERRORS,
    HeaderError,
    StoredScan,
    check_claim,
    check_shape,
    check_steps,
    decompressed,
    header_stream,
    named_errors,
    path_scan_id,
    read_planes,
    source_volume,
    stream_size,
)
from storage.sources.single_file_preview import bounded_preview, middle_plane, upright
from storage.sources.source import FileFacts, Format, ScanRequest, SourceVolume, check_synthetic, refuse, short

PLACE_TOLERANCE = 0.1  # voxels that sform and qform may place a corner apart
# How the description in a header begins where no person was scanned; `storage.exports.nifti` writes it.
SYNTHETIC_DESCRIPTION = "synthetic: "
_START = 540  # bytes of the larger header
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metre, millimetre, micrometre
_GZIP = b"\x1f\x8b"
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_header(stream: BinaryIO, path: Path) -> FileFacts | None:
    """Facts of a NIfTI file, see `Format.read_header`.

    Each file is one scan. Images in two files (.hdr and .img), NIfTI or Analyze, are recognised by their header and not read.
    """
    start = _inflated_start(stream.read(4096))
    if _is_pair(start):
        return FileFacts("nifti", reason="image_pair")
    return None if _header_class(start) is None else FileFacts("nifti", path_scan_id("nifti", path))


@dataclass(frozen=True)
class NiftiValues:
    """Values of a file that need not be HU, such as labels.

    Attributes:
        values: scaled as the header says, shape (k, j, i), integers where they are stored so and not scaled, else float32.
        spacing_mm, origin_mm, direction: as in `SourceVolume`.
    """

    values: NDArray[Any]
    spacing_mm: Float3
    origin_mm: Float3
    direction: NDArray[np.float64]


def load_nifti(request: ScanRequest) -> Iterator[SourceVolume]:
    """Read, check and scale one file, see `Format.load`."""
    with _stored(request) as (header, stored):
        synthetic = bytes(header["descrip"].item()).startswith(SYNTHETIC_DESCRIPTION.encode())
        if synthetic:
            check_synthetic(
                request.limits,
                request.where,
                f"the description in its header begins with “{SYNTHETIC_DESCRIPTION.strip()}”",
            )
        found = source_volume(request, stored)
        volume = replace(found, attributes={**found.attributes, SYNTHETIC: True}) if synthetic else found
    yield volume


def read_nifti_values(path: Path) -> NiftiValues | None:
    """Values of a file, whatever they mean; None where it is not NIfTI.

    Raises: UnusableSeriesError: it cannot be read, or says nothing of where its voxels are.
    """
    with path.open("rb") as stream:
        facts = read_header(stream, path)
    if facts is None:
        return None
    request = ScanRequest(path.parent, (path.name,), facts.scan)
    if facts.reason:
        refuse(facts.reason, request.where, facts.detail)
    with _stored(request) as (_, stored):
        spacing = check_steps(stored.steps_mm, stored.origin_mm, request.where)
        values = np.stack(list(stored.planes))
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        values = (values * stored.slope + stored.intercept).astype(np.float32)
    x, y, z = (float(each) for each in stored.origin_mm)
    return NiftiValues(values, (spacing[0], spacing[1], spacing[2]), (x, y, z), stored.steps_mm / spacing + 0.0)


@contextmanager
def _stored(request: ScanRequest) -> Iterator[tuple[Nifti1Header, StoredScan]]:
    """Header and voxels of a file, which is open inside the block."""
    where = request.where
    with (
        named_errors(where, (*READ_ERRORS, HeaderDataError)),
        header_stream(request, lambda start: _header_class(_inflated_start(start)) is not None) as (_, file),
    ):
        num_bytes = stream_size(file)
        zipped = file.read(2) == _GZIP
        file.seek(0)
        with decompressed(file, "gzip" if zipped else "raw") as stream:
            header = _header(stream)
            dtype = _real_type(header, where)
            shape = check_shape(tuple(int(n) for n in header.get_data_shape()), where)
            offset = int(header.get_data_offset())
            check_claim(shape, dtype, offset, num_bytes, zipped, where)
            unit_mm, notes = _unit(header)
            affine = _LPS_RAS @ _affine(header, shape[::-1], where) * unit_mm
            slope, intercept = _scaling(header, where)
            stream.seek(offset)
            planes = read_planes(stream, dtype, shape)
            yield header, StoredScan(planes, shape, dtype, affine[:3, :3], affine[:3, 3], slope, intercept, notes)


def _preview(request: ScanRequest) -> NDArray[np.float32]:
    """The middle plane of the first volume, see `Format.preview`. Raises: what `bounded_preview` takes."""
    with header_stream(request, lambda start: _header_class(_inflated_start(start)) is not None) as (_, file):
        zipped = file.read(2) == _GZIP
        file.seek(0)
        with decompressed(file, "gzip" if zipped else "raw") as stream:
            header = _header(stream)
            dtype, sizes = _real_type(header, request.where), header.get_data_shape()
            before = int(header.get_data_offset()) - stream.tell()
            image = middle_plane(stream, dtype, sizes, before=before, compressed=zipped)
    try:
        slope, intercept = _scaling(header, request.where)
    except UnusableSeriesError:
        slope, intercept = 1.0, 0.0
    image = image * np.float32(slope) + np.float32(intercept)
    return upright(image, (_LPS_RAS @ header.get_best_affine())[:3, :2])


def _inflated_start(start: bytes) -> bytes:
    """The first bytes of a file, or of what it is the gzip of; b"" where that is damaged."""
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


def _is_pair(start: bytes) -> bool:
    """Whether a file is the header of an image in two files: NIfTI by its magic, Analyze 7.5 by its fixed values."""
    if len(start) < 348 or 348 not in {int.from_bytes(start[:4], order) for order in ("little", "big")}:
        return False
    extents = {int.from_bytes(start[32:36], order) for order in ("little", "big")}
    return start[344:348] == b"ni1\0" or (start[344:347] != b"n+1" and 16384 in extents and start[38:39] == b"r")


def _header(stream: BinaryIO) -> Nifti1Header:
    kind = _header_class(stream.read(_START))
    if kind is None:
        raise HeaderError("it is not of this format any more")
    stream.seek(0)
    return kind.from_fileobj(stream, check=False)


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
    # NIFTI_UNITS_UNKNOWN (0) is what nibabel writes.
    return 1.0, (f"its unit of length has the unknown code {code} and was taken as millimetres",) if code else ()


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
    check_steps(affine[:3, :3], affine[:3, 3], where)
    if sform is not None and qform is not None:
        corners = np.asarray(
            [[n - 1 if (c >> axis) & 1 else 0 for axis, n in enumerate(shape)] + [1] for c in range(8)]
        )
        apart = corners @ (np.linalg.inv(affine) @ qform - np.eye(4)).T
        if not np.abs(apart).max() <= PLACE_TOLERANCE:
            detail = f"sform and qform, whose codes are both set, lie up to {np.abs(apart).max():.3g} voxels apart"
            refuse("conflicting_geometry", where, detail)
    return affine


def _qform(header: Nifti1Header, where: str) -> NDArray[np.float64]:
    header = header.copy()
    if float(header["pixdim"][0]) not in (-1.0, 1.0):
        header["pixdim"][0] = 1.0  # nifti1.h, "METHOD 2": anything else counts as 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        refuse("missing_geometry", where, f"a valid qform ({short(error)})")


NIFTI = Format("nifti", read_header, load_nifti, preview=bounded_preview(_preview))
