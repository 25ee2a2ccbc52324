"""The files of a source: a streaming directory walk that opens nothing, and the one way to open what it lists."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storage.bucket_path import BucketPath
from storage.errors import SourceError
from storage.sources.archives import open_member
from storage.sources.opening import kind_of, leaves, open_beneath, open_regular
from storage.sources.source import as_utf8


@dataclass(frozen=True)
class FoundFile:
    """A regular file (symbolic links followed), or one in an archive, by its path relative to the source.

    Attributes:
        path: as the system spells it.
        size: bytes.
        mtime_ns: time of the last change; of the archive for what is in one.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class FoundOther:
    """What cannot be opened as a file: relative path, reason code and detail of its verdict."""

    path: str
    reason: str
    detail: str


def check_source(source: Path) -> None:
    """Raises: SourceError: the source is missing, not a folder, or cannot be listed."""
    what = ""
    if isinstance(source, BucketPath):
        if not source.is_dir():
            raise SourceError(f"Source {source} has no objects. Give the beginning of their names: s3://BUCKET/PREFIX.")
        return
    try:
        if not stat.S_ISDIR(source.stat().st_mode):
            what = "is not a folder"
        elif not os.access(source, os.R_OK | os.X_OK):
            what = "cannot be listed (access denied)"
    except FileNotFoundError:
        what = "does not exist"
    except OSError as error:
        what = f"cannot be opened ({error.strerror})"
    if what:
        raise SourceError(
            f"Source {as_utf8(str(source))} {what}. Give a folder with CT (DICOM, NIfTI, NRRD, MetaImage or npz)."
        )


def check_here(source: Path) -> None:
    """Raises: SourceError: the source is not to be seen from this machine, which may be another than the one that listed it."""
    if not isinstance(source, BucketPath) and not source.is_dir():
        raise SourceError(
            f"Source {as_utf8(str(source))} is not there for the worker on {socket.gethostname()}. Mount it under the same path on "
            "every machine that the runner has workers on, or use runner local."
        )


@contextmanager
def open_file(source: Path, name: str) -> Iterator[BinaryIO]:
    """One file of a source, or one in an archive of it, by its relative path, open for reading and seekable.

    Raises: OSError: it cannot be read, is no regular file, or leads out of the source.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular(source, name))
        except NotADirectoryError:  # a part of its path is a file: an archive
            stream = stack.enter_context(open_member(source, name))
        yield stream


def walk_source(source: Path) -> Iterator[FoundFile | FoundOther]:
    """Everything in a folder and below, one stat per file and nothing opened; links are followed where they stay inside it.

    A folder is visited once, however many links lead to it. The order within a folder is the file system's; folders are visited
    in the order of their names, so that of two links to one folder the same one is followed on every machine.

    Raises: UnreadableError: a bucket cannot be listed.
    """
    if isinstance(source, BucketPath):
        for name, size, changed in source.walk_objects():
            if not size and _marks_folder(source / name):
                continue
            yield FoundFile(name, size, int(changed.timestamp() * 1e9))
        return
    root = os.path.realpath(source)
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        folders: list[str] = []
        try:
            descriptor = open_beneath(source, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
            try:
                here = os.fstat(descriptor)
                if (here.st_dev, here.st_ino) in seen:  # a loop of links, or a folder linked twice
                    continue
                seen.add((here.st_dev, here.st_ino))
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        path = f"{folder}/{entry.name}" if folder else entry.name
                        found = _found(entry, path, root)
                        if found is None:
                            folders.append(path)
                        else:
                            yield found
            finally:
                os.close(descriptor)
        except OSError as error:
            yield FoundOther(folder or ".", "unreadable_file", error.strerror or "no access")
        pending += sorted(folders, reverse=True)


def _marks_folder(path: BucketPath) -> bool:
    """Whether what is listed as an empty object is `path/`, as consoles mark a folder; `path` is another, or none."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return True


def _found(entry: os.DirEntry[str], path: str, root: str) -> FoundFile | FoundOther | None:
    """What an entry of a folder is; None for a folder to visit."""
    try:
        state = entry.stat()
        linked = entry.is_symlink()
    except OSError as error:
        if entry.is_symlink():
            return FoundOther(path, "not_regular_file", "a broken symbolic link")
        return FoundOther(path, "unreadable_file", error.strerror or "no access")
    if linked and leaves(root, os.path.realpath(f"{root}/{path}")):
        return FoundOther(path, "outside_source", f"a link to {kind_of(state.st_mode)}")
    if stat.S_ISDIR(state.st_mode):
        return None
    if stat.S_ISREG(state.st_mode):
        return FoundFile(path, state.st_size, state.st_mtime_ns)
    return FoundOther(path, "not_regular_file", kind_of(state.st_mode))
