"""Pixel data of a DICOM data set -> the values that are stored, for every transfer syntax with a decoder of a permissive licence.

Uncompressed, deflated, RLE, JPEG-LS, JPEG 2000 and HTJ2K are decoded by pydicom and its plug-ins; the JPEG processes by SimpleITK's
GDCM. One decoder per transfer syntax, so that every machine reads the same values. Nothing is allocated on the word of a header
or of a compressed image alone.
"""

import re
import struct
import tempfile
import warnings
import zlib
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_fragments, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_values import need_count, need_integer, tag_integer, tag_present, tag_text
from storage.sources.source import short
from storage.verdicts import counted

MAX_EDGE = 4096  # rows or columns of one image: CT has up to 2048
_MAX_PADDING_BYTES = 16  # behind uncompressed pixels; more says that the header is of other pixels
_FREE_BYTES = 256 << 20
_RATIO = 100  # lossless CT compresses by 2 to 4, lossy by up to 20

_NATIVE = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.113619.5.2",
}  # fmt: skip
_ENCAPSULATED_NATIVE = "1.2.840.10008.1.2.1.98"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_PLUGINS = {  # transfer syntax -> pydicom's name of the decoder
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pylibjpeg",
}
_GDCM = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70)}
_RLE = "1.2.840.10008.1.2.5"
# What keeps every bit that is allocated, be it stored or not.
_BIT_BY_BIT = {*_NATIVE, _ENCAPSULATED_NATIVE, _DEFLATED_FRAMES, _RLE}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_END_OF_IMAGE = b"\xff\xd9"  # not within a JPEG-LS image, which has no other byte above 7F behind FF
PIXEL_DATA_TAGS = (  # what a `FrameReader` looks at
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData",
    "DoubleFloatPixelData", "PixelData",
)  # fmt: skip
_START_OF_FRAME = {  # JPEG marker -> transfer syntax that uses it
    0xC0: "1.2.840.10008.1.2.4.50", 0xC1: "1.2.840.10008.1.2.4.51", 0xC2: "1.2.840.10008.1.2.4.55",
    0xC3: "1.2.840.10008.1.2.4.57", 0xF7: "1.2.840.10008.1.2.4.80",
}  # fmt: skip


@dataclass(frozen=True)
class PixelFormat:
    """What a header says of its pixels: frames, rows, columns, bits allocated and stored and the highest of them, signed or not."""

    num_frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    high_bit: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one stored value, little endian."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True)
class Codestream:
    """What a compressed image says of itself, and the transfer syntax that it belongs to."""

    rows: int
    columns: int
    syntax: str


def pixel_format(data: Dataset, max_edge: int = MAX_EDGE) -> PixelFormat:
    """What the header says of its pixels.

    Args:
        data: the header.
        max_edge: most rows or columns; default: those of CT.
    Raises: DicomFault: bad_number, unsupported_pixels, or too_costly where an image is larger.
    """
    rows, columns = need_count(data, "Rows"), need_count(data, "Columns")
    samples = tag_integer(data, "SamplesPerPixel")
    if samples not in (None, 1):
        raise DicomFault("unsupported_pixels", f"{samples} samples per pixel")
    photometric = tag_text(data, "PhotometricInterpretation")
    if photometric and not photometric.startswith("MONOCHROME"):
        raise DicomFault("unsupported_pixels", "pixels in colour")
    allocated = need_count(data, "BitsAllocated")
    if allocated not in (8, 16, 32):
        raise DicomFault("unsupported_pixels", f"{allocated} bits per pixel")
    stored = tag_integer(data, "BitsStored") or allocated
    if not 1 <= stored <= allocated:
        raise DicomFault("bad_number", f"BitsStored of {stored} with BitsAllocated of {allocated}")
    signed = need_integer(data, "PixelRepresentation")
    if signed not in (0, 1):
        raise DicomFault("bad_number", f"PixelRepresentation of {signed} instead of 0 or 1")
    if max(rows, columns) > max_edge:
        kind = "a CT image" if max_edge == MAX_EDGE else "an image"
        raise DicomFault("too_costly", f"{rows} × {columns} pixels, {kind} has at most {max_edge} × {max_edge}")
    # Where it is impossible, values begin at the lowest bit.
    high_bit = max(stored - 1, min(tag_integer(data, "HighBit") or 0, allocated - 1))
    return PixelFormat(num_frames(data), rows, columns, allocated, stored, bool(signed), high_bit)


def num_frames(data: Dataset) -> int:
    """NumberOfFrames; 1 where it is absent, or no count in a data set whose frames have no headers of their own.

    Raises: DicomFault: bad_number.
    """
    if set(tag_text(data, "NumberOfFrames").split("\\")) <= {"", "1"}:  # "1\\1" has been seen, and says what it means
        return 1
    if "PerFrameFunctionalGroupsSequence" in data:
        return need_count(data, "NumberOfFrames")
    return max(1, tag_integer(data, "NumberOfFrames") or 1)


