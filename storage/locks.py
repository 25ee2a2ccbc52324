"""One lock for all that must not run twice at once: a file held with flock, which the kernel releases when its process ends."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import LockedError
from storage.files import naming_path, warn_once

_POLL_S = 0.2
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
logger = logging.getLogger("prdit.locks")


@contextmanager
def locked(path: Path, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold a lock file for one process; others wait.

    Where the file system has no locks (Lustre without `-o flock`, NFS without lockd) the block runs without one, with a warning.

    Args:
        path: of the lock file; it and its folder are made. Its modification time becomes the time of the last holder.
        timeout_s: how long to wait for another holder; None: for ever.
    Raises:
        LockedError: another process still holds it.
        UnwritableError: the file cannot be made.
    """
    descriptor = _hold(path, timeout_s)
    try:
        with suppress(OSError):  # only its owner may
            os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file; False where the file system has no locks, or there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor, path, wait=False)
    finally:
        os.close(descriptor)


def _hold(path: Path, timeout_s: float | None) -> int:
    began = time.monotonic()
    said = False
    while True:
        with naming_path(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            if _lock(descriptor, path, wait=timeout_s is None and said):
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        return descriptor
                os.close(descriptor)  # its folder was removed while we waited (`prdit prune`): a lock on nothing
                continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if timeout_s is not None and time.monotonic() - began >= timeout_s:
            raise LockedError(f"Another process works on {path.parent} (it holds {path.name}). Wait for it, or end it.")
        if not said:
            said = True
            logger.info("another run works on %s; waiting for it", path.parent)
        if timeout_s is not None:
            time.sleep(_POLL_S)


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    """Lock an open file: False where another process holds it and we do not wait."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn_once(path.parent, "has no locks; do not start the same run twice at once")
    return True
