"""The frozen reference without a forgotten patient: a new number."""

from collections.abc import Collection
from pathlib import Path

from storage.volume_store import VolumeStore


def forget_reference(workdir: Path, store: VolumeStore, volume_ids: Collection[str]) -> int | None:
    """Write the next number of a working folder's frozen reference without some volumes; None where nothing changes."""
    return None
