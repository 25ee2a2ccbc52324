"""Copies on the local disk of what lies in an object store, up to a stated size; the least recently used go first.

A copy is a folder: it appears whole by a rename, readers hold a shared lock on it, and who needs room removes only what no reader
holds. Several processes share one cache.
"""

import fcntl
import fnmatch
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import ConfigError, StorageError, UnreadableError, UnwritableError
from storage.files import is_abandoned, naming_path, remove_tree, rename_folder, temporary_path
from storage.places import as_folder

_GB = 10**9
_DEFAULT_GB = 20.0
_TRIES = 5  # to make a copy whose folder somebody removes


class LevelCache:
    """A folder with copies, each by a name.

    Args:
        folder: on a local disk; made when needed.
        most: bytes that all copies may take; a single larger one is kept until the next.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most

    @classmethod
    def from_environment(cls) -> "LevelCache":
        """The cache of this user: in `levels` of the folder that `PRDIT_CACHE` names; `PRDIT_CACHE_GB` is its size.

        A folder that has something else, too, keeps that: only copies are removed to make room.

        Raises: ConfigError: the size is no number, or the folder is in an object store.
        """
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prdit"
        text = os.environ.get("PRDIT_CACHE_GB") or str(_DEFAULT_GB)
        try:
            most = float(text)
        except ValueError:
            most = -1
        if not 0 <= most < float("inf"):
            raise ConfigError(f"PRDIT_CACHE_GB is {text!r}; expected how many GB copies may take, such as 20.")
        place = as_folder(os.environ.get("PRDIT_CACHE") or default, "PRDIT_CACHE").expanduser()
        return cls(place / "levels", int(most * _GB))

    @contextmanager
    def held(
        self, name: str, size: int, fetch: Callable[[Path], None], whole: Callable[[Path], bool]
    ) -> Iterator[Path]:
        """The folder of one copy, which stays while the block lasts.

        Args:
            name: of the copy; the same content for ever.
            size: bytes it will take.
            fetch: fills an empty folder; what it raises is raised, and no copy remains.
            whole: whether a copy is what was fetched; else it is fetched again.
        Raises:
            UnwritableError: the disk is full, access is denied, or the folder is removed again and again.
            UnreadableError: the copy was removed while the block read it, so that what was read may be wrong.
        """
        folder, left = self.folder / name, _TRIES
        while True:
            with naming_path(self.folder):
                descriptor = _shared(folder)
            if descriptor is None:
                left -= self._fetched(folder, size, fetch)
                if left < 0:
                    raise UnwritableError(
                        f"Copies in {self.folder} cannot be made, or are removed at once: choose another folder (PRDIT_CACHE)."
                    )
                continue
            try:
                if whole(folder):
                    with suppress(OSError):
                        os.utime(folder)
                    yield folder
                    if not whole(folder):
                        raise UnreadableError(f"{folder} was removed while it was read: run again.")
                    return
            finally:
                os.close(descriptor)
            _drop(folder, wait=True)

    def forget(self, pattern: str) -> None:
        """Remove the copies whose names match a pattern, as soon as no reader holds them, and what killed processes left of such.

        Raises: UnwritableError: access is denied.
        """
        with naming_path(self.folder), suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if fnmatch.fnmatchcase(path.name, pattern):
                    _drop(path, wait=True)
                elif fnmatch.fnmatchcase(path.name, f".{pattern}") and is_abandoned(path):
                    remove_tree(path)

    def _fetched(self, folder: Path, size: int, fetch: Callable[[Path], None]) -> bool:
        """Make a copy; whether that was in vain, because the folder of all copies cannot be made or was removed meanwhile."""
        try:
            self._fetch(folder, size, fetch)
        except StorageError:
            raise
        except FileNotFoundError:
            return True
        return False

    def _fetch(self, folder: Path, size: int, fetch: Callable[[Path], None]) -> None:
        temporary = temporary_path(folder)
        try:
            with naming_path(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_room(size)
                temporary.mkdir()
                fetch(temporary)
                rename_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, and what killed processes left, until there is room for `size` more bytes."""
        copies = []
        for path in self.folder.iterdir():
            if is_abandoned(path):
                remove_tree(path)
            elif not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    copies.append((path.stat().st_mtime, _size(path), path))
        total = sum(each for _, each, _ in copies)
        for _, each, path in sorted(copies):
            if total + size <= self.most:
                return
            if _drop(path):
                total -= each


def _shared(folder: Path) -> int | None:
    """A descriptor of a folder that is locked against removal; None where there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _drop(folder: Path, *, wait: bool = False) -> bool:
    """Remove a copy that no reader holds, or wait until none does; whether it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        removed = temporary_path(folder)
        folder.rename(removed)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    remove_tree(removed)
    return True


def _size(folder: Path) -> int:
    """Bytes of the files of a copy."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
