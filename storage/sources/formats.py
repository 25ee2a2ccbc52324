"""The formats of scans that are read: one row each. A new one is a module beside this and a row here."""

import hashlib
import io
import re
from pathlib import Path
from typing import BinaryIO

from storage.errors import UnreachableError
from storage.sources.archives import READ_KINDS, archive_kind
from storage.sources.dicom import DICOM
from storage.sources.files import open_file
from storage.sources.metaimage import METAIMAGE
from storage.sources.nifti import NIFTI
from storage.sources.npz import NPZ
from storage.sources.nrrd import NRRD
from storage.sources.source import FileFacts, Format

FORMATS: dict[str, Format] = {format.name: format for format in (DICOM, NIFTI, NRRD, METAIMAGE, NPZ)}
FACTS_VERSION = 7  # of what is read from headers: raised when a reader says something else of the same file

# An empty file, or one of zeros, is a copy that failed where its name is a scan's; a number makes one without ending such a name.
_SCAN_NAME = re.compile(
    r"(?!\.)(.+\.(dcm|dicom|dic|ima|nii|nii\.gz|nrrd|nhdr|mha|mhd|npz|zip|tar|tgz|tar\.gz|\d+)|[^.]*\d[^.]*)",
    re.IGNORECASE | re.DOTALL,
)
# What is called so and is none of it is a copy that failed, or a page that came instead of it. (Anything may be called .dcm.)
_FORMAT_NAME = re.compile(
    r"(?!\.).+\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npz|zip|tar|tgz|tbz|tbz2|txz|tar\.(gz|bz2|xz))",
    re.IGNORECASE | re.DOTALL,
)
_START_BYTES = 512
_WHOLE_BYTES = 16 << 20  # files up to this size are read once, as a whole
_CHUNK = 1 << 20


def read_source_file(source: Path, name: str) -> tuple[str, FileFacts]:
    """SHA-256 of a source's file in hex, "" where it cannot be read, and what its header says; one open, only read.

    Raises: UnreachableError: its object store is away, which says nothing of the file.
    """
    try:
        with open_file(source, name) as stream:
            return read_stream(stream, source / name)
    except UnreachableError:
        raise
    except OSError as error:
        return "", FileFacts(reason="unreadable_file", detail=error.strerror or type(error).__name__)


def read_stream(stream: BinaryIO, path: Path) -> tuple[str, FileFacts]:
    """As `read_source_file`, of an open file that is called `path`. Raises: OSError."""
    data = stream.read(_WHOLE_BYTES)
    digest = hashlib.sha256(data)
    if len(data) < _WHOLE_BYTES:
        return digest.hexdigest(), file_facts(io.BytesIO(data), path)
    del data
    while piece := stream.read(_CHUNK):
        digest.update(piece)
    return digest.hexdigest(), file_facts(stream, path)


def file_facts(stream: BinaryIO, path: Path) -> FileFacts:
    """What the first format that recognises a file says of it; else an archive, or an unknown format."""
    for one in FORMATS.values():
        stream.seek(0)
        facts = one.read_header(stream, path)
        if facts is not None:
            return facts
    kind = archive_kind(stream)
    stream.seek(0)
    start = stream.read(_START_BYTES)
    if not any(start) and _SCAN_NAME.fullmatch(path.name):
        return FileFacts(reason="unreadable_file", detail="it begins with zeros" if start else "it is empty")
    if kind not in READ_KINDS and _FORMAT_NAME.fullmatch(path.name):
        return FileFacts(
            reason="unreadable_file", detail="it is not what its name says: cut short, damaged or another kind of file"
        )
    if kind:
        return FileFacts(reason="archive", detail=kind)
    return FileFacts(reason="unknown_format")
