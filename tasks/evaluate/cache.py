"""Where features of volumes are kept: beside the volumes, for every evaluation that needs them.

A volume has one folder, so that what was derived from it can be deleted with it; an entry is named by a hash of all that decides
the features, and sealed: one that is damaged, or copied from elsewhere, is computed again.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import SCRATCH
from storage.checkpoints import load_tensors, save_tensors
from storage.errors import StorageError, as_input_error
from storage.files import naming_path
from storage.privacy import FEATURES, beside_store
from storage.volume_store import VolumeStore

_FOLDER = "features"
Row = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureCache:
    """Features of volumes below one folder.

    Attributes:
        folder: has a folder per volume id.
        width: of the features.
    """

    folder: Path
    width: int

    def load(self, name: str, key: str) -> Row | None:
        """Features (width,) of a volume; None where they are not there, or not as they were saved.

        Args:
            name: volume id.
            key: hash of all that decides the features.
        """
        try:
            found = load_tensors(self._path(name, key))
            row, seal = found["features"], found["seal"]
        except (StorageError, KeyError):
            return None
        if row.dtype != np.float32 or row.shape != (self.width,) or not np.array_equal(seal, _seal(key, row)):
            return None
        return row

    def save(self, name: str, key: str, row: Row) -> None:
        """Keep the features (width,) of a volume. Raises: UnwritableError."""
        save_tensors(self._path(name, key), {"features": row, "seal": _seal(key, row)})

    def _path(self, name: str, key: str) -> Path:
        return self.folder / name / f"{key[:32]}.safetensors"


def _seal(key: str, row: Row) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(key.encode() + row.tobytes()).digest(), dtype=np.uint8)


def features_of_store(store: Path, directory: Path) -> Path:
    """Folder of the features of a store's volumes, beside it; where nothing can be written there, in a stage's scratch folder.

    Args:
        store: the volume store.
        directory: of the stage.
    """
    return _writable(beside_store(store, FEATURES), directory / SCRATCH / _FOLDER / "real")


def features_of_samples(samples: Path, directory: Path) -> Path:
    """Folder of the features of a sample artifact's volumes, in its scratch folder; else as `features_of_store`."""
    return _writable(samples.resolve() / SCRATCH / _FOLDER, directory / SCRATCH / _FOLDER / "generated")


def forget_features(store: VolumeStore, volume_ids: Iterable[str]) -> None:
    """Delete what is kept of some volumes of a store.

    Raises:
        InputError: an id that no volume can have.
        UnwritableError: they cannot be deleted.
    """
    for name in volume_ids:
        with as_input_error():
            store.record_path(name)
        folder = beside_store(store.path, FEATURES) / name
        if folder.is_dir():
            with naming_path(folder):
                shutil.rmtree(folder)


def _writable(folder: Path, instead: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return instead
    return folder if os.access(folder, os.W_OK) else instead
