"""What formats with one scan per file share: the scan's id, bounds on what a header may claim, planes -> HU with geometry."""

import bz2
import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import Float3, Int3
from storage.sources.field_of_view import mark_outside_field_of_view
from storage.sources.files import open_file
from storage.sources.plane_checks import check_each_plane
from storage.sources.plausible import FillCounts, fill_notes, recognise_fill
from storage.sources.source import ScanRequest, SourceVolume, pixel_digest, refuse, short, tilt_deg
from storage.verdicts import counted

MAX_VOXELS = 2**30  # of a file; a header can claim anything
MAX_EXPANSION = 50  # bytes of memory that one byte of a compressed file may take: CT does not compress by more than 20
FREE_BYTES = 256 << 20  # that any compressed file may take
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, MemoryError, OverflowError)
TEXT = np.dtype("S2")  # least bytes of a voxel as text: a digit and a space
_START = 4096  # bytes that are enough to recognise a header
_PIECE = 1 << 20
_ENDS_EARLY = "its compressed data end early"
_MAX_BEHIND = 16 << 20  # bytes behind compressed voxels
_HU_BYTES = 4  # of a voxel, as float32
_LONGEST_NUMBER = 64  # characters
_SKEWED = 0.1  # least determinant of the unit steps along i, j, k


class HeaderError(ValueError):
    """A header that is none; the message quotes nothing of it."""


@contextmanager
def named_errors(where: str, errors: tuple[type[Exception], ...] = READ_ERRORS) -> Iterator[None]:
    """Turn what goes wrong while a file is read into "unreadable_file" (its header) or "unreadable_pixels"."""
    try:
        yield
    except UnusableSeriesError:
        raise
    except HeaderError as error:
        refuse("unreadable_file", where, str(error))
    except EOFError as error:
        words = str(error)
        refuse("unreadable_pixels", where, _ENDS_EARLY if words.startswith("Compressed file ended") else words)
    except (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile):
        refuse("unreadable_pixels", where, "its compressed data are damaged")
    except errors as error:
        refuse("unreadable_pixels", where, short(error))


def whole_numbers(text: str, field: str, where: str) -> tuple[int, ...]:
    """The whole numbers of a field of a header. Raises: UnusableSeriesError: "bad_number"."""
    try:
        return tuple(int(word) for word in text.split())
    except ValueError:
        refuse("bad_number", where, f"something that is no whole number in its {field}")


def real_numbers(words: Sequence[str], field: str, where: str) -> list[float]:
    """Numbers of a field of a header. Raises: UnusableSeriesError: "bad_number"."""
    try:
        return [float(word) for word in words]
    except ValueError:
        refuse("bad_number", where, f"something that is no number in its {field}")


def path_scan_id(kind: str, path: Path) -> str:
    """Id of a scan that is one file: a hash of the absolute path, because file names may reveal who was scanned."""
    absolute = str(path.resolve()).encode("utf-8", "surrogateescape")
    return f"{kind}-{hashlib.sha256(absolute).hexdigest()[:16]}"


@dataclass(frozen=True)
class StoredScan:
    """A file's voxels and what its header says of them.

    Attributes:
        planes: values as stored, shape (j, i) each, in order of k; read when asked for.
        shape: (k, j, i).
        dtype: of the planes; integers or floats.
        steps_mm: 3 × 3, columns are the LPS steps of index i, j, k.
        origin_mm: LPS centre of voxel [0, 0, 0].
        slope, intercept: HU is slope × value + intercept.
        notes: sentences about what was assumed.
    """

    planes: Iterable[NDArray[Any]]
    shape: Int3
    dtype: np.dtype[Any]
    steps_mm: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0
    notes: tuple[str, ...] = ()


def source_volume(request: ScanRequest, stored: StoredScan) -> SourceVolume:
    """Check the geometry of a scan, read its planes, scale them to HU and recognise fill.

    Raises:
        UnusableSeriesError: "missing_geometry", "too_few_slices", and what `fill_notes` and `check_each_plane` raise.
        `READ_ERRORS`: while planes are read.
    """
    where, least = request.where, request.limits.min_slices
    spacing = check_steps(stored.steps_mm, stored.origin_mm, where)
    if min(stored.shape) < least:
        detail = f"{counted(min(stored.shape), 'slice')} along its shortest axis, at least {least} are needed (ingest.min_slices)"
        refuse("too_few_slices", where, detail)
    hu, notes = _hu(request, stored)
    direction = stored.steps_mm / spacing + 0.0
    return SourceVolume(
        hu=hu,
        spacing_mm=_float3(spacing),
        origin_mm=_float3(stored.origin_mm + 0.0),
        direction=direction,
        attributes={},
        pixel_digest=pixel_digest(hu),
        tilt_deg=tilt_deg(direction),
        notes=(*stored.notes, *notes),
    )


