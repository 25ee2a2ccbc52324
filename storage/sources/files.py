"""The files of a source: a streaming directory walk that tolerates special files and loops of links."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storage.errors import SourceError
from storage.sources.source import as_utf8

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a broken symbolic link",
}


@dataclass(frozen=True)
class FoundFile:
    """A regular file (symbolic links followed): path relative to the source, as the system spells it; size; time of last change."""

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
    """Raises: SourceError: the source is missing or not a folder."""
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise SourceError(f"Source {as_utf8(str(source))} {what}. Give a folder with CT as DICOM or NIfTI.")


@contextmanager
def open_file(source: Path, name: str) -> Iterator[BinaryIO]:
    """One file of a source, by its relative path, open for reading and seekable. Raises: OSError."""
    with (source / name).open("rb") as stream:
        yield stream


def walk_source(source: Path) -> Iterator[FoundFile | FoundOther]:
    """Everything in a folder and below, one stat per file and nothing opened; links to folders are followed once.

    The order within a folder is the file system's; folders are visited in the order of their names, so that of two links to one
    folder the same one is followed on every machine.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        folders: list[str] = []
        try:
            here = (source / folder).stat()
            if (here.st_dev, here.st_ino) in seen:  # a loop of links, or a folder linked twice
                continue
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(source / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        folders.append(path)
                    else:
                        yield _found(entry, path)
        except OSError as error:
            yield FoundOther(folder or ".", "unreadable_file", error.strerror or "no access")
        pending += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _found(entry: os.DirEntry[str], path: str) -> FoundFile | FoundOther:
    try:
        state = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            return FoundOther(path, "not_regular_file", "a broken symbolic link")
        return FoundOther(path, "unreadable_file", error.strerror or "no access")
    if stat.S_ISREG(state.st_mode):
        return FoundFile(path, state.st_size, state.st_mtime_ns)
    return FoundOther(path, "not_regular_file", _KINDS.get(stat.S_IFMT(state.st_mode), "a special file"))
