"""Arrays kept in memory that several processes share, or in a file on a local disk."""

import fcntl
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from storage.errors import UnwritableError

_FILLED, _TOUCHED = 1, 2
_PAGE = mmap.PAGESIZE


class SharedCache:
    """One place per array, filled once; the first arrays have one, until the capacity is used up.

    A place that is filled again and again (the least recently used dropped first) is of no use here: in a shuffled epoch longer
    than the cache each array is dropped before its turn comes.

    It is one file without a name, mapped by all: forked workers inherit it, other processes open `address`, and the system frees
    it when the last of them has ended, however it ended.

    Args:
        shapes: of each array.
        dtype: of all.
        capacity: bytes at most; of a shared cache, the capacity is that of its maker.
        directory: where the file is; None: in memory.
        address: of a cache of the same arrays made by another process, to share it.
    Raises: UnwritableError: the directory has no room, or cannot be written to.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtype: DTypeLike,
        capacity: int,
        directory: Path | None = None,
        address: str | None = None,
    ) -> None:
        self._shapes, self._dtype = shapes, np.dtype(dtype)
        self._offsets: dict[int, int] = {}
        end = -(-max(len(shapes), 1) // _PAGE) * _PAGE  # one byte of flags per array comes first
        if address:
            self._file = os.open(address, os.O_RDWR | os.O_CLOEXEC)
            limit = os.fstat(self._file).st_size
        else:
            limit = end + capacity
        for index, shape in enumerate(shapes):
            nbytes = -(-int(np.prod(shape)) * self._dtype.itemsize // _PAGE) * _PAGE
            if end + nbytes <= limit:
                self._offsets[index] = end
                end += nbytes
        if not address:
            self._file = _nameless(directory, end)
        weakref.finalize(self, os.close, self._file)
        self._map = mmap.mmap(self._file, end)

    @property
    def address(self) -> str:
        """Where other processes of this machine open it, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def __contains__(self, index: int) -> bool:
        return index in self._offsets

    @contextmanager
    def locked(self, index: int) -> Iterator[None]:
        """No other process works on this array's place; freed by the system when the process ends.

        A lock, not only a flag: what one process wrote before it unlocked is what the next one reads, on every processor.
        """
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, index)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, index)

    def touched(self, index: int) -> bool:
        """Whether `touch` was called for it, by any process."""
        return bool(self._map[index] & _TOUCHED)

    def touch(self, index: int) -> None:
        """Note that it was used."""
        self._map[index] |= _TOUCHED

    def get(self, index: int) -> NDArray[Any] | None:
        """The array, read-only; None while it is not filled."""
        if index not in self._offsets or not self._map[index] & _FILLED:
            return None
        array = self._at(index)
        array.flags.writeable = False
        return array

    def put(self, index: int, values: NDArray[Any]) -> None:
        """Fill the array's place, if it has one."""
        if index in self._offsets:
            self._at(index)[...] = values
            self._map[index] |= _FILLED

    def _at(self, index: int) -> NDArray[Any]:
        shape = self._shapes[index]
        return np.frombuffer(self._map, self._dtype, int(np.prod(shape)), self._offsets[index]).reshape(shape)


def _nameless(directory: Path | None, nbytes: int) -> int:
    """Descriptor of a file of that size without a name."""
    if directory is None and hasattr(os, "memfd_create"):
        file = os.memfd_create("prdit-cache", os.MFD_CLOEXEC)
        os.ftruncate(file, nbytes)
        return file
    try:
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as stream:
            # Taken at once: a disk that is full later would end the process (SIGBUS) where it writes to the mapping.
            os.posix_fallocate(stream.fileno(), 0, nbytes)
            return os.dup(stream.fileno())
    except OSError as error:
        raise UnwritableError(
            f"cache_dir {directory} cannot take a file of {nbytes / 2**20:.0f} MiB for training volumes: {error.strerror}. Choose "
            "a folder on a local disk with room, or a smaller cache_mb."
        ) from error
