"""Verification of a volume store, its volumes side by side in processes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from storage.verification import Finding, check_lists, check_volume, open_for_checking, unnamed_folders
from tasks.run.fanout import Lost, Pool

_MEMORY_MB = 600  # one volume of 512 × 512 × 600 voxels, decoded level by level


def verify_store(
    path: Path, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Finding], list[str]]:
    """Check every byte of a store, the array metadata against the records, and snapshots against volumes.

    Args:
        path: of the store.
        num_workers: processes; default by cores and memory.
        progress: called with (volumes checked, total).
    Returns: what is wrong, and notes on what is harmless.
    Raises: StorageError: there is no store, or nothing of it can be read.
    """
    store, found = open_for_checking(Path(path))
    ids = store.volume_ids()
    checks = fan_out(partial(_check, store), ids, num_workers=num_workers, progress=progress, memory_mb=_MEMORY_MB)
    for volume_id, check in zip(ids, checks, strict=True):
        if isinstance(check, Lost):
            found.append(
                Finding(
                    "volume", volume_id, f"It could not be checked ({check.detail}); verify again with fewer workers."
                )
            )
        elif check is not None:
            found.append(check)
    found += check_lists(store)
    notes = [
        f"{folder.name} in {folder.parent} was finished but never committed; the next ingest of its scan uses it."
        for folder in unnamed_folders(store)
    ]
    return found, notes