def _hu(request: ScanRequest, stored: StoredScan) -> tuple[NDArray[Any], tuple[str, ...]]:
    """HU (k, j, i): int16 where all values are whole, else float32; and notes."""
    slope, intercept = stored.slope, stored.intercept
    counts: list[FillCounts] = []
    whole = stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    as_it_is = slope == 1 and intercept == 0 and stored.dtype.newbyteorder("=") in (np.int16, np.int32, np.float32)
    hu = np.empty(stored.shape, dtype=np.int16 if whole else np.float32)
    for k, plane in enumerate(stored.planes):
        if as_it_is:
            exact = plane.astype(stored.dtype.newbyteorder("="), copy=False)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                exact = plane.astype(np.float64) * slope + intercept
        hu[k], found = recognise_fill(exact, request.limits)
        counts.append(found)
    notes = fill_notes(sum(counts, FillCounts()), request.limits, request.where)
    ends = check_each_plane(
        hu, counts, lambda k: (f"{request.where}, slice {k + 1}", None), lambda k: counts[k].num_tissue == 0
    )
    return hu, (*notes, *ends, *mark_outside_field_of_view(hu))


def check_steps(steps: NDArray[np.float64], origin: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Lengths of the columns of `steps`. Raises: UnusableSeriesError: "missing_geometry" where they span no space."""
    lengths: NDArray[np.float64] = np.linalg.norm(steps, axis=0)
    usable = np.isfinite(steps).all() and np.isfinite(origin).all() and lengths.min() > 0
    if not usable or abs(np.linalg.det(steps / lengths)) < _SKEWED:
        refuse("missing_geometry", where, "usable axes (finite, not zero, three independent directions)")
    return lengths


def check_shape(sizes: tuple[int, ...], where: str) -> Int3:
    """(k, j, i) of sizes that are given fastest first (i, j, k, …); trailing axes of one voxel are dropped.

    Raises: UnusableSeriesError: "multi_volume", "too_large".
    """
    text = " × ".join(str(n) for n in sizes)
    if len(sizes) < 3 or min(sizes) < 1 or any(n != 1 for n in sizes[3:]):
        refuse("multi_volume", where, text or "no")
    if np.prod(sizes[:3], dtype=np.float64) > MAX_VOXELS:
        refuse("too_large", where, f"{text} voxels, at most {MAX_VOXELS} are read")
    return sizes[2], sizes[1], sizes[0]


def check_claim(shape: Int3, dtype: np.dtype[Any], before: int, stored: int, compressed: bool, where: str) -> None:
    """Compare the bytes that a header claims with those that are there, before any memory is taken.

    Args:
        shape, dtype: of the voxels.
        before: bytes that must be read before them.
        stored: bytes of the file.
        compressed: whether `stored` bytes are compressed.

    Raises: UnusableSeriesError: "unreadable_pixels" where the file is too short, "too_costly" where it grows too much.
    """
    num_voxels = int(np.prod(shape, dtype=np.int64))
    claimed = before + num_voxels * dtype.itemsize
    if not compressed and claimed > stored:
        refuse("unreadable_pixels", where, f"{stored} bytes, its header needs {claimed}")
    in_memory = before + num_voxels * max(dtype.itemsize, _HU_BYTES)
    if compressed and in_memory > max(FREE_BYTES, MAX_EXPANSION * stored):
        detail = f"{stored} compressed bytes would take {in_memory}, at most {MAX_EXPANSION} times as many are taken"
        refuse("too_costly", where, detail)


def stream_size(stream: BinaryIO) -> int:
    """Bytes of a seekable stream, whose position stays."""
    here = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    return size


def skip_bytes(stream: BinaryIO, num_bytes: int) -> None:
    """Read bytes that are not needed. Raises: EOFError: there are fewer; what `stream.read` raises."""
    while num_bytes > 0:
        piece = stream.read(min(num_bytes, _PIECE))
        if not piece:
            raise EOFError("the data end before they begin")
        num_bytes -= len(piece)


def read_planes(stream: BinaryIO, dtype: np.dtype[Any], shape: Int3) -> Iterator[NDArray[Any]]:
    """The planes (j, i) of voxels that lie one after another. Raises: EOFError: there are fewer; what `stream.read` raises."""
    num_bytes = shape[1] * shape[2] * dtype.itemsize
    for k in range(shape[0]):
        data = bytearray()
        while len(data) < num_bytes:
            piece = stream.read(num_bytes - len(data))
            if not piece:
                raise EOFError(f"the data end in plane {k + 1} of {shape[0]}")
            data += piece
        yield np.frombuffer(data, dtype).reshape(shape[1], shape[2])
    stream.read(1)  # reaches a checksum where the voxels end the file


def read_text_planes(stream: BinaryIO, dtype: np.dtype[Any], shape: Int3) -> Iterator[NDArray[Any]]:
    """As `read_planes`, of numbers as text with white space between them. Raises: EOFError, ValueError."""
    count, numbers, rest = shape[1] * shape[2], np.empty(0, dtype), b""
    for k in range(shape[0]):
        while len(numbers) < count:
            piece = stream.read(_PIECE)
            words = (rest + piece).split()
            rest = words.pop() if words and piece and not piece[-1:].isspace() else b""
            if max(map(len, [*words, rest])) > _LONGEST_NUMBER:
                raise ValueError("the data are no numbers")
            if not words and not piece:
                raise EOFError(f"the data end in plane {k + 1} of {shape[0]}")
            numbers = np.concatenate([numbers, np.asarray(words, dtype="S").astype(dtype) if words else numbers[:0]])
        yield numbers[:count].reshape(shape[1], shape[2])
        numbers = numbers[count:]


@contextmanager
def decompressed(stream: BinaryIO, encoding: str) -> Iterator[BinaryIO]:
    """What a stream contains from here on: encoding "raw", "gzip", "zlib" or "bzip2"; decompressed as it is read.

    At the end of the block its check sum is verified: where it is wrong, that is raised in place of an `UnusableSeriesError`.
    """
    if encoding == "raw":
        yield stream
        return
    if encoding == "gzip":
        inner = cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    elif encoding == "bzip2":
        inner = cast("BinaryIO", bz2.BZ2File(stream))
    else:
        inner = io.BufferedReader(_Inflated(stream), _PIECE)
    with inner:
        try:
            yield inner
        except UnusableSeriesError:  # damage explains values that no CT has
            _ends(inner)
            raise
        if not _ends(inner):
            raise HeaderError("its compressed data are longer than its header says")


def _ends(stream: BinaryIO) -> bool:
    """Read to the check sum, behind whatever is left, as damaged data can be longer; False where that is too much."""
    num_bytes = 0
    while piece := stream.read(_PIECE):
        num_bytes += len(piece)
        if num_bytes > _MAX_BEHIND:
            return False
    return True


class _Inflated(io.RawIOBase):
    """A zlib stream as a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decoder.eof:
            data = self._decoder.unconsumed_tail or self._stream.read(_PIECE)
            out = self._decoder.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)
            if not data:
                raise EOFError(_ENDS_EARLY)
        return 0