def check_claim(decoded_bytes: int, encoded_bytes: int) -> None:
    """Refuse pixels that are few bytes where they are stored and very many decoded. Raises: DicomFault: too_costly."""
    if decoded_bytes > max(_FREE_BYTES, _RATIO * encoded_bytes):
        raise DicomFault(
            "too_costly",
            f"{encoded_bytes >> 10} KiB of pixel data for {decoded_bytes >> 20} MiB of pixels, more than {_RATIO} times as much",
        )


class FrameReader:
    """The pixels of a data set as stored, before any rescaling, one frame decoded at a time."""

    def __init__(self, data: Dataset, max_edge: int = MAX_EDGE) -> None:
        """Check what the header and the compressed images claim; nothing is decoded yet.

        Args:
            data: from `storage.sources.dicom_file.read_data_set`; its pixels are kept, the rest is not.
            max_edge: as of `pixel_format`.
        Raises: DicomFault: unreadable_pixels, unsupported_pixels, bad_number or too_costly.
        """
        self.form = pixel_format(data, max_edge)
        element = data.get_item("PixelData") if "PixelData" in data else None
        if element is None or not element.value:
            if tag_present(data, "FloatPixelData") or tag_present(data, "DoubleFloatPixelData"):
                raise DicomFault("unsupported_pixels", "floating-point pixels")
            raise DicomFault("unreadable_pixels", "no pixel data")
        self._syntax = str(data.file_meta.get("TransferSyntaxUID") or "")
        self._vr = str(element.VR)
        self._native: bytes = b""
        self._frames: list[bytes] = []
        if self._syntax in _NATIVE:
            self._native = element.value
            self._check_length()
        elif self._syntax in {_ENCAPSULATED_NATIVE, _DEFLATED_FRAMES, *_PLUGINS, *_GDCM}:
            check_claim(self.form.num_frames * self.form.frame_bytes, len(element.value))
            self._frames = _compressed_frames(data, element.value, self.form)
        else:
            raise DicomFault("unreadable_pixels", f"{_name(self._syntax)}, for which there is no decoder")

    def read(self, frame: int) -> NDArray[Any]:
        """Integers of the machine's byte order, shape (rows, columns). Raises: DicomFault: unreadable_pixels."""
        form = self.form
        if not 0 <= frame < form.num_frames:
            raise DicomFault(
                "unreadable_pixels", f"{counted(form.num_frames, 'frame')}, number {frame + 1} was expected"
            )
        try:
            stored = self._decoded(frame)
        except DicomFault:
            raise
        except DECODE_ERRORS as error:
            refused = isinstance(error, RuntimeError) and self._frames  # by a decoder, in words of pydicom or SimpleITK
            raise DicomFault("unreadable_pixels", "a damaged compressed image" if refused else short(error)) from error
        if stored.shape != (form.rows, form.columns):
            raise DicomFault("unreadable_pixels", f"{stored.shape} pixels instead of {form.rows} × {form.columns}")
        return self._from_low_bit(stored.astype(stored.dtype.newbyteorder("="), copy=False))

    def _from_low_bit(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Values whose bits do not begin at the lowest, shifted there; what lies above and below them is left out.

        Where something lies below, or an image is compressed in a way that knows no such bits, the header may be wrong instead.
        Raises: DicomFault: unsupported_pixels.
        """
        form = self.form
        low = form.high_bit + 1 - form.bits_stored
        if low == 0:
            return stored
        if self._syntax not in _BIT_BY_BIT or (stored & ((1 << low) - 1)).any():
            raise DicomFault("unsupported_pixels", f"HighBit of {form.high_bit} with BitsStored of {form.bits_stored}")
        above = form.bits_allocated - 1 - form.high_bit
        shifted: NDArray[Any] = (stored << above) >> (above + low)
        return shifted

    def _check_length(self) -> None:
        form, found = self.form, len(self._native)
        need = form.num_frames * form.frame_bytes
        if found < need or found - need >= _MAX_PADDING_BYTES:
            shape = f"{form.num_frames} × {form.rows} × {form.columns}"
            raise DicomFault("unreadable_pixels", f"{found} bytes of pixels, {shape} need {need}")

    def _decoded(self, index: int) -> NDArray[Any]:
        form, syntax = self.form, self._syntax
        if syntax in _NATIVE:
            return _with_pydicom(self._native, self._vr, syntax, form, index)
        frame = self._frames[index]
        if syntax in (_ENCAPSULATED_NATIVE, _DEFLATED_FRAMES):
            if syntax == _DEFLATED_FRAMES:
                frame = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, form.frame_bytes)
            if len(frame) < form.frame_bytes:
                raise DicomFault("unreadable_pixels", f"{len(frame)} bytes in a frame instead of {form.frame_bytes}")
            return np.frombuffer(frame[: form.frame_bytes], dtype=form.dtype).reshape(form.rows, form.columns)
        if syntax != _RLE:
            _check_codestream(frame, form)
        if syntax in _JPEG_LS and _END_OF_IMAGE not in frame:  # which takes seconds to decode, and fails
            raise DicomFault("unreadable_pixels", "a compressed image that is cut off")
        if syntax in _GDCM:
            return _with_gdcm(frame, syntax, form)
        return _with_pydicom(encapsulate([frame]), "OB", syntax, replace(form, num_frames=1), 0)


def _compressed_frames(data: Dataset, value: bytes, form: PixelFormat) -> list[bytes]:
    """The compressed frames, exactly as many as the header says."""
    offsets = None
    if tag_present(data, "ExtendedOffsetTable") and tag_present(data, "ExtendedOffsetTableLengths"):
        offsets = (data["ExtendedOffsetTable"].value, data["ExtendedOffsetTableLengths"].value)
    try:
        frames = generate_frames(value, number_of_frames=form.num_frames, extended_offsets=offsets)
        found = list(islice(frames, form.num_frames + 1))
    except DECODE_ERRORS as error:
        raise DicomFault("unreadable_pixels", short(error)) from error
    if len(found) != form.num_frames:
        more = "more" if len(found) > form.num_frames else f"{len(found)}"
        raise DicomFault("unreadable_pixels", f"{more} frames, its header says {form.num_frames}")
    return found


def _with_pydicom(value: bytes, vr: str, syntax: str, form: PixelFormat, index: int) -> NDArray[Any]:
    options = {
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": form.num_frames,
        "samples_per_pixel": 1,
        "bits_allocated": form.bits_allocated,
        "bits_stored": form.bits_stored if form.high_bit == form.bits_stored - 1 else form.bits_allocated,
        "pixel_representation": int(form.signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
        "pixel_vr": vr if vr in ("OB", "OW") else "OW",
        # What lies above BitsStored: `dicom_pixels.without_overlays` tells overlays from negative numbers.
        "correct_unused_bits": syntax not in _BIT_BY_BIT,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin = _PLUGINS.get(syntax, "")
        try:
            frame, _ = get_decoder(UID(syntax)).as_array(
                value, index=index, raw=True, decoding_plugin=plugin, **options
            )
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of a decoder in Rust, and no Exception
                raise
            raise DicomFault("unreadable_pixels", "a damaged compressed image") from error
    return frame


def _with_gdcm(frame: bytes, syntax: str, form: PixelFormat) -> NDArray[Any]:
    """One frame as a file of its own, without rescale tags, because SimpleITK reads files and rescales what it reads."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"  # secondary capture: pixels alone
    image.Rows, image.Columns, image.SamplesPerPixel = form.rows, form.columns, 1
    image.BitsAllocated, image.BitsStored, image.HighBit = form.bits_allocated, form.bits_stored, form.bits_stored - 1
    image.PixelRepresentation, image.PhotometricInterpretation = int(form.signed), "MONOCHROME2"
    image.PixelData = encapsulate([frame])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    with tempfile.TemporaryDirectory() as folder:  # for its owner alone: pixels are a patient's
        file = Path(folder) / "image.dcm"
        image.save_as(file, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.SetImageIO("GDCMImageIO")
        stored: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return stored.reshape(stored.shape[-2:])


def _check_codestream(frame: bytes, form: PixelFormat) -> None:
    """Refuse a compressed image of another size than its header's before a decoder allocates what it claims."""
    found = codestream(frame)
    if found is None:
        raise DicomFault("unreadable_pixels", "a compressed image without a size")
    if (found.rows, found.columns) != (form.rows, form.columns):
        raise DicomFault(
            "unreadable_pixels",
            f"a compressed image of {found.rows} × {found.columns} pixels, its header says {form.rows} × {form.columns}",
        )


def codestream(frame: bytes) -> Codestream | None:
    """What a JPEG, JPEG-LS, JPEG 2000 or HTJ2K image says of itself; None where it is none of them or cut off."""
    try:
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # behind the boxes of a JP2 file, where there are any
        if start >= 0:
            capabilities, width, height, left, top = struct.unpack_from(">HIIII", frame, start + 6)
            high_throughput = bool(capabilities & 0x4000)
            return Codestream(height - top, width - left, f"1.2.840.10008.1.2.4.{201 if high_throughput else 90}")
        position = 2 if frame[:2] == b"\xff\xd8" else len(frame)
        while position + 4 <= len(frame):
            if frame[position] != 0xFF:
                return None
            marker, length = struct.unpack_from(">BH", frame, position + 1)
            if marker == 0xFF:  # fill
                position += 1
            elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
                height, width = struct.unpack_from(">HH", frame, position + 5)
                return Codestream(height, width, _START_OF_FRAME.get(marker, ""))
            else:
                position += 2 + length
    except struct.error:
        pass
    return None


def compressed_syntax(value: bytes) -> str:
    """The transfer syntax of encapsulated pixel data by its first frame; "" where that is of no known kind."""
    try:
        fragments = generate_fragments(value)
        next(fragments)  # the offset table
        first = next(fragments)
        found = codestream(first)
        if found is None and len(first) > 64:
            segments, offset = struct.unpack_from("<II", first)
            return _RLE if 1 <= segments <= 15 and offset == 64 else ""
    except (StopIteration, *DECODE_ERRORS):
        return ""
    return found.syntax if found else ""


def _name(syntax: str) -> str:
    if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]+", syntax):  # anything else may be free text
        return f"transfer syntax {UID(syntax).name}"
    return "an unknown transfer syntax"
