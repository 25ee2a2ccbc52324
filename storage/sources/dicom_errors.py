"""What reading a DICOM file may raise."""

import struct

# Everything pydicom was seen to raise on broken files. A bad file is a verdict, never an aborted run.
DECODE_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, NotImplementedError, RuntimeError,
    struct.error, OverflowError, MemoryError, RecursionError, AssertionError,
)  # fmt: skip
