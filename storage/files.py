"""Atomic writes and content hashes, on which everything stored on disk relies.

A file appears complete or not at all, and is durable when the call returns: temporary file, fsync, rename (or link, where it must
not replace another), fsync of the folder. Temporary names say which process made them, so that the next run can remove what a
killed one left.
"""

import errno
import fnmatch
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.bucket_path import BucketPath
from storage.errors import StorageError, UnreadableError, UnwritableError
from storage.processes import process_ended, process_token

_CHUNK = 1 << 20
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM, errno.EACCES}
_REMEDIES = {
    errno.ENOSPC: "no space is left. Free some (`prdit prune` lists old stages), then run again: finished work is kept.",
    errno.EDQUOT: "your quota is used up. Free some space (`prdit prune` lists old stages), then run again.",
    errno.EROFS: "its file system is read-only. Choose another folder, or have it mounted writable.",
    errno.EACCES: "access is denied. Change its owner or permissions, or choose another folder.",
    errno.ENOTDIR: "a part of its path is a file, not a folder. Choose another folder.",
    errno.EEXIST: "a file is where a folder must be. Choose another folder.",
    errno.ELOOP: "its symbolic links lead in a circle. Choose another folder.",
    errno.ENAMETOOLONG: "its name is too long. Choose a shorter one.",
    errno.EPERM: "the operation is not permitted. Change its owner or permissions, or choose another folder.",
    errno.EFBIG: "it would be larger than this process may write (`ulimit -f`) or its file system can hold. Raise the limit.",
    errno.EIO: "its device or file server reports an error. Look at the system's log, or choose another folder.",
    errno.ESTALE: "its network file system has lost it. Mount it again, then run again: finished work is kept.",
}
_TOKEN = re.compile(r"\.([0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.tmp$")
_ABANDONED_AFTER_S = 24 * 3600.0  # a temporary file of another machine, whose processes cannot be asked
_warned: set[tuple[int, str]] = set()  # what `warn_once` has said, by device
logger = logging.getLogger("prdit.files")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the refusal to read a file (denied, disk error) into an `UnreadableError` that names it; a missing one stays missing."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        refused = UnreadableError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk.")
        refused.errno = error.errno
        raise refused from error


def entries(folder: Path, pattern: str) -> list[Path]:
    """What of a folder has a name like `pattern` and not a hidden one, sorted; nothing where there is no folder.

    `Path.glob` also finds nothing where a folder may not be read, which a store would take for empty.

    Raises: UnreadableError: it cannot be listed now.
    """
    try:
        with reading(folder):
            found = [path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]
    except FileNotFoundError:
        return []
    return sorted(path for path in found if not path.name.startswith("."))


# ---- hashes and JSON ---------------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in 1 MiB pieces. Raises: UnreadableError; FileNotFoundError."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def json_text(value: Any) -> str:
    """Readable JSON (two-space indent, trailing newline, no NaN)."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse one JSON file. Files with a schema are read through `storage.documents`."""
    return json.loads(path.read_text(encoding="utf-8"))


# ---- durable writes ----------------------------------------------------------------------------------------------------


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write (full, read-only, denied) into an `UnwritableError` that names `path`."""
    try:
        yield
    except StorageError:  # says itself which file it is about, perhaps one that was read
        raise
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        refused = UnwritableError(f"{_final(path)} cannot be written: {_REMEDIES[error.errno]}")
        refused.errno = error.errno
        raise refused from error


def fsync_directory(path: Path) -> None:
    """Make renames inside a directory durable, where its file system can (some network file systems cannot)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn_once(path, "cannot make folders durable; after a power failure the last files may be missing")
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; one that is gone already is no error. Raises: OSError; UnwritableError."""
    if isinstance(folder, BucketPath):
        folder.delete_below()
        return
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def rename_folder(finished: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another writer was first: of such a name, that one holds the same."""
    try:
        finished.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def fsync_tree(folder: Path) -> None:
    """Make every file of a folder durable, then the folders that name them, innermost first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(root) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(Path(root))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file's path that takes the place of `path` when the block ends: temp + fsync + rename.

    Readers see the old content or the new, never a part. If the block raises, `path` stays unchanged and no temporary file remains.

    Raises: UnwritableError: the disk is full, read-only, or access is denied.
    """
    with naming_path(path), _temporary_file(path) as temporary:
        yield temporary
        _fsync_file(temporary)
        temporary.replace(path)
        fsync_directory(path.parent)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, see `replacing`; an object of an object store appears whole by itself."""
    if isinstance(path, BucketPath):
        path.put(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """`write_bytes_atomic` for readable JSON."""
    write_text_atomic(path, json_text(value))


def put_if_absent(path: Path, data: bytes, mode: int = 0o666) -> bool:
    """Write a file unless there is one; of several writers exactly one succeeds.

    Args:
        path: of the file; its folder is made.
        data: the whole content.
        mode: permissions, less the umask.
    Returns: whether this call wrote it.
    Raises: UnwritableError: the disk is full, read-only, or access is denied.
    """
    if isinstance(path, BucketPath):
        return path.put_if_absent(data)
    if path.exists():
        return False
    with naming_path(path), _temporary_file(path, mode) as temporary:
        temporary.write_bytes(data)
        _fsync_file(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # a network file system may have sent our own request twice
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return _create(path, data, mode)
        fsync_directory(path.parent)
        return True


def _create(path: Path, data: bytes, mode: int) -> bool:
    """`put_if_absent` where the file system has no links: of two writers still only one succeeds."""
    warn_once(path.parent, "has no hard links; a process killed in the middle of a write may leave half a file")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    fsync_directory(path.parent)
    return True


@contextmanager
def _temporary_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))  # the umask decides, as for any file
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def warn_once(path: Path, lack: str) -> None:
    """Log what the file system of a path lacks, once per file system and process."""
    fact = (path.stat().st_dev, lack)
    if fact not in _warned:
        _warned.add(fact)
        logger.warning("the file system of %s %s", path, lack)


# ---- temporary names ---------------------------------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that says which process it belongs to."""
    return path.with_name(f".{path.name}.{process_token()}-{secrets.token_hex(4)}.tmp")


def _final(path: Path) -> Path:
    """What a path will be called when nothing of it is temporary any more."""
    matches = ((part, _TOKEN.search(part)) for part in path.parts)
    return Path(*(part if match is None else part[1 : match.start()] for part, match in matches))


def remove_leftovers(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove the temporary files and folders in `folder` whose process has ended; returns them.

    Those of another machine are removed a day after their last change, because it cannot be asked.

    Args:
        folder: may be missing; in an object store there are none.
        below: also in every folder below it.
    """
    removed: list[Path] = []
    if isinstance(folder, BucketPath):  # what is written there has no temporary name
        return removed
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root) / name
            if not is_abandoned(path):
                continue
            removed.append(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # on a read-only file system: what needs to write says so
                    path.unlink(missing_ok=True)
        folders[:] = [name for name in folders if below and Path(root) / name not in removed]
    return removed


def is_abandoned(path: Path) -> bool:
    """Whether a path has a temporary name and the process that made it has ended."""
    match = _TOKEN.search(path.name)
    if match is None:
        return False
    ended = process_ended(match[1])
    if ended is None:
        with suppress(OSError):
            return time.time() - path.lstat().st_mtime > _ABANDONED_AFTER_S
        return False
    return ended
