"""Free disk: what work may not begin without."""

import shutil
from pathlib import Path

from storage.errors import StorageError

_GB = 1e9


class NoRoomError(StorageError, OSError):
    """Less disk is free than the site keeps free."""


def free_bytes(path: Path) -> int:
    """Free space of the file system that a path is on, or will be."""
    there = next(place for place in [path.resolve(), *path.resolve().parents] if place.exists())
    return shutil.disk_usage(there).free


def check_room(path: Path, *, min_free_gb: float) -> None:
    """Refuse to begin work that writes where too little disk is free.

    Args:
        path: folder that will be written to; it need not exist.
        min_free_gb: what stays free.
    Raises: NoRoomError: the message says how much is free, how much stays free, and what to do.
    """
    free = free_bytes(path)
    if free >= min_free_gb * _GB:
        return
    raise NoRoomError(
        f"Too little disk for {path}: {free / _GB:.1f} GB are free; {min_free_gb:g} GB stay free (retention.min_free_gb). Nothing "
        "was started. `prdit maintain` removes what retention allows; `prdit prune` lists stages. Make room, then run again."
    )