@contextmanager
def header_stream(request: ScanRequest, is_header: Callable[[bytes], bool]) -> Iterator[tuple[str, BinaryIO]]:
    """The file of a scan that has the header, among those that contain its voxels: (relative path, stream at its start).

    Raises: HeaderError: none has; OSError.
    """
    for name in request.files:
        with open_file(request.source, name) as stream:
            if is_header(stream.read(_START)):
                stream.seek(0)
                yield name, stream
                return
    raise HeaderError("it is not of this format any more")


@contextmanager
def voxel_file(request: ScanRequest, header: str, named: str | None, stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream that has a scan's voxels: the header's own, or that of the file which the header names, beside or below it.

    Args:
        request: the scan.
        header: relative path of the header.
        named: what it names; None where it has the voxels itself.
        stream: of the header, behind it.
    Raises: UnusableSeriesError: "detached_data" where the voxels lie elsewhere, in several files, or cannot be opened.
    """
    if named is None:
        yield stream
        return
    if named.upper().startswith("LIST") or "%" in named:
        refuse("detached_data", request.where, "its voxels are in several files")
    parts = PurePosixPath(named).parts
    if not parts or named.startswith("/") or ".." in parts or "\\" in named or "\0" in named:
        refuse("detached_data", request.where, "its header names a place that is not beside or below it")
    with ExitStack() as opened:
        try:
            found = opened.enter_context(open_file(request.source, str(PurePosixPath(header).parent / named)))
        except OSError as error:
            refuse("detached_data", request.where, error.strerror or "it cannot be opened")
        yield found


def check_length(stream: BinaryIO, num_bytes: int, where: str) -> None:
    """Refuse a file of voxels alone that has more than these: what is too much may lie before them. Raises: UnusableSeriesError."""
    more = stream_size(stream) - num_bytes
    if more > 0:
        refuse("unreadable_file", where, f"its file of voxels has {more} bytes more than its header says")


def header_beside(path: Path, endings: tuple[str, ...], names: Callable[[BinaryIO], str]) -> Path | None:
    """The header that keeps its voxels in a file: of the same name with another ending, and naming the file; None without.

    Args:
        path: of the file.
        endings: of headers (".mhd").
        names: stream of a header -> name of its file of voxels, "" where it has none.
    """
    stem = path.name.split(".raw")[0].split(".zraw")[0]
    for ending in endings:
        header = path.with_name(stem + ending)
        try:
            if header != path and header.is_file() and not header.is_symlink():
                with header.open("rb") as stream:
                    if names(stream) == path.name:
                        return header
        except (OSError, ValueError):
            continue
    return None


def _float3(values: NDArray[np.float64]) -> Float3:
    return float(values[0]), float(values[1]), float(values[2])
