"""What reading a DICOM file may raise, and the one error that it raises by name."""

import struct
import zlib

from pydicom.errors import BytesLengthException, InvalidDicomError

# Everything pydicom was seen to raise on broken files. A bad file is a verdict, never an aborted run.
DECODE_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, NotImplementedError, RuntimeError,
    BytesLengthException, InvalidDicomError, struct.error, zlib.error, OverflowError, MemoryError, RecursionError, AssertionError,
)  # fmt: skip


class DicomFault(ValueError):
    """A file cannot be used: reason code and detail of its verdict, without its place and without a patient's data."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
