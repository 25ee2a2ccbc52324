"""Verification of a volume store, its volumes side by side in processes."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from storage.errors import StorageError
from storage.places import as_place
from storage.tombstones import tombstones
from storage.verdicts import counted
from storage.verification import Finding, check_lists, check_volume, open_for_checking, unnamed_folders
from tasks.run.fanout import Lost, Pool
from tasks.run.runners import Local

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
    store, found = open_for_checking(as_place(path))
    ids = store.volume_ids()
    with Pool(Local(num_workers), memory_mb=_MEMORY_MB) as pool:
        for done, (volume_id, check) in enumerate(pool.map(partial(check_volume, store), ids), start=1):
            if isinstance(check, Lost):
                message = f"it could not be checked ({check.detail}): verify again with fewer workers"
                found.append(Finding("volume", volume_id, message))
            elif check is not None:
                found.append(check)
            if progress:
                progress(done, len(ids))
    found += check_lists(store)
    notes = [
        f"{folder.name} in {folder.parent} was finished but never committed; the next ingest of its scan uses it."
        for folder in unnamed_folders(store)
    ]
    with suppress(StorageError):  # found by `check_lists`
        if graves := [grave for grave in tombstones(store.path) if grave.finished]:
            number = sum(len(grave.volume_ids) for grave in graves)
            notes.append(
                f"{counted(len(graves), 'patient')} forgotten, with {counted(number, 'volume')}: older snapshots say so."
            )
    return found, notes
