"""Where a tar begins and ends: strictly, as a copy that broke off must not pass for a shorter archive."""

import tarfile
from contextlib import suppress
from typing import BinaryIO, Self

# Bytes of zeros behind the last file: those of the largest usual blocks. A copy that failed may have more.
_MAX_END = 1 << 20
_PIECE = 1 << 20


class TarHeader(tarfile.TarInfo):
    """A header that has to be there and right, as `tarfile` takes one that is damaged or missing for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """The next header. Raises: EOFError: there is none; tarfile.ReadError: it is damaged."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            kind = type(error).__name__  # the kinds are not public
            if kind == "EOFHeaderError":  # a block of zeros, which is how a tar ends
                raise
            if kind in ("EmptyHeaderError", "TruncatedHeaderError"):
                raise EOFError from error
            raise tarfile.ReadError("a damaged header") from error


def begins_tar(start: bytes) -> bool:
    """Whether 512 bytes are the header of a tar's first file: by its magic, which old ones lack, or else by its check sum."""
    if start[257:262] == b"ustar":
        return True
    with suppress(tarfile.HeaderError):
        return bool(tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape").name)
    return False


def check_tar_end(stream: BinaryIO) -> None:
    """Read what is behind the last file of a tar, which reaches the check sum of a compressed one.

    Raises:
        EOFError: there are more zeros than an end has, as in a copy that broke off.
        tarfile.ReadError: there is more than zeros.
    """
    num_bytes = 0
    while data := stream.read(_PIECE):
        if data.count(0) != len(data):
            raise tarfile.ReadError("data behind its end")
        num_bytes += len(data)
    if num_bytes > _MAX_END:
        raise EOFError
