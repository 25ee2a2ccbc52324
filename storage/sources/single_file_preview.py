"""One plane of a file with a whole scan, for a preview: the middle one, or an earlier one if that is far into compressed data."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, BinaryIO

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from storage.sources.single_file import skip_bytes
from storage.sources.source import Preview, ScanRequest

MAX_BYTES = 64 << 20  # decompressed on the way to the plane
MAX_PIXELS = 2048 * 2048
# What readers were seen to raise on broken files; of what is no preview nothing but the picture is lost.
_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, NotImplementedError, RuntimeError, SyntaxError,
    ArithmeticError, MemoryError, StopIteration, struct.error, zipfile.BadZipFile, zlib.error, HeaderDataError,
)  # fmt: skip


def bounded_preview(read: Callable[[ScanRequest], NDArray[np.float32]]) -> Preview:
    """A function that gives one plane of a scan or raises, as `Format.preview`."""

    @wraps(read)
    def preview(request: ScanRequest) -> NDArray[np.float32] | None:
        try:
            return read(request)
        except _ERRORS:
            return None

    return preview


def middle_plane(
    stream: BinaryIO, dtype: np.dtype[Any], sizes: Sequence[int], *, before: int, compressed: bool
) -> NDArray[np.float32]:
    """A plane of voxels that lie one after another; shape (sizes[1], sizes[0]).

    Args:
        stream: of the file, or of what it decompresses to.
        dtype: of the voxels.
        sizes: voxels along the fastest, the second and the slowest axis; further ones are not looked at.
        before: bytes between the stream's position and the first voxel.
        compressed: whether `stream` decompresses: then no more than `MAX_BYTES` are read of it.
    Raises: ValueError: a plane is larger than `MAX_PIXELS`, or begins too late; EOFError; what `stream` raises.
    """
    columns, rows, planes = (int(size) for size in sizes[:3])
    num_bytes = columns * rows * dtype.itemsize
    if min(columns, rows, planes) < 1 or columns * rows > MAX_PIXELS or before < 0:
        raise ValueError("no plane of a usual size")
    number = planes // 2
    if compressed:
        number = min(number, (MAX_BYTES - before) // num_bytes - 1)
        if number < 0:
            raise ValueError("the first plane begins too late")
        skip_bytes(stream, before + number * num_bytes)
    else:
        stream.seek(before + number * num_bytes, 1)
    data = bytearray()
    while piece := stream.read(num_bytes - len(data)):
        data += piece
    with np.errstate(over="ignore"):
        return np.frombuffer(data, dtype).reshape(rows, columns).astype(np.float32)


def upright(image: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """A plane as radiologists look at it: the patient's right on the left, front or head on top; as it is where steps are unusable.

    Args:
        image: rows and columns.
        steps: 3 × 2, the LPS steps from one column to the next, and from one row to the next.
    """
    across, down = (int(axis) for axis in np.abs(steps).argmax(axis=0))
    if across == down or not np.isfinite(steps).all():
        return image
    if across > down:
        image, steps, across, down = image.T, steps[:, ::-1], down, across
    if steps[across, 0] < 0:
        image = image[:, ::-1]
    return image[::-1] if (steps[down, 1] > 0) == (down == 2) else image
