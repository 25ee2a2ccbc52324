"""Where encoded volumes are kept: beside the store, for every training that starts from the same encoder on the same snapshot.

One folder per origin, named by its hash; in it one sealed file per volume, written completely or not at all. One that is damaged,
or copied from elsewhere, is not read.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import SCRATCH
from storage.checkpoints import load_tensors, save_tensors
from storage.documents.encoded import EncodedOrigin
from storage.errors import InputError, MissingArtifactError, StorageError, as_input_error
from storage.files import entries, naming_path, remove_leftovers, sha256_json
from storage.privacy import ENCODED, beside_store
from storage.volume_store import VolumeStore

_ENDS = ".safetensors"
Encoded = NDArray[np.float32]


class EncodedVolumes:
    """Encoded volumes of one origin.

    Args:
        folder: of all origins, see `encoded_folder`.
        origin: what they are of.
    Raises:
        InputError: the origin's folder holds what was encoded from another snapshot, by another encoder, or of another view.
        StorageError: the description there cannot be read.
        UnwritableError: it cannot be written.
    """

    def __init__(self, folder: Path, origin: EncodedOrigin) -> None:
        self._key = sha256_json(origin.to_json()).removeprefix("sha256:")
        self.folder = folder / self._key[:32]
        remove_leftovers(self.folder)
        described = self.folder / EncodedOrigin.NAME
        try:
            found = EncodedOrigin.read(described)
        except MissingArtifactError:
            origin.put(described)
            found = origin
        with suppress(OSError):  # a folder that is not ours, or read-only
            os.utime(described)  # it is used: what is not for long is removed by maintenance
        wanted, there = origin.to_json(), found.to_json()
        if other := [name for name in wanted if wanted[name] != there[name]]:
            differing = "; ".join(f"{name} {there[name]} instead of {wanted[name]}" for name in other)
            raise InputError(
                f"The encoded volumes in {self.folder} are not those of this training: {differing}. They were copied or renamed; "
                "remove the folder, and the volumes are encoded again."
            )

    def load(self, volume_id: str) -> Encoded | None:
        """What a volume was encoded to; None where it is not there, or not as it was saved here."""
        try:
            found = load_tensors(self._path(volume_id))
            values, seal = found["encoded"], found["seal"]
        except (StorageError, KeyError):
            return None
        if values.dtype != np.float32 or not np.array_equal(seal, self._seal(volume_id, values)):
            return None
        return values

    def save(self, volume_id: str, values: Encoded) -> None:
        """Keep what a volume was encoded to. Raises: UnwritableError."""
        values = np.ascontiguousarray(values)
        save_tensors(self._path(volume_id), {"encoded": values, "seal": self._seal(volume_id, values)})

    def _path(self, volume_id: str) -> Path:
        return self.folder / f"{volume_id}{_ENDS}"

    def _seal(self, volume_id: str, values: Encoded) -> NDArray[np.uint8]:
        text = f"{self._key} {volume_id} {values.shape}"
        return np.frombuffer(hashlib.sha256(text.encode() + values.tobytes()).digest(), dtype=np.uint8)


def encoded_folder(store: Path, directory: Path) -> Path:
    """Folder for the encoded volumes of a store, beside it; where nothing can be written there, in a stage's scratch folder.

    Args:
        store: the volume store.
        directory: of the stage.
    """
    folder = beside_store(store, ENCODED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return directory / SCRATCH / "encoded"
    return folder if os.access(folder, os.W_OK) else directory / SCRATCH / "encoded"


def encoded_folders(store: Path) -> list[Path]:
    """The folders of all origins that are kept beside a store. Raises: UnreadableError."""
    return [path for path in entries(beside_store(store, ENCODED), "*") if path.is_dir()]


def forget_encoded(store: VolumeStore, volume_ids: Iterable[str]) -> None:
    """Delete what some volumes of a store were encoded to, of every origin.

    Raises:
        InputError: an id that no volume can have.
        UnwritableError: they cannot be deleted.
    """
    folder = beside_store(store.path, ENCODED)
    for name in volume_ids:
        with as_input_error():
            store.record_path(name)
        for path in folder.glob(f"*/{name}{_ENDS}"):
            with naming_path(path):
                path.unlink(missing_ok=True)
