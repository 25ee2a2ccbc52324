"""Free disk: what work may not begin without."""

import shutil
from pathlib import Path

from storage.errors import StorageError

_GB = 1e9


class NoRoomError(StorageError, OSError):
    """Less disk is free than the site keeps free, or than the work needs."""


def free_bytes(path: Path) -> int:
    """Free space of the file system that a path is on, or will be."""
    there = next(place for place in [path.resolve(), *path.resolve().parents] if place.exists())
    return shutil.disk_usage(there).free


def check_room(path: Path, needed_bytes: int = 0, *, min_free_gb: float) -> None:
    """Refuse to begin work that writes where too little disk is free.

    Args:
        path: folder that will be written to; it need not exist.
        needed_bytes: what the work writes, as far as it is known.
        min_free_gb: what stays free, beyond that.
    Raises: NoRoomError: the message says how much is free, what is needed, and what to do.
    """
    free = free_bytes(path)
    wanted = min_free_gb * _GB + needed_bytes
    if free >= wanted:
        return
    need = f"{min_free_gb:g} GB stay free (retention.min_free_gb)"
    if needed_bytes:
        need += f", and the work needs {needed_bytes / _GB:.1f} GB"
    raise NoRoomError(
        f"Too little disk for {path}: {free / _GB:.1f} GB are free; {need}. Nothing was started. `prdit maintain` removes what "
        "retention allows; `prdit prune` lists stages. Make room, then run again."
    )
