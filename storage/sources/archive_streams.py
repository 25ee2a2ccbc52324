"""Decompression that is counted: no archive gives more bytes than its size can account for."""

import bz2
import errno
import gzip
import io
import lzma
from dataclasses import dataclass
from typing import BinaryIO, Self, cast

MAX_MEMBER = 4 << 30  # bytes of one file
_MAX_RATIO = 100  # uncompressed bytes per byte of the archive; CT has 2 to 4, mostly air perhaps 20
_ALWAYS = 256 << 20  # bytes that any archive may unpack to
_PIECE = 1 << 16


class TooCostlyError(OSError):
    """An archive, or a file in it, claims or has more than its size can account for."""

    def __init__(self, detail: str) -> None:
        super().__init__(errno.EFBIG, detail)


@dataclass
class Budget:
    """Uncompressed bytes that may still be read from an archive."""

    left: int

    @classmethod
    def of(cls, size: int) -> Self:
        """That of an archive of a size in bytes."""
        return cls(max(_ALWAYS, _MAX_RATIO * size))

    def claim(self, size: int) -> None:
        """Take bytes from the budget. Raises: TooCostlyError: they are too many."""
        if size > MAX_MEMBER:
            raise TooCostlyError(f"{size / 2**30:.1f} GiB unpacked, at most {MAX_MEMBER >> 30} are read")
        if size > self.left:
            raise TooCostlyError(f"the archive unpacks to more than {_MAX_RATIO} times its size")
        self.left -= size


class _Counted(io.RawIOBase):
    """A stream that takes what is read from a budget."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces = []
        while size:
            data = self._stream.read(_PIECE if size < 0 else min(size, _PIECE))
            if not data:
                break
            self._budget.claim(len(data))
            pieces.append(data)
            size -= len(data) if size > 0 else 0
        return b"".join(pieces)


def decompressed(stream: BinaryIO, kind: str, budget: Budget) -> BinaryIO:
    """What a stream of kind gz, bz2 or xz has in it, to be read once, in order.

    Reading raises EOFError where it ends early, OSError or LZMAError where it is damaged, TooCostlyError where it is too much.
    """
    if kind == "gz":
        plain = cast("BinaryIO", gzip.GzipFile(fileobj=stream, mode="rb"))
    elif kind == "bz2":
        plain = cast("BinaryIO", bz2.BZ2File(stream))
    else:
        plain = cast("BinaryIO", lzma.LZMAFile(stream))  # noqa: SIM115 - as the others
    return cast("BinaryIO", _Counted(plain, budget))
