"""A DICOM file -> its data set: with or without preamble and file meta information, deflated or not, whatever its header claims."""

import io
import logging
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from storage.sources.dicom_codecs import compressed_syntax
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault

# CT deflates by 2 to 10. What inflates by more than this and to more than the first bound is no CT, whatever it claims.
_INFLATE_FREE_BYTES = 16 << 20
_INFLATE_RATIO = 50
_CHUNK = 1 << 16
# One or two for each element and each item of a sequence: an enhanced image of 2000 frames takes 400,000.
_MAX_READS = 600_000

# Its warnings repeat values of tags, and values may be names.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file may be a DICOM file's.

    Without a preamble a file is tried where it begins with a group that every data set (0008, of either byte order) or its meta
    information (0002) begins with.
    """
    return start[128:132] == b"DICM" or (len(start) >= 8 and start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08"))


def read_data_set(stream: BinaryIO, *, pixels: bool = True, tags: Sequence[str | int] | None = None) -> Dataset:
    """The data set of a DICOM file.

    Where the transfer syntax is not written it is guessed from the data set, from its pixels too where they are read:
    `file_meta.TransferSyntaxUID` of what is returned is missing only where pixels are compressed in an unknown way, and never
    the deflated one.

    Args:
        stream: seekable, at any position; it can be closed afterwards.
        pixels: whether PixelData is read; else everything before it.
        tags: keywords or numbers of the top-level tags to keep; all when None.
    Raises:
        DicomFault: too_costly, where inflating it or its number of elements takes more than a CT can need; unreadable_file, where
            it ends inside a value.
        one of DECODE_ERRORS: it cannot be read.
    """
    wanted = None if tags is None else [Tag(tag) for tag in tags]
    bounded = _Bounded(stream)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            meta = _meta_information(bounded)
            deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
            if deflated:
                bounded = _Bounded(_inflated(stream))
            bounded.seek(0)
            data = pydicom.dcmread(bounded, stop_before_pixels=not pixels, force=True, specific_tags=wanted)
        except DECODE_ERRORS:
            bounded.check()  # pydicom turns what a stream raises inside a sequence into an error of its own
            raise
    if any(
        str(one.message).startswith("End of file reached before") for one in caught
    ):  # and everything read was dropped
        raise DicomFault("unreadable_file", "it ends inside a value")
    if deflated:
        data.file_meta = FileMetaDataset(meta)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    elif not getattr(data, "file_meta", None):
        data.file_meta = FileMetaDataset()
    if not data.file_meta.get("TransferSyntaxUID"):
        syntax = _guessed_syntax(data)
        if syntax:
            data.file_meta.TransferSyntaxUID = syntax
    return data


class _Bounded:
    """A stream that is read a limited number of times, because pydicom makes an object of every element and item."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._left = _MAX_READS

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises: DicomFault: too_costly."""
        self._left -= 1
        self.check()
        return self._read(size)

    def check(self) -> None:
        """Raises: DicomFault: too_costly, where it was read too often."""
        if self._left < 0:
            raise DicomFault("too_costly", f"its header has more than {_MAX_READS} elements and lengths")


def _meta_information(stream: Any) -> Dataset:
    """Group 0002; the stream is left behind it."""
    stream.seek(128)
    if stream.read(4) != b"DICM":
        stream.seek(0)
    start = stream.tell()
    group = stream.read(2)
    stream.seek(start)
    if group != b"\x02\x00":
        return Dataset()
    return read_dataset(stream, False, True, stop_when=_after_meta)


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _inflated(stream: BinaryIO) -> io.BytesIO:
    """The data set of a deflated file, in explicit little endian; its meta information is not deflated, and left out."""
    _meta_information(stream)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    out = io.BytesIO()
    taken = 0
    while not inflater.eof and (piece := stream.read(_CHUNK)):
        taken += len(piece)
        while piece and not inflater.eof:
            allowed = max(_INFLATE_FREE_BYTES, _INFLATE_RATIO * taken)
            out.write(inflater.decompress(piece, _CHUNK * 16))
            piece = inflater.unconsumed_tail
            if out.tell() > allowed:
                raise DicomFault(
                    "too_costly",
                    f"its data set of {taken >> 10} KiB inflates to more than {allowed >> 20} MiB, {_INFLATE_RATIO} times as much",
                )
    if not inflater.eof:
        raise DicomFault("unreadable_file", "its deflated data set ends early")
    out.seek(0)
    return out


def _guessed_syntax(data: Dataset) -> str:
    """Transfer syntax of a data set without meta information; "" where it has compressed pixels of an unknown kind."""
    implicit, little = data.original_encoding
    item: Any = data.get_item("PixelData") if "PixelData" in data else None
    if getattr(item, "length", 0) == 0xFFFFFFFF:
        return compressed_syntax(item.value or b"")
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
