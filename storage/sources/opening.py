"""Opening files of a source: regular ones inside it only, whatever was put in their place since they were listed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from storage.bucket_path import BucketPath, remote_of

_PATH_MAX = 4096  # bytes of a path that one system call takes, the final zero among them
copies: dict[tuple[str, str], Path] = {}  # files of sources -> where each lies for as long as its scan is read
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


@contextmanager
def open_regular(source: Path, name: str) -> Iterator[BinaryIO]:
    """A regular file inside a source, by its relative path, open for reading; it never waits for a pipe's writer.

    Raises: OSError: it cannot be opened, is no regular file (any more), or a link leads out of the source.
    """
    if isinstance(source, BucketPath):
        with _open_object(source, name) as found:
            yield found
        return
    descriptor = open_beneath(source, name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {kind_of(mode)} now, not a regular file")
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        yield stream


def _open_object(source: BucketPath, name: str) -> BinaryIO:
    """An object of a source, or its copy. Raises: NotADirectoryError: a beginning of its name is an object, an archive."""
    if (copy := copies.get((str(source), name))) is not None:
        return copy.open("rb")
    try:
        return (source / name).open("rb")
    except FileNotFoundError:
        raise _missing(source, name) from None


def _missing(source: BucketPath, name: str) -> OSError:
    """What a folder would say of a name that no object has."""
    if any((source / str(above)).is_file() for above in PurePosixPath(name).parents[:-1]):
        return NotADirectoryError(errno.ENOTDIR, "a part of its name is an object")
    return FileNotFoundError(errno.ENOENT, "no such object")


def size_of(stream: BinaryIO) -> int:
    """Bytes of an open file, whose place becomes its start."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return size


def status_of(stream: BinaryIO) -> os.stat_result:
    """Size and time of the last change of what `open_regular` gave."""
    found = remote_of(stream)
    return os.fstat(stream.fileno()) if found is None else found.stat()


def opened_again(stream: BinaryIO) -> BinaryIO:
    """A second stream of the file that `open_regular` gave; both may share their place."""
    found = remote_of(stream)
    return cast("BinaryIO", os.fdopen(os.dup(stream.fileno()), "rb")) if found is None else found.open("rb")


def open_beneath(source: Path, name: str, flags: int) -> int:
    """Descriptor of what a relative path means, where that is inside the source; paths may be longer than the system takes.

    Beyond that length no symbolic link is followed. Raises: OSError.
    """
    path = os.path.join(source, name)  # noqa: PTH118 - pathlib would drop what it thinks superfluous in a name
    if len(os.fsencode(path)) >= _PATH_MAX:
        return _open_stepwise(source, name, flags)
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        if leaves(os.path.realpath(source), _place(descriptor, path)):
            raise OSError(errno.EPERM, "it leads out of the source now")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mode_of(source: Path, name: str) -> int:
    """Mode of what a relative path means; nothing is opened. Raises: OSError."""
    if isinstance(source, BucketPath):
        if (source / name).is_file():
            return stat.S_IFREG
        if name and not (source / name).is_dir():
            raise _missing(source, name)
        return stat.S_IFDIR
    path = os.path.join(source, name)  # noqa: PTH118 - as above
    if len(os.fsencode(path)) < _PATH_MAX:
        return os.stat(path).st_mode  # noqa: PTH116
    descriptor = _open_stepwise(source, name, os.O_PATH)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def leaves(root: str, path: str) -> bool:
    """Whether a path is not below a folder; both absolute and without links."""
    return path != root and not path.startswith(root.rstrip("/") + "/")


def kind_of(mode: int) -> str:
    """What a file's mode says it is, for a verdict's sentence."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _place(descriptor: int, path: str) -> str:
    """Where an open file is: as the kernel knows it, or else as its links say now."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return os.path.realpath(path)


def _open_stepwise(source: Path, name: str, flags: int) -> int:
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    *folders, last = (part for part in name.split("/") if part)
    here = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return os.open(last, flags, dir_fd=here)
    finally:
        os.close(here)
