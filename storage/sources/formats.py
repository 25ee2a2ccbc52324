"""The formats of scans that are read: one row each. A new one is a module beside this and a row here."""

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

from storage.sources.archives import archive_kind
from storage.sources.dicom import DICOM
from storage.sources.files import open_file
from storage.sources.metaimage import METAIMAGE
from storage.sources.nifti import NIFTI
from storage.sources.npz import NPZ
from storage.sources.nrrd import NRRD
from storage.sources.source import FileFacts, Format

FORMATS: dict[str, Format] = {format.name: format for format in (DICOM, NIFTI, NRRD, METAIMAGE, NPZ)}
FACTS_VERSION = 3  # of what is read from headers: raised when a reader says something else of the same file

_WHOLE_BYTES = 16 << 20  # files up to this size are read once, as a whole
_CHUNK = 1 << 20


def read_source_file(source: Path, name: str) -> tuple[str, FileFacts]:
    """SHA-256 of a source's file in hex, "" where it cannot be read, and what its header says; one open, only read."""
    try:
        with open_file(source, name) as stream:
            return read_stream(stream, source / name)
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
    return FileFacts(reason="archive", detail=kind) if kind else FileFacts(reason="unknown_format")
